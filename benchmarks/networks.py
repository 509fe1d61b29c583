"""The networks that speed is measured on: fixed by a seed, with as many active units as one asks for."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import spikezip
from spikezip.models import resolve


@dataclass(frozen=True)
class Case:
    """A network at three stages, and images for it."""

    ann: fx.GraphModule
    snn: spikezip.SNN
    images: Tensor


def images(count: int, size: int = 32, seed: int = 7) -> Tensor:
    """Images as smooth as natural ones, roughly normalised: noise of two sizes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(count, 3, 8, 8, generator=generator), size=size, mode="bilinear")
    return 4 * (coarse - 0.5) + 0.3 * torch.randn(count, 3, size, size, generator=generator)


def case(model: str, levels: int, *, batch: int = 32, active: float = 0.5, integer: bool = True, seed: int = 0) -> Case:
    """Convert a model with random weights.

    Args:
        model: as ``spikezip.models.resolve`` takes it.
        levels: of every neuron.
        batch: how many images.
        active: the share of units that BatchNorm leaves above 0 (about; residuals add to it).
        integer: integer weights, or floats as drawn.
        seed: of the weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = resolve(model).module
    x = images(max(batch, 32))
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.bias.fill_(NormalDist().inv_cdf(active))
            norm.momentum = None  # statistics are then those of the images, not a running mean of them
        module.train()
        module(x[:32])
    ann = spikezip.morph(spikezip.capture(module.eval(), x[:1]))
    qann = spikezip.quantize(ann, levels, x[:32])
    snn = spikezip.spike(spikezip.to_integer(qann) if integer else qann)
    ann = ann.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Case(ann, snn, x[:batch])
