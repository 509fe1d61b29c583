"""Many steps of one layer of ST-BIF neurons at once: the torch reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikezip.levels import Levels


@dataclass(frozen=True)
class Scan:
    """What a layer did over a block of K steps.

    Attributes:
        codes: tracers ``S_t``, ``[K, B, ...]``.
        spikes: levels moved per step and image, ``[K, B]`` int64 (at slew 1: the number of spikes).
        negative: of these, downwards, ``[K, B]``.
        behind: whether a neuron is not yet at its target, ``[K, B]`` bool.
    """

    codes: Tensor
    spikes: Tensor
    negative: Tensor
    behind: Tensor


def scan(drive: Tensor, start: Tensor, threshold: Tensor, levels: Levels, slew: int, steps: int) -> Scan:
    """Run ``S_t = S_{t-1} + clip(Q(U_t) - S_{t-1}, -slew, slew)`` for a block of steps.

    Args:
        drive: ``U_t`` as ``[K, B, ...]``, or ``[1, B, ...]`` where it is the same at every step.
        start: ``S`` before the block, ``[B, ...]``.
        threshold: theta, 0-dim.
        levels: limits of the tracer.
        slew: levels per step.
        steps: K.

    Returns:
        The :class:`Scan`; ``codes`` has ``start``'s type.
    """
    target = levels.codes(drive, threshold).to(start.dtype)
    codes = start.new_empty((steps, *start.shape))
    moves = (steps, start.shape[0])
    spikes = torch.zeros(moves, dtype=torch.int64, device=start.device)
    negative = torch.zeros_like(spikes)
    behind = torch.zeros(moves, dtype=torch.bool, device=start.device)
    now = start
    for k in range(steps):
        goal = target[k if target.shape[0] > 1 else 0]
        move = torch.clamp(goal - now, -slew, slew)
        now = torch.add(now, move, out=codes[k])
        per_image = move.reshape(move.shape[0], -1)
        spikes[k] = per_image.abs().sum(1).to(torch.int64)
        negative[k] = per_image.clamp(max=0).neg().sum(1).to(torch.int64)
        behind[k] = (goal != now).reshape(move.shape[0], -1).any(1)
    return Scan(codes, spikes, negative, behind)
