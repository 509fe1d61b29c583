"""Scales from real data: layer by layer, each on what the quantized layers before it hand over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.errors import CalibrationError, InputError
from spikezip.graph import network, ops
from spikezip.graph.modes import building
from spikezip.graph.ops import Kind
from spikezip.levels import Levels
from spikezip.quantize.quantizer import Quantizer
from spikezip.quantize.refit import Refit, divided

_SAMPLES = 1 << 17  #: values per layer the search looks at; more changes scales in the fourth digit only
LIMIT = 1024  #: images looked at, if no other number is given
_CHUNK = 64  #: images run at a time


@building()
def calibrate(
    qann: fx.GraphModule, data: Tensor | Iterable[Any], *, limit: int = LIMIT, ann: fx.GraphModule | None = None
) -> None:
    """Set every quantizer's scale, in place, by minimal mean squared error.

    The network is run once, node by node; a quantizer's scale is chosen when its input has been computed, from
    already quantized layers, so that each layer makes up for those before it. With ``ann``, each layer's weights are
    first refitted to what the layer gives there (:class:`~spikezip.quantize.refit.Refit`).

    Args:
        qann: a network with quantizers.
        data: inputs ``[N, ...]``, or an iterable of batches or ``(images, labels)`` pairs; for a network of several
            inputs, a tuple of them, or an iterable of such tuples.
        limit: how many images are used at most.
        ann: the network that was quantized (or, if ``quantize`` was given it, what that was before it was morphed);
            weights are refitted only if it is given.

    Raises:
        CalibrationError: there is no data, or the network's values are not finite on it.
        InputError: the data has the wrong shape or type, or holds NaN.
    """
    chunks = gather(qann, data, limit)
    if ann is not None:
        chunks = divided(chunks)
    _remark_inputs(qann, chunks)
    with torch.no_grad():
        refit = Refit(ann, qann, chunks) if ann is not None else None

        def visit(node: fx.Node, environments: list[dict[fx.Node, Any]]) -> None:
            if node.op == "call_module" and isinstance(module := qann.get_submodule(str(node.target)), Quantizer):
                _set_scale(module, [_drive(node, environment) for environment in environments], network.origin(node))
            if refit is not None:
                refit.apply(node, environments)

        network.remark(qann, ranges=run_abreast(qann, chunks, visit))


def calibrate_readings(
    qann: fx.GraphModule,
    data: Tensor | Iterable[Any],
    ann: fx.GraphModule,
    unrolled: fx.GraphModule,
    weights: Sequence[float],
    reached: Callable[[Levels], Levels],
    *,
    limit: int = LIMIT,
) -> None:
    """Calibrate and refit, in place, for several readings of the network (time steps) rather than for its own values.

    Args:
        qann: a network with quantizers.
        data: as for :func:`calibrate`.
        ann: what the layers are refitted to, as there.
        unrolled: the network on ``P`` readings in one batch, one after the other, with the parameters of ``qann``
            itself and the names of its nodes.
        weights: how much each reading counts, ``P`` numbers.
        reached: of a quantizer's levels, those that these readings can hold.
        limit: how many images are used at most.
    """
    chunks = divided(gather(qann, data, limit))
    _remark_inputs(qann, chunks)
    nodes = {node.name: node for node in qann.graph.nodes}
    # Inputs, and sums of products without their bias, are read by what makes readings of them, and by nothing else.
    readings = {n.name: n for n in unrolled.graph.nodes}
    for name, node in list(readings.items()):
        if len(node.users) == 1 and (reader := next(iter(node.users))).name not in nodes:
            readings[name] = reader
    counted = [i for i, weight in enumerate(weights) if weight]

    def of_counted(node: fx.Node, value: Any) -> Any:
        if not isinstance(value, Tensor) or ops.is_constant(node):
            return value
        dim = network.spec(node).batch_dim or 0
        parts = value.chunk(len(weights), dim)
        return torch.cat([parts[i] for i in counted], dim)

    with torch.no_grad():
        refit = Refit(ann, qann, chunks, [weights[i] for i in counted])

        def visit(node: fx.Node, environments: list[dict[fx.Node, Any]]) -> None:
            own = nodes.get(node.name)
            if own is None:
                return
            needed = {n: readings[n.name] for n in (*own.all_input_nodes, *refit.operands(own))}
            held = [{n: of_counted(n, e[there]) for n, there in needed.items() if there in e} for e in environments]
            if own.op == "call_module" and isinstance(module := qann.get_submodule(str(own.target)), Quantizer):
                drives = [_drive(own, environment) for environment in held]
                _set_scale(module, drives, network.origin(own), reached(module.levels))
            refit.apply(own, held)

        run_abreast(unrolled, chunks, visit)
        network.remark(qann, ranges=run_abreast(qann, chunks, lambda node, environments: None))


def _remark_inputs(qann: fx.GraphModule, chunks: Sequence[tuple[Tensor, ...]]) -> None:
    columns = list(zip(*chunks, strict=True))
    network.remark(
        qann,
        input_range=[max(map(_greatest, column)) for column in columns],
        input_detail=[_least_spread(column) for column in columns],
    )


def _least_spread(chunks: Sequence[Tensor]) -> float | None:
    """By how much the channel (or column) that varies least does so; None where none varies."""
    dims, found = chunks[0].dim(), []
    if dims == 1 or not chunks[0].is_floating_point():
        return None
    for dim in {1, dims - 1} if dims <= 3 else {1}:
        rows = [x.transpose(0, dim).flatten(1) for x in chunks]
        spreads = torch.stack([x.amax(1) for x in rows]).amax(0) - torch.stack([x.amin(1) for x in rows]).amin(0)
        found += spreads[spreads > 0].tolist()
    return min(found, default=None)


def _greatest(x: Tensor) -> float:
    return float((x.float() if x.dtype is torch.bool else x.abs()).max())


def gather(gm: fx.GraphModule, data: Tensor | Iterable[Any], limit: int) -> list[tuple[Tensor, ...]]:
    """Calibration data as a list of tuples of inputs, at most ``limit`` images, each of at most 64, checked."""
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise CalibrationError(f"limit={limit!r}: give a whole number of images, at least 1.")
    if not isinstance(data, Iterable):
        raise CalibrationError(
            f"Calibration data is {data!r}. Pass a few hundred inputs: a tensor [N, ...] or an iterable of batches."
        )
    specs = network.info(gm).inputs
    chunks: list[tuple[Tensor, ...]] = []
    count = 0
    # Where there are several inputs no batch is a tensor alone: a sequence of tensors is the inputs themselves.
    several = len(specs) > 1 and isinstance(data, list | tuple) and all(isinstance(x, Tensor) for x in data)
    for batch in [data] if isinstance(data, Tensor) or several else data:
        inputs = (batch,) if isinstance(batch, Tensor) else tuple(batch)[: len(specs)]
        if len(inputs) < len(specs):
            raise InputError(f"A calibration batch has {len(inputs)} inputs; the network takes {len(specs)}.")
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() and inputs[0].shape[0] == 0:
            continue
        for spec, x in zip(specs, inputs, strict=True):
            spec.check(x, "calibration data")
        if len({x.shape[0] for x in inputs}) > 1:
            raise InputError(f"Calibration inputs have different batch sizes: {[x.shape[0] for x in inputs]}.")
        inputs = tuple(x[: limit - count].resolve_conj() for x in inputs)
        count += inputs[0].shape[0]
        chunks.extend(zip(*(x.split(_CHUNK) for x in inputs), strict=True))
        if count >= limit:
            break
    if not chunks:
        raise CalibrationError(
            "The calibration set is empty. Pass a few hundred inputs: a tensor [N, ...] or an iterable of batches."
        )
    return chunks


def run_abreast(
    gm: fx.GraphModule,
    chunks: Sequence[tuple[Tensor, ...]],
    visit: Callable[[fx.Node, list[dict[fx.Node, Any]]], None],
) -> dict[str, float]:
    """Run all chunks node by node, each of which is visited before with what its operands hold; returns the greatest
    magnitude of every value but sums of products, by its node's name."""
    ranges: dict[str, float] = {}
    last_use = {n: user for user in gm.graph.nodes for n in user.all_input_nodes}
    release: dict[fx.Node, list[fx.Node]] = {}
    for value, user in last_use.items():
        release.setdefault(user, []).append(value)
    runs = [fx.Interpreter(gm, garbage_collect_values=True) for _ in chunks]
    environments: list[dict[fx.Node, Any]] = [{} for _ in chunks]
    for run, environment, chunk in zip(runs, environments, chunks, strict=True):
        run.env = environment
        run.args_iter = iter(chunk)
    for node in gm.graph.nodes:
        if node.op == "output":
            break
        visit(node, environments)
        for run, environment in zip(runs, environments, strict=True):
            environment[node] = run.run_node(node)
            if node.op == "call_function" and ops.kind(node) is not Kind.SYNAPTIC:
                ranges[node.name] = max(ranges.get(node.name, 0.0), _reach(environment[node]))
            for value in release.get(node, []):
                environment.pop(value, None)
    return ranges


def _reach(value: Any) -> float:
    """The greatest finite magnitude; 0 of what has none."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() == 0:
        return 0.0
    reach = max(abs(float(end)) for end in value.aminmax())
    return reach if math.isfinite(reach) else float(torch.where(value.isfinite(), value, 0.0).abs().max())


def _drive(quantizer: fx.Node, environment: dict[fx.Node, Any]) -> Tensor:
    return environment[quantizer.all_input_nodes[0]]


def _set_scale(quantizer: Quantizer, drives: list[Tensor], name: str, levels: Levels | None = None) -> None:
    values = torch.cat([_sample(d.flatten(), _SAMPLES // len(drives) + 1) for d in drives])
    if not bool(torch.isfinite(values).all()):
        raise CalibrationError(
            f"The input of {name!r} is not finite on the calibration data: the network overflows there. "
            "Check the normalisation of the data and the weights before that layer."
        )
    scale = best_scale(values, levels or quantizer.levels)
    quantizer.scale.data.fill_(scale)
    quantizer.calibrated.fill_(True)


def _sample(values: Tensor, count: int) -> Tensor:
    if values.numel() <= count:
        return values
    generator = torch.Generator().manual_seed(values.numel())
    return values[torch.randint(0, values.numel(), (count,), generator=generator).to(values.device)]


def best_scale(values: Tensor, levels: Levels) -> float:
    """The scale of least mean squared error between values and their quantized selves.

    Negative values count as 0 for levels that start at 0 (the quantizer contains the ReLU). 64 candidates up to the
    scale that clips nothing, then 32 between the best one's neighbours.

    Args:
        values: any shape, finite.
        levels: admissible codes.

    Returns:
        A positive scale; 1.0 where every value is 0, as any scale then is right.

    >>> round(best_scale(torch.arange(8.0), Levels.unsigned(8)), 2)
    1.0
    """
    values = values.float()
    _, exponent = torch.frexp(values.abs().max())
    unit = 2.0 ** int(exponent)  # exact, and squares of what is left neither overflow nor vanish
    values = torch.ldexp(values, -exponent)
    target = values.clamp(min=0) if levels.lowest == 0 else values
    top = float(target.max()) / levels.highest if levels.highest else 0.0
    bottom = float(target.min()) / levels.lowest if levels.lowest else 0.0
    widest = max(top, bottom)
    if widest <= 0:
        return 1.0

    def error(scale: float) -> float:
        codes = torch.floor(values / scale + 0.5).clamp_(levels.lowest, levels.highest)
        return float((codes * scale - target).square().mean())

    count = 64
    coarse = [widest * i / count for i in range(1, count + 1)]
    errors = [error(s) for s in coarse]
    best = min(range(count), key=errors.__getitem__)
    low, high = coarse[max(best - 1, 0)], coarse[min(best + 1, count - 1)]
    fine = [low + (high - low) * i / 32 for i in range(33)]
    return min([coarse[best], *fine], key=error) * unit
