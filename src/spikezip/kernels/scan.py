"""Many steps of one layer of ST-BIF neurons at once: the torch reference, and the choice of what runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spikezip.kernels import native
from spikezip.kernels.rows import Rows, Smooth, Sum, channels_lie_last, every_row, gather, tracers
from spikezip.levels import Levels

_BYTES = 256  #: levels that a byte can tell apart


@dataclass(frozen=True)
class Moves:
    """How a layer moved over a block of K steps.

    Attributes:
        last: tracers after the block, ``[B, ...]``, in the levels' :attr:`~spikezip.Levels.storage`.
        spikes: levels moved per step and image, ``[K, B]`` int64 (at slew 1: the number of spikes).
        negative: of these, downwards, ``[K, B]``.
        behind: whether a neuron is not yet at its target, ``[K, B]`` bool.
    """

    last: Tensor
    spikes: Tensor
    negative: Tensor
    behind: Tensor


@dataclass(frozen=True)
class Scan:
    """What a layer did over a block of K steps.

    Attributes:
        codes: tracers ``S_t`` times theta; a new row wherever an image's tracers changed.
        moves: what is left to know when nobody reads the codes any more.
    """

    codes: Rows
    moves: Moves


def scan(
    drive: Rows | Sum,
    start: Tensor | None,
    threshold: Tensor,
    levels: Levels,
    slew: int,
    theta: float | None = None,
    smooth: Smooth | None = None,
    every: bool = False,
) -> Scan:
    """Run ``S_t = S_{t-1} + clip(Q(U_t) - S_{t-1}, -slew, slew)`` for a block of steps.

    Args:
        drive: ``U_t``; its rows ``[R, ...]`` with nothing merged into the first dimension.
        start: ``S`` before the block, ``[B, ...]``, whole numbers of any type; None for 0.
        threshold: theta, 0-dim.
        levels: limits of the tracer.
        slew: levels per step.
        theta: the threshold as a number, where the caller knows it.
        smooth: what the drive, one stream, still goes through.
        every: make a row for every image at every step, whether it changed or not, so that how many there are is known
            before; on a GPU the counts then stay there, and nothing waits for it.

    Returns:
        The :class:`Scan`, the same to the bit whichever implementation ran.
    """
    terms = list(drive.terms) if isinstance(drive, Sum) else [drive]
    theta = float(threshold) if theta is None else theta
    scale = None if theta == 1.0 else theta
    small = levels.count <= _BYTES
    fused = _fused(terms, start, every) if small else None
    if fused is not native.scan or smooth is not None:
        terms = [t.now() for t in terms]
    if smooth is not None and fused is native.scan and native.suits_smooth(smooth, terms, theta, levels):
        fused = functools.partial(native.scan, smooth=smooth)
    elif smooth is not None:
        return scan(smooth(drive.numbers()), start, threshold, levels, slew, theta, every=every)
    if fused is not None:
        found = fused(terms, drive.dtype, start, theta, levels, slew)
        codes = Rows(found.rows, found.map, drive.dtype, -levels.lowest, scale, top=levels.range)
        last = tracers(codes, found.map[-1], levels.storage) if found.last is None else found.last
        scanned = Scan(codes, Moves(last, found.spikes, found.negative, found.behind))
    else:
        scanned = _in_torch(drive, start, threshold, levels, slew)
    return _spread(scanned) if every else scanned


def _spread(scanned: Scan) -> Scan:
    """The same with a row for every image at every step."""
    codes, map = scanned.codes, every_row(*scanned.codes.map.shape)
    if codes.map is map:
        return scanned
    return Scan(codes.with_rows(gather(codes.rows, codes.map.flatten()), map), scanned.moves)


def _fused(terms: list[Rows], start: Tensor | None, every: bool) -> Callable[..., native.Found] | None:
    """One kernel for the whole scan, if there is one for where the rows lie."""
    if native.suits(terms, start):
        return native.scan
    if terms[0].rows.device.type == "cuda":
        from spikezip.kernels import triton_scan  # imports Triton

        if triton_scan.suits(terms, start):
            return functools.partial(triton_scan.scan, every=every)
    return None


def _in_torch(drive: Rows | Sum, start: Tensor | None, threshold: Tensor, levels: Levels, slew: int) -> Scan:
    """The reference: one torch operation after the other. All is quantized at once, then followed step by step."""
    numbers = drive.numbers()
    value = numbers.value
    steps, images = numbers.map.shape
    one = float(threshold) == 1.0
    kind = Levels(-levels.range, levels.range).storage  # holds differences too
    ratio = value if one else value / threshold
    goals = torch.add(ratio, 0.5, out=None if one else ratio).floor_().nan_to_num_(levels.lowest)
    goals = goals.clamp_(levels.lowest, levels.highest).to(kind)
    last = channels_lie_last(goals)
    order = goals.movedim(1, -1).shape[1:] if last else goals.shape[1:]

    def flat(values: Tensor) -> Tensor:
        """``[B, ...]`` as ``[B, n]``, in the order of memory."""
        return (values.movedim(1, -1) if last else values).reshape(len(values), -1)

    def shaped(values: Tensor) -> Tensor:
        values = values.reshape(len(values), *order)
        return values.movedim(-1, 1) if last else values

    goals_flat = flat(goals)
    now = goals_flat.new_zeros((images, goals_flat.shape[1])) if start is None else flat(start.to(kind))
    every = now.new_empty((steps, *now.shape))
    spikes = torch.zeros((steps, images), dtype=torch.int64)
    negative = torch.zeros_like(spikes)
    behind = torch.zeros((steps, images), dtype=torch.bool)
    most = min(slew, levels.range)
    for k in range(steps):
        moved = k == 0 or not torch.equal(numbers.map[k], numbers.map[k - 1])
        if not moved and not bool(behind[k - 1].any()):
            continue  # nobody moves: the step before holds, and makes no row
        way = gather(goals_flat, numbers.map[k]).sub_(now)
        behind[k] = way.abs().amax(1) > most
        now = torch.add(now, way.clamp_(-most, most), out=every[k])
        net, total = (m.sum(1, dtype=torch.int32).to("cpu", torch.int64) for m in (way, way.abs()))
        spikes[k], negative[k] = total, (total - net) // 2
    new = spikes.T > 0
    new[:, 0] = True
    map = (new.flatten().cumsum(0) - 1).reshape(images, steps).T.contiguous()
    image, step = new.nonzero(as_tuple=True)
    kept = gather(every.flatten(0, 1), step * images + image)
    scale = None if one else float(threshold)
    if levels.count <= _BYTES:
        rows = shaped((kept.to(torch.int16) - levels.lowest).to(torch.uint8))
        codes = Rows(rows, map, drive.dtype, -levels.lowest, scale, top=levels.range)
    else:
        codes = Rows(shaped(kept).to(drive.dtype), map, drive.dtype, scale=scale)
    return Scan(codes, Moves(shaped(now).to(levels.storage, copy=True), spikes, negative, behind))
