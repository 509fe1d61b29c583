"""Small networks with BatchNorm in every place it may stand, each captured once."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from random_networks import shuffle_statistics
from spikezip.graph import capture


class TwoReaders(nn.Module):
    """The convolution's result is read beside its BatchNorm: it must not be folded into."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class SharedConvolution(nn.Module):
    """One convolution under two BatchNorms."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv(F.relu(self.bn1(self.conv(x)))))


class Functional(nn.Module):
    """A matrix product by ``function``, under a BatchNorm."""

    def __init__(self, function):
        super().__init__()
        self.lin, self.bn, self.function = nn.Linear(4, 4), nn.BatchNorm1d(4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.function(x, self.lin.weight, self.lin.bias))


class Bare(nn.Module):
    """A weight of the network itself, in no module."""

    def __init__(self):
        super().__init__()
        self.weight, self.bn = nn.Parameter(torch.randn(3, 2, 1, 1)), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.conv2d(x, self.weight))


class Tied(nn.Module):
    """Two BatchNorms with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.bn1 = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.second, self.bn2 = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.bn2.weight = self.bn1.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.second(F.relu(self.bn1(self.first(x)))))


class NamedLikeALayer(nn.Module):
    """The input that is normalised has an operation's name."""

    def __init__(self):
        super().__init__()
        self.bn, self.lin = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, linear: Tensor) -> Tensor:
        return self.lin(self.bn(linear))


NETWORKS = {
    "conv1d": (nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6)), (4, 7)),
    "conv2d": (nn.Sequential(nn.Conv2d(4, 6, 3, bias=False, padding="same"), nn.BatchNorm2d(6)), (4, 5, 5)),
    "conv3d": (nn.Sequential(nn.Conv3d(2, 3, 2, dilation=2), nn.BatchNorm3d(3)), (2, 4, 4, 4)),
    "depthwise": (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)), (4, 5, 5)),
    "transposed 1d": (nn.Sequential(nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6)), (4, 5)),
    "transposed, groups": (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)), (4, 4, 4)),
    "transposed, output padding": (
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), nn.BatchNorm2d(6)),
        (4, 4, 4),
    ),
    "transposed 3d": (nn.Sequential(nn.ConvTranspose3d(2, 3, 2, bias=False), nn.BatchNorm3d(3)), (2, 3, 3, 3)),
    "linear": (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), (4,)),
    "linear without bias": (nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5)), (4,)),
    "no affine map": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False)), (2, 5, 5)),
    "two in a row": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3, eps=0.1)), (2, 5, 5)),
    "two in a row behind linear": (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.BatchNorm1d(5)), (4,)),
    "mm": (Functional(lambda x, w, b: torch.mm(x, w)), (4,)),
    "addmm": (Functional(lambda x, w, b: torch.addmm(b, x, w)), (4,)),
    "a weight in no module": (Bare(), (2, 3, 3)),
    "tied weights": (Tied(), (2, 3, 3)),
    "another momentum": (nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, momentum=0.3)), (2, 3, 3)),
    "no momentum": (nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, momentum=None)), (2, 3, 3)),
    "shared convolution": (SharedConvolution(), (2, 4, 4)),
}
NETWORKS["computed bias"] = (Functional(lambda x, w, b: F.linear(x, w, 2 * b)), (4,))
STANDING_ALONE = {
    "first": (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3)), (2, 5, 5)),
    "behind ReLU": (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3)), (4,)),
    "two in a row behind ReLU": (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.BatchNorm1d(4)), (4,)),
    "an input called linear": (NamedLikeALayer(), (4,)),
    "matmul": (Functional(lambda x, w, b: x @ w), (4,)),
    "two readers": (TwoReaders(), (2, 5, 5)),
    "over positions": (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(5)), (5, 4)),
    "over as many positions as channels": (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), (5, 4)),
    "addmm with factors": (Functional(lambda x, w, b: torch.addmm(b, x, w, beta=0.5, alpha=2.0)), (4,)),
    "addmm of a signal": (Functional(lambda x, w, b: torch.addmm(x, x, w)), (4,)),
}


@functools.cache
def captured(name: str) -> tuple[nn.Module, fx.GraphModule, Tensor]:
    """The network in float64 with random statistics, as captured, and an input; none of them is to be changed."""
    model, shape = {**NETWORKS, **STANDING_ALONE}[name]
    shuffle_statistics(model).double().eval()
    x = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return model, capture(model, x), x
