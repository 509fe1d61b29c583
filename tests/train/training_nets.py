"""Small networks with quantizers, traced as they are, for tests of training alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.levels import Levels
from spikezip.quantize.quantizer import Quantizer
from spikezip.train import PET, SGD, AdamW, Capped, Plan, TensorBatches


class _Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Quantizer) or super().is_leaf_module(m, module_qualified_name)


def traced(module: nn.Module) -> fx.GraphModule:
    for quantizer in module.modules():
        if isinstance(quantizer, Quantizer):
            quantizer.calibrated.fill_(True)
    return fx.GraphModule(module, _Leaves().trace(module))


class Residual(nn.Module):
    """A convolutional net with a residual addition, a signed quantizer and a flatten that reads the batch size."""

    def __init__(self, levels: Levels = Levels(0, 7), signed: Levels = Levels(-4, 4)):  # noqa: B008
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 4, 3, padding=1), Quantizer(levels, 0.13)
        self.conv2, self.mix = nn.Conv2d(4, 4, 3, padding=1), Quantizer(signed, 0.11)
        self.relu2 = Quantizer(levels, 0.17)
        self.head = nn.Linear(4 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))
        x = self.relu2(self.mix(self.conv2(x)) + x)
        return self.head(x.view(x.size(0), -1))


def residual(seed: int = 0, dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    torch.manual_seed(seed)
    return traced(Residual()).to(dtype)


def chain(levels: Levels = Levels(0, 7), inputs: int = 6, classes: int = 3, seed: int = 0) -> fx.GraphModule:  # noqa: B008
    torch.manual_seed(seed)
    return traced(
        nn.Sequential(
            nn.Linear(inputs, 16),
            Quantizer(levels, 0.2),
            nn.Linear(16, 16),
            Quantizer(levels, 0.2),
            nn.Linear(16, classes),
        )
    )


def clusters(count: int = 96, inputs: int = 6, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around ``classes`` centres: a task that a small net learns in a few epochs."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, inputs, generator=draw) * 2
    labels = torch.randint(0, classes, (count,), generator=draw)
    return centres[labels] + torch.randn(count, inputs, generator=draw), labels


def small_data() -> TensorBatches:
    return TensorBatches(*clusters(120), held_out=40)


def pet_plan(**changes: Any) -> Plan:
    plan = Plan(objective=PET((Capped(1), Capped(2))), epochs=3, batch=16, optimizer=SGD(0.1))
    return replace(plan, **changes)


def resumable_plan() -> Plan:
    """With everything that has state: Adam's moments, averaged weights, checkpoints within an epoch."""
    return pet_plan(optimizer=AdamW(0.01), ema=0.9, warmup=0.5, clip=1.0, checkpoint_every=2, log_every=1, accumulate=2)


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def classes_apart() -> nn.Module:
    """A teacher that knows the clusters: the nearest centre, as one linear layer."""
    images, labels = clusters(120)
    centres = torch.stack([images[labels == c].mean(0) for c in range(3)])
    teacher = nn.Linear(6, 3)
    teacher.weight.data = centres
    teacher.bias.data = -centres.square().sum(1) / 2
    return teacher


def residual_data(count: int = 100, held_out: int = 21) -> TensorBatches:
    """Images for :func:`residual` whose class is the brightest row, with noise."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (count,), generator=draw)
    images = torch.randn(count, 1, 4, 4, generator=draw)
    images[torch.arange(count), 0, labels] += 2.0
    return TensorBatches(images, labels, held_out=held_out)
