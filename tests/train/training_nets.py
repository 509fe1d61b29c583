"""Small networks with quantizers, traced as they are, for tests of training alone."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from spikezip.levels import Levels
from spikezip.quantize.quantizer import Quantizer


class _Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Quantizer) or super().is_leaf_module(m, module_qualified_name)


def traced(module: nn.Module) -> fx.GraphModule:
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
