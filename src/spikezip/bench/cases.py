"""What speed is measured on: a network at three stages, fixed by a seed, and images for it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from spikezip.measure import verify
from spikezip.pipeline import SNN, capture, morph, quantize, spike
from spikezip.quantize import to_integer
from spikezip.run import execute

_CALIBRATION = 32  #: images that thresholds and BatchNorm statistics are found from


@dataclass(frozen=True)
class Case:
    """A network and images for it.

    Attributes:
        ann: float32, channels_last where its weights are those of images, BatchNorm folded: the unit of time.
        snn: what it became, its weights alike.
        images: ``[B, ...]``, channels_last.
    """

    ann: fx.GraphModule
    snn: SNN
    images: Tensor

    @property
    def integer(self) -> bool:
        """Whether arithmetic is exact, so that every way of running must give the same bits."""
        return bool(self.snn.note("weight_bits"))

    def facts(self) -> dict[str, object]:
        """What a figure depends on beside the code: how many units are active, when they settle, spikes per step."""
        run = execute(self.snn, self.images, batch=self.images.shape[0])
        codes = [codes.flatten() for codes in run.codes.values()]
        neurons = sum(c.numel() for c in codes)
        per_step = run.total_spikes.double().mean(1)
        return {
            "active_units": round(sum(int((c != 0).sum()) for c in codes) / neurons, 4),
            "neurons": neurons // self.images.shape[0],
            "settled_at": [int(run.settled_at.min()), int(run.settled_at.max())],
            "spikes_per_step": [round(float(s), 1) for s in per_step],
            "mismatches": verify(self.snn, self.images, batch=self.images.shape[0]).mismatches,
        }


def images_like(shape: tuple[int, ...], count: int, seed: int = 7) -> Tensor:
    """Images as smooth as natural ones, roughly normalised: noise of two sizes (plain noise if they are no images).

    Args:
        shape: of one image, ``(C, H, W)``.
        count: how many.
    """
    generator = torch.Generator().manual_seed(seed)
    if len(shape) != 3:
        return torch.randn(count, *shape, generator=generator)
    coarse = F.interpolate(torch.rand(count, shape[0], 8, 8, generator=generator), size=shape[1:], mode="bilinear")
    return 4 * (coarse - 0.5) + 0.3 * torch.randn(count, *shape, generator=generator)


def make_case(
    module: nn.Module,
    shape: tuple[int, ...],
    levels: int,
    *,
    batch: int = 32,
    active: float | None = 0.5,
    weight_bits: int | None = 8,
) -> Case:
    """Convert a network for a benchmark.

    Args:
        module: the ANN; changed if ``active`` is given.
        shape: of one image, ``(C, H, W)``.
        levels: of every neuron.
        batch: how many images.
        active: set BatchNorm's statistics to those of the images and its bias so that about this share of units is
            above 0 behind it (residuals add to it), as random weights have no statistics of their own; None leaves
            the network as it is.
        weight_bits: of integer weights; None for floats.
    """
    images = images_like(shape, max(batch, _CALIBRATION))
    if active is not None:
        _balance(module, images[:_CALIBRATION], active)
    ann = morph(capture(module.eval(), images[:2]))
    qann = quantize(ann, levels, images[:_CALIBRATION])
    snn = spike(to_integer(qann, weight_bits) if weight_bits else qann)
    for graph in (ann.eval(), snn.graph):
        for tensor in (*graph.parameters(), *graph.buffers()):
            tensor.data = _channels_last(tensor.data)
    return Case(ann, snn, _channels_last(images[:batch]))


def _channels_last(values: Tensor) -> Tensor:
    """Of images and their weights; anything else stays as it is."""
    return values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values


@torch.no_grad()
def _balance(module: nn.Module, images: Tensor, active: float) -> None:
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.bias.fill_(NormalDist().inv_cdf(active))
        norm.momentum = None  # statistics are then those of the images, not a running mean of them
        norm.reset_running_stats()
    module.train()
    module(images)
    module.eval()
