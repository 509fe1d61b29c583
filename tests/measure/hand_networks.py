"""Networks small enough to count on paper: neurons with threshold 1 and codes 0..7 that copy what they are given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import spikezip
from spikezip.graph import network
from spikezip.quantize.quantizer import Quantizer
from spikezip.spike import Encoding, Pulse, SpikingNetwork


def spiking(
    model: nn.Module, shape: tuple[int, ...], encoding: Encoding = Pulse(), slew: int = 1, initial_code: int = 0
) -> SpikingNetwork:
    """The model as an SNN whose thresholds are 1."""
    ann = spikezip.morph(spikezip.capture(model.eval(), torch.rand(2, *shape)), spikezip.Morph())
    qann = spikezip.quantize(ann, 8)
    for _, quantizer in network.modules_of(qann, Quantizer):
        quantizer.scale.data.fill_(1.0)
        quantizer.calibrated.fill_(True)
    return spikezip.spike(qann, encoding, slew=slew, initial_code=initial_code)


class Copies(nn.Module):
    """The image itself as codes (a 1x1 convolution with weight 1, then ReLU), then ``after``."""

    def __init__(self, channels: int, after: nn.Module, bias: bool = False):
        super().__init__()
        self.copy = nn.Conv2d(channels, channels, 1, groups=channels, bias=bias)
        nn.init.ones_(self.copy.weight)
        if bias:
            nn.init.zeros_(self.copy.bias)  # type: ignore[arg-type]
        self.relu = nn.ReLU()
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.relu(self.copy(x)))


def image(shape: tuple[int, ...], codes: dict[tuple[int, ...], float]) -> Tensor:
    """One image that is 0 but where said."""
    x = torch.zeros(1, *shape)
    for place, value in codes.items():
        x[(0, *place)] = value
    return x
