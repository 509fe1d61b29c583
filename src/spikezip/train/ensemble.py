"""All paths of a network at once: a graph that shares its parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.utils.checkpoint
from torch import Tensor, fx, nn

from spikezip.errors import StageError
from spikezip.graph.network import Spec, describe
from spikezip.morph.fold import LiveBatchNorm
from spikezip.quantize.quantizer import Quantizer, gradient_scale, lsq, staircase
from spikezip.train.folding import batch_dim_of, copy_of, in_one_batch
from spikezip.train.paths import Main, Path, PathScale, PathStatistics, Reading

#: Of a network whose paths cannot share a batch.
_IN_TURN = "paths cannot share a batch there. Use PET with execution=InTurn()."


@dataclass(frozen=True)
class Folded:
    """All paths in one batch ``[P*B, ...]``: one call per operation. Fast where kernels are launched (GPUs)."""


@dataclass(frozen=True)
class InTurn:
    """One path after the other: ``P`` calls per operation. Often faster on CPUs, where memory traffic decides.

    Args:
        recompute: keep the activations of no path, and compute each again in the backward pass: the memory of one
            path for about a third more time.
    """

    recompute: bool = False


def ensemble(
    qann: fx.GraphModule,
    paths: Sequence[Path],
    execution: Folded | InTurn = Folded(),
    scale: PathScale = PathScale.SHARED,
    statistics: PathStatistics = PathStatistics.PRIVATE,
) -> fx.GraphModule:
    """The network that computes the main path and every sub-path of ``qann`` with one set of weights.

    Args:
        qann: a graph with quantizers.
        paths: the sub-paths; the main path is put before them.
        execution: in one batch, or in turn. Same results, to rounding.
        scale: whether sub-paths share the main path's scales.
        statistics: of a live BatchNorm, whose weight and bias all paths share: each path's own, of which those of the
            main path are those of ``qann``, or one for all paths, which must be in one batch.

    Returns:
        A GraphModule from ``[B, ...]`` to ``[P, B, ...]`` (each output, if there are several), ``P = 1 + len(paths)``,
        main path first. Its parameters **are** those of ``qann``, besides free scales: training it trains ``qann``.

    Raises:
        StageError: ``qann`` is no graph, has no quantizer, a live BatchNorm whose passes are to be computed twice, or
            mixes the batch into other dimensions; or statistics are shared by paths that are computed in turn.

    Source: SpikeZIP (ICLR 2025 submission), paths-ensemble training; slimmable networks with switchable BatchNorm, Yu
    et al., ICLR 2019. Departs: ``morph`` folds BatchNorm before unless it is asked not to, so that all paths (as all
    time steps of the SNN) share one affine map.
    """
    every = (Main(), *paths)
    recompute = isinstance(execution, InTurn) and execution.recompute
    check_shared(qann, one_batch=_IN_TURN if isinstance(execution, Folded) else None, live=not recompute)
    shared = statistics is PathStatistics.SHARED
    if shared and not isinstance(execution, Folded):
        raise StageError("Statistics of all paths together are those of one batch. Use execution=Folded().")
    if isinstance(execution, Folded):

        def read(module: Any, dim: int) -> nn.Module:
            if isinstance(module, LiveBatchNorm):
                return module if shared else PathsBatchNorm(module, len(every), dim)
            quantizers, readings = zip(*(_read_by(module, path, scale) for path in every), strict=True)
            return PathsQuantizer(quantizers, readings, dim)

        return in_one_batch(qann, [1.0] * len(every), read)
    members: dict[str, nn.Module] = {}
    graph = fx.Graph()
    inputs = [graph.placeholder(str(n.target)) for n in qann.graph.nodes if n.op == "placeholder"]
    answers = []
    for index, path in enumerate(every):
        member = _member(qann, path, scale)
        members[f"path{index}"] = _Recomputed(member) if execution.recompute else member
        answers.append(graph.call_module(f"path{index}", tuple(inputs)))
    graph.output(graph.call_function(_stack, (answers,)))
    return fx.GraphModule(members, graph)


class PathsQuantizer(nn.Module):
    """A quantizer read by ``P`` paths at once; the batch holds path after path.

    Args:
        quantizers: whose scale each path reads: the QANN's own, or one of the path's.
        readings: how.
        batch_dim: the dimension that holds the ``P * B`` samples.

    Shape: ``[P*B, ...]`` to the same.
    """

    factors: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, quantizers: Sequence[Quantizer], readings: Sequence[Reading], batch_dim: int = 0):
        super().__init__()
        self.quantizers = nn.ModuleList(quantizers)
        self.readings = tuple(readings)
        self.batch_dim = batch_dim
        columns = {
            "factors": [r.factor for r in readings],
            "lowest": [r.levels.lowest for r in readings],
            "highest": [r.levels.highest for r in readings],
        }
        scale = quantizers[0].scale
        for name, values in columns.items():
            tensor = torch.tensor(values, dtype=scale.dtype, device=scale.device)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, drive: Tensor) -> Tensor:
        paths = len(self.readings)
        parted = drive.unflatten(self.batch_dim, (paths, drive.shape[self.batch_dim] // paths))
        gains = [gradient_scale(drive, r.levels.magnitude, self.batch_dim) for r in self.readings]
        scales = torch.stack([cast(Quantizer, quantizer).scale for quantizer in self.quantizers])
        columns = (scales * self.factors, self.lowest, self.highest, self.factors.new_tensor(gains))
        shape = (paths,) + (1,) * (parted.dim() - 1 - self.batch_dim)
        out = staircase(parted, *(column.view(shape) for column in columns))
        return out.flatten(self.batch_dim, self.batch_dim + 1)

    def extra_repr(self) -> str:
        return ", ".join(f"{r.factor:.4g}s*[{r.levels.lowest}..{r.levels.highest}]" for r in self.readings)


class PathQuantizer(nn.Module):
    """A quantizer read by one path: :func:`lsq` with scale ``factor * s`` and the path's levels."""

    def __init__(self, quantizer: Quantizer, reading: Reading, batch_dim: int = 0):
        super().__init__()
        self.quantizer = quantizer
        self.reading = reading
        self.batch_dim = batch_dim

    def forward(self, drive: Tensor) -> Tensor:
        return lsq(drive, self.quantizer.scale * self.reading.factor, self.reading.levels, self.batch_dim)


def _read_by(quantizer: Quantizer, path: Path, scale: PathScale) -> tuple[Quantizer, Reading]:
    reading = path.reading(quantizer.levels)
    if scale is PathScale.SHARED or isinstance(path, Main):
        return quantizer, reading
    own = copy.deepcopy(quantizer)
    own.levels = reading.levels
    own.scale.data.mul_(reading.factor)
    return own, Reading(1.0, reading.levels)


class PathsBatchNorm(nn.Module):
    """A live BatchNorm in each of ``P`` paths; the batch holds path after path.

    Args:
        norm: the QANN's own module; the main path's.
        paths: ``P``.
        batch_dim: the dimension that holds the ``P * B`` samples.

    Shape: ``[P*B, ...]`` to the same. Weight and bias are those of ``norm`` in all paths; each sub-path has running
    statistics of its own, and in training each path is normalised by the statistics of its own samples.

    Source: switchable BatchNorm, Yu et al., "Slimmable Neural Networks", ICLR 2019. Departs: there weight and bias are
    private too.
    """

    def __init__(self, norm: LiveBatchNorm, paths: int, batch_dim: int = 0):
        super().__init__()
        self.norms = nn.ModuleList([norm, *(_with_own_statistics(norm) for _ in range(paths - 1))])
        self.batch_dim = batch_dim

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.norms), self.batch_dim)
        return torch.cat([norm(part) for norm, part in zip(self.norms, parts, strict=True)], self.batch_dim)


def _with_own_statistics(norm: LiveBatchNorm) -> LiveBatchNorm:
    own = copy.deepcopy(norm)
    own.weight, own.bias = norm.weight, norm.bias
    return own


class _Recomputed(nn.Module):
    def __init__(self, member: nn.Module):
        super().__init__()
        self.member = member

    def forward(self, *inputs: Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(self.member, *inputs, use_reentrant=False)


def _member(qann: fx.GraphModule, path: Path, scale: PathScale) -> fx.GraphModule:
    graph, kept = copy_of(qann)
    for name, module in kept.items():
        if isinstance(module, LiveBatchNorm) and not isinstance(path, Main):
            kept[name] = _with_own_statistics(module)
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(quantizer := kept[str(node.target)], Quantizer):
            kept[str(node.target)] = PathQuantizer(*_read_by(quantizer, path, scale), batch_dim_of(node))
    return fx.GraphModule(kept, graph)


def check_shared(qann: fx.GraphModule, *, one_batch: str | None = None, live: bool = False) -> None:
    """Refuse a network whose paths, or steps, cannot share weights, (not ``live``) BatchNorm, or, if they are to share
    a batch, that: ``one_batch`` says what this leads to, and what to do."""
    if not isinstance(qann, fx.GraphModule):
        raise StageError(
            f"This training takes a QANN's graph, but was given a {type(qann).__name__}. Call quantize() before it."
        )
    if not any(isinstance(m, Quantizer) for m in qann.modules()):
        raise StageError("This network has no quantizer, so it has no paths. Call quantize() before.")
    for name, module in qann.named_modules():
        if isinstance(module, LiveBatchNorm) and not live:
            raise StageError(
                f"{name!r} is a live BatchNorm, whose statistics would mix what this training computes. Call morph() "
                "without batch_norm=LIVE, or use PET, each path once (Folded() or InTurn()), or a trajectory."
            )
    for node in qann.graph.nodes:
        spec = node.meta.get("spec")
        if one_batch and isinstance(spec, Spec) and not spec.outer:
            raise StageError(f"{describe(node)} merges the batch into another dimension, so {one_batch}")


def _stack(answers: Sequence[Any]) -> Any:
    if isinstance(answers[0], Tensor):
        return torch.stack(list(answers))
    return tuple(torch.stack(column) for column in zip(*answers, strict=True))
