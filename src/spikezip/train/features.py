"""Distillation of features: what neurons hold, beside what the ANN's activations are in the same places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.errors import StageError
from spikezip.graph.network import Spec
from spikezip.train.folding import batch_dim_of, copy_of, parted


def features_of(student: fx.GraphModule, teacher: Any, readings: int, index: int) -> tuple[nn.Module, nn.Module]:
    """Student and teacher as graphs that give ``(answer, features)``, the features in pairs.

    A feature is the value behind a quantizer of the student, ``[B, ...]``, and the activation of the teacher that the
    quantizer stands for.

    Args:
        student: a QANN, or its paths or steps in one batch.
        teacher: the morphed ANN that the QANN was made of.
        readings: paths or steps in the student's batch.
        index: which of them is compared.

    Raises:
        StageError: the places of one are not found in the other.
    """
    places = [n for n in student.graph.nodes if n.op == "call_module" and "stands_for" in n.meta]
    known = {n.name: n for n in teacher.graph.nodes} if isinstance(teacher, fx.GraphModule) else {}
    for place in places:
        there = known.get(place.meta["stands_for"])
        if there is None or there.meta["spec"].shape != place.meta["spec"].shape:
            raise StageError(
                f"{str(place.target)!r} has no counterpart in the teacher. Features are learned from the very ANN "
                "that was quantized: pass teacher=ann, what morph() returned and quantize() was given."
            )
    if not places:
        raise StageError(
            "There is no feature to learn: no quantizer is found in this network. Quantize with quantize(), and train "
            "paths in one batch (Folded())."
        )
    return _tapped(student, [n.name for n in places], readings, index), _tapped(
        teacher, [n.meta["stands_for"] for n in places]
    )


def distance(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Tensor:
    """``mean over layers and samples of ||found - wanted||^2 / ||wanted||^2``; 0 for a sample where nothing is wanted,
    as nothing is relative to that. A mean over samples is the same however a batch is cut."""
    parts = []
    for f, w in zip(found, wanted, strict=True):
        away, size = ((x * x).reshape(len(x), -1).sum(1) for x in (f - w, w))
        parts.append((away / size.masked_fill(size == 0, float("inf"))).mean())
    return torch.stack(parts).mean()


def _tapped(gm: fx.GraphModule, names: list[str], readings: int = 1, index: int = 0) -> fx.GraphModule:
    graph, kept = copy_of(gm)
    nodes = {n.name: n for n in graph.nodes}
    output = graph.output_node()
    with graph.inserting_before(output):
        taps = [graph.call_function(_reading, (nodes[n], readings, index, *_places(nodes[n]))) for n in names]
    output.args = ((output.args[0], tuple(taps)),)
    return fx.GraphModule(kept, graph)


def _places(node: fx.Node) -> tuple[int, int, bool]:
    """The dimension of the samples, how many values of one it holds, and whether the samples are its fastest index."""
    spec, dim = node.meta.get("spec"), batch_dim_of(node)
    return (dim, spec.shape[dim], spec.inner) if isinstance(spec, Spec) else (dim, 1, False)


def _reading(value: Tensor, readings: int, index: int, dim: int, merged: int, inner: bool) -> Tensor:
    """One reading's values as ``[B, ...]``."""
    rows = parted(value, readings, dim)[index].movedim(dim, 0)
    if merged == 1:
        return rows
    return rows.unflatten(0, (merged, -1)).movedim(1, 0) if inner else rows.unflatten(0, (-1, merged))
