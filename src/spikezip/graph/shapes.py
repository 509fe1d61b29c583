"""Where the batch lies in every value of a network, found by running it on shapes alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from spikezip.errors import CaptureError
from spikezip.graph import network, rewrite
from spikezip.graph.network import Spec


def annotate(gm: fx.GraphModule, *, anew: bool = True) -> None:
    """Write each node's Spec: its shape for one image, and which dimension the batch enters.

    The graph is run on shapes alone for batches of 1, 2 and 3; a dimension that grows with the batch holds it.

    Args:
        gm: the network.
        anew: look at every node; otherwise only at those made since the last time (a rewrite that keeps the shapes
            and types of all others).
    """
    fresh = [n for n in gm.graph.nodes if anew or not n.meta.get("annotated")]
    if not any(n.op != "output" for n in fresh):
        return
    shapes = [_shapes(gm, batch, None if anew else set(fresh)) for batch in (1, 2, 3)]
    for node in fresh:
        node.meta["annotated"] = True
        one, two, three = (s.get(node) for s in shapes)
        if one is None or two is None or three is None:
            node.meta.pop("spec", None)
            continue
        grows = [i for i, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if a != b]
        if len(grows) > 1:
            raise CaptureError(
                f"In {network.describe(node)} the batch enters two dimensions: samples are mixed, which is refused."
            )
        old = node.meta.get("spec")
        found = Spec(tuple(one.shape), one.dtype, grows[0] if grows else None)
        if isinstance(old, Spec):
            parted = old.stretch > 0 and bool(grows) and one.shape[grows[0]] % old.stretch == 0
            stretch = old.stretch if parted else 0
            found = replace(found, outer=old.outer, inner=old.inner, placed=old.placed, stretch=stretch)
        node.meta["spec"] = found


def retype(gm: fx.GraphModule) -> None:
    """Write each node's type anew, where rewrites have changed types alone."""
    for node, value in _shapes(gm, 2, None).items():
        if "spec" in node.meta:
            node.meta["spec"] = replace(network.spec(node), dtype=value.dtype)


def rewritten(gm: fx.GraphModule, count: int) -> int:
    """Tidy a graph in which ``count`` places were rewritten, shapes and types of all others kept; return how many."""
    if count:
        rewrite.tidy(gm)
        annotate(gm, anew=False)
    return count


def _shapes(gm: fx.GraphModule, batch: int, only: set[fx.Node] | None) -> dict[fx.Node, Tensor]:
    """Tensors without values, one per node; ``only`` these, from what is known of the others."""
    found: dict[fx.Node, Tensor] = {}
    device = network.device(gm)
    needed = _needed(gm, only) if only is not None else set()

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if only is not None and n not in only and n.op in ("call_function", "call_module"):
                if n not in needed:
                    return None
                if isinstance(known := n.meta.get("spec"), Spec):
                    return torch.empty(for_batch(known, batch), dtype=known.dtype, device=device)
            try:
                result = super().run_node(n)
            except Exception as error:
                raise CaptureError(
                    f"The graph fails at {network.describe(n)} for a batch of {batch}: {error}. Accept any batch size."
                ) from error
            if isinstance(result, Tensor) and n.op != "output":
                found[n] = result
            return result

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        inputs = [torch.empty((batch, *s.shape), dtype=s.dtype, device=device) for s in network.info(gm).inputs]
        interpreter = Shapes(gm)
        interpreter.extra_traceback = False
        interpreter.run(*inputs)
    return found


def _needed(gm: fx.GraphModule, only: set[fx.Node]) -> set[fx.Node]:
    """What these nodes read, and what is read by those of which no shape is known."""
    needed = set(only)
    for node in reversed(gm.graph.nodes):
        if node in only or (node in needed and "spec" not in node.meta):
            needed.update(node.all_input_nodes)
    return needed


def for_batch(known: Spec, batch: int) -> tuple[int, ...]:
    """A value's shape for so many images."""
    return tuple(size * batch if i == known.batch_dim else size for i, size in enumerate(known.shape))
