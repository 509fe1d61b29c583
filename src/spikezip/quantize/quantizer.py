"""The LSQ quantizer: a staircase with a learned step size."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.errors import StageError
from spikezip.graph import network
from spikezip.levels import Levels
from spikezip.quantize.fused import fused

Limit = Any  #: a number, or a tensor that broadcasts against the drive: one entry a path


class LSQ(torch.autograd.Function):
    """``scale * clip(floor(u/scale + 1/2), lowest, highest)`` with LSQ's straight-through gradients.

    Scales, limits and gains are numbers, or tensors that broadcast against the drive: one entry a path.
    """

    @staticmethod
    def forward(ctx, drive, scale, lowest, highest, gain):  # type: ignore[override]
        # Only the drive is kept, which exists anyway; the ratio and codes are computed again in the backward pass.
        ctx.save_for_backward(drive, scale)
        ctx.reading = lowest, highest, gain
        return _climbed_in_one_pass(drive, scale, lowest, highest)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        drive, scale = ctx.saved_tensors
        lowest, highest, gain = ctx.reading
        through, per_scale = _hand_back(grad, drive, scale, lowest, highest)
        return through, per_scale * gain, None, None, None


def widened(drive: Tensor, scale: Tensor) -> Tensor:
    """The drive in a type that holds the scale too: a scale without dimensions would be rounded to bfloat16 by torch,
    and with it the codes."""
    return drive.to(torch.promote_types(drive.dtype, scale.dtype))


def _climbed(drive: Tensor, scale: Tensor, lowest: Limit, highest: Limit) -> Tensor:
    # torch.compile of torch 2.11 loses the gradient of a function whose result is changed in place or cast to its type.
    if torch.compiler.is_compiling():
        values = torch.clamp(torch.floor(widened(drive, scale) / scale + 0.5), lowest, highest) * scale
    else:
        values = (widened(drive, scale) / scale).add_(0.5).floor_().clamp_(lowest, highest).mul_(scale)
    return values if values.dtype is drive.dtype else values.to(drive.dtype)


_climbed_in_one_pass = fused(_climbed)


@fused
def _hand_back(grad: Tensor, drive: Tensor, scale: Tensor, lowest: Limit, highest: Limit) -> tuple[Tensor, Tensor]:
    ratio = widened(drive, scale) / scale
    codes = (ratio + 0.5).floor_().clamp_(lowest, highest)
    inside = (ratio > lowest) & (ratio < highest)
    # d(scale * q)/d scale = q - u/scale inside, and q = the limit outside (LSQ, eq. 3).
    slope = codes.sub_(ratio.mul_(inside)).mul_(grad)
    own = drive.dim() - scale.dim()
    others = [d for d in range(drive.dim()) if d < own or scale.shape[d - own] == 1]
    return grad * inside, slope.sum(others, dtype=scale.dtype).reshape(scale.shape)


def staircase(drive: Tensor, scale: Tensor, lowest: Limit, highest: Limit, gain: Limit) -> Tensor:
    """:class:`LSQ` where gradients are recorded; its values by torch's own operations where they are not.

    The latter are the bits that an SNN is held to: no compiler makes them.
    """
    if torch.is_grad_enabled() and (drive.requires_grad or scale.requires_grad):
        return LSQ.apply(drive, scale, lowest, highest, gain)  # type: ignore[return-value]
    return _climbed(drive, scale, lowest, highest)


def gradient_scale(drive: Tensor, limit: int, batch_dim: int = 0) -> float:
    """LSQ's factor on the step size's gradient: ``g = 1 / sqrt(N_F * Q_P)``, ``N_F`` the features of one sample.

    ``N_F = numel / size of the batch dimension``, not ``numel``: the factor is then the same however a batch is cut
    into processes, accumulation steps or folded paths, and the gradient of a mean loss is a mean over samples.

    Args:
        drive: pre-activations with the batch in ``batch_dim``.
        limit: greatest magnitude of a code (``Q_P``).

    >>> gradient_scale(torch.zeros(32, 9), 4) == gradient_scale(torch.zeros(1, 9), 4) == 1 / 6
    True

    Source: Esser et al., ICLR 2020, section 2.2 ("N_F is the number of features in a layer").
    """
    batch = drive.shape[batch_dim] if drive.dim() else 1
    return 1.0 / math.sqrt(max(drive.numel() // max(batch, 1), 1) * limit)


def lsq(drive: Tensor, scale: Tensor, levels: Levels, batch_dim: int = 0) -> Tensor:
    """Quantize with LSQ's gradients.

    ``y = scale * clip(floor(drive/scale + 1/2), lowest, highest)``; the gradient passes ``drive`` unchanged inside
    the range and is 0 outside; ``scale`` receives ``(q - drive/scale)`` inside and the limit outside, scaled by
    ``1 / sqrt(features of a sample * magnitude)``, of the code of greatest magnitude (see :func:`gradient_scale`).

    Args:
        drive: pre-activations, any shape.
        scale: 0-dim positive tensor.
        levels: admissible codes.
        batch_dim: the dimension that counts samples.

    Returns:
        Tensor of ``drive``'s shape on the grid ``scale * {lowest..highest}``.

    Source: Esser et al., "Learned Step Size Quantization", ICLR 2020, eq. 1-5. Departs: ties go up
    (``floor(x + 1/2)``), as the neuron's comparison ``v >= theta`` does, not to even.
    """
    limit = levels.magnitude
    gain = gradient_scale(drive, limit, batch_dim)
    return staircase(drive, scale, levels.lowest, levels.highest, gain)


class Quantizer(nn.Module):
    """Rounds activations to ``scale * {lowest..highest}``; it later becomes one layer of ST-BIF neurons.

    Args:
        levels: admissible codes.
        scale: initial step size (theta), > 0. One per tensor, stored once, as the parameter ``scale``; ``calibrated``
            in the state dict says whether it has been set from data.

    Shape: any; the output has the input's shape.

    >>> q = Quantizer(Levels(0, 3), scale=0.5)
    >>> q(torch.tensor([-1.0, 0.3, 0.75, 9.0])).tolist()
    [0.0, 0.5, 1.0, 1.5]

    Source: Esser et al., ICLR 2020 (LSQ).
    """

    scale: nn.Parameter
    calibrated: Tensor
    batch_dim: int = 0  #: the dimension that counts samples, by which LSQ scales the step size's gradient

    def __init__(self, levels: Levels, scale: float = 1.0):
        super().__init__()
        self.levels = levels
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.register_buffer("calibrated", torch.tensor(False))

    def forward(self, drive: Tensor) -> Tensor:
        return lsq(drive, self.scale, self.levels, self.batch_dim)

    def codes(self, drive: Tensor) -> Tensor:
        """Whole-number codes of the drive (see :meth:`Levels.codes`)."""
        return self.levels.codes(drive, self.scale)

    def extra_repr(self) -> str:
        return f"{self.levels.lowest}..{self.levels.highest}, scale={float(self.scale.detach()):.4g}"


def check_scales(qann: fx.GraphModule) -> None:
    """Raise StageError naming the first quantizer whose scale has not been set, or is not positive and finite."""
    for node, quantizer in network.modules_of(qann, Quantizer):
        name, scale = network.origin(node), float(quantizer.scale.detach())
        if not bool(quantizer.calibrated):
            raise StageError(
                f"The quantizer {name!r} has no scale yet. Call calibrate(qann, data), or quantize with calibration=."
            )
        if not 0 < scale < math.inf:
            raise StageError(
                f"The scale of {name!r} is {scale}; a threshold must be positive and finite. Lower the learning rate "
                "of the scales, or calibrate() again."
            )
