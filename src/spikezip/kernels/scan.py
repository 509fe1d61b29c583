"""Many steps of one layer of ST-BIF neurons at once: the torch reference, and the choice of what runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spikezip.kernels import native
from spikezip.kernels.rows import Rows, Sum, gather, tracers
from spikezip.levels import Levels

_BYTES = 256  #: levels that a byte can tell apart


@dataclass(frozen=True)
class Scan:
    """What a layer did over a block of K steps.

    Attributes:
        codes: tracers ``S_t`` times theta; a new row wherever an image's tracers changed.
        last: tracers after the block, ``[B, ...]``, in the levels' :attr:`~spikezip.Levels.storage`.
        spikes: levels moved per step and image, ``[K, B]`` int64 (at slew 1: the number of spikes).
        negative: of these, downwards, ``[K, B]``.
        behind: whether a neuron is not yet at its target, ``[K, B]`` bool.
    """

    codes: Rows
    last: Tensor
    spikes: Tensor
    negative: Tensor
    behind: Tensor


def scan(drive: Rows | Sum, start: Tensor | None, threshold: Tensor, levels: Levels, slew: int) -> Scan:
    """Run ``S_t = S_{t-1} + clip(Q(U_t) - S_{t-1}, -slew, slew)`` for a block of steps.

    Args:
        drive: ``U_t``; its rows ``[R, ...]`` with nothing merged into the first dimension.
        start: ``S`` before the block, ``[B, ...]``, whole numbers of any type; None for 0.
        threshold: theta, 0-dim.
        levels: limits of the tracer.
        slew: levels per step.

    Returns:
        The :class:`Scan`, the same to the bit whichever implementation ran.
    """
    terms = [drive.first, drive.second] if isinstance(drive, Sum) else [drive]
    theta = float(threshold)
    scale = None if theta == 1.0 else theta
    small = levels.count <= _BYTES
    fused = _fused(terms, start) if small else None
    if fused is not None:
        found = fused(terms, drive.dtype, start, theta, levels, slew)
        codes = Rows(found.rows, found.map, drive.dtype, -levels.lowest, scale, top=levels.range)
        return Scan(codes, tracers(codes, found.map[-1], levels.storage), found.spikes, found.negative, found.behind)
    return _in_torch(drive, start, threshold, levels, slew)


def _fused(terms: list[Rows], start: Tensor | None) -> Callable[..., native.Found] | None:
    """One kernel for the whole scan, if there is one for where the rows lie."""
    if native.suits(terms, start):
        return native.scan
    if terms[0].rows.device.type == "cuda":
        from spikezip.kernels import triton_scan  # imports Triton

        if triton_scan.suits(terms, start):
            return triton_scan.scan
    return None


def _in_torch(drive: Rows | Sum, start: Tensor | None, threshold: Tensor, levels: Levels, slew: int) -> Scan:
    """The reference: one torch operation after the other, step by step."""
    numbers = drive.numbers()
    value = numbers.value
    steps, images = numbers.map.shape
    scale = None if float(threshold) == 1.0 else float(threshold)
    now = torch.zeros_like(gather(value, numbers.map[0])) if start is None else start.to(value.dtype)
    every = now.new_empty((steps, *now.shape))
    spikes = torch.zeros((steps, images), dtype=torch.int64)
    negative = torch.zeros_like(spikes)
    behind = torch.zeros((steps, images), dtype=torch.bool)
    goal = None
    for k in range(steps):
        moved = goal is None or not torch.equal(numbers.map[k], numbers.map[k - 1])
        if moved:
            goal = levels.codes(gather(value, numbers.map[k]), threshold).to(now.dtype)
        elif not bool(behind[k - 1].any()):
            continue  # nobody moves: the step before holds, and makes no row
        move = torch.clamp(goal - now, -slew, slew)  # type: ignore[operator]
        now = torch.add(now, move, out=every[k])
        per_image = move.reshape(images, -1)
        spikes[k] = per_image.abs().sum(1).to(torch.int64)
        negative[k] = per_image.clamp(max=0).neg().sum(1).to(torch.int64)
        behind[k] = (goal != now).reshape(images, -1).any(1)
    new = spikes.T > 0
    new[:, 0] = True
    map = (new.flatten().cumsum(0) - 1).reshape(images, steps).T.contiguous()
    image, step = new.nonzero(as_tuple=True)
    kept = gather(every.flatten(0, 1), step * images + image)
    if levels.count <= _BYTES:
        codes = Rows((kept - levels.lowest).to(torch.uint8), map, drive.dtype, -levels.lowest, scale, top=levels.range)
    else:
        codes = Rows(kept, map, drive.dtype, scale=scale)
    return Scan(codes, now.to(levels.storage), spikes, negative, behind)
