"""What is no pure function of one image is refused, inside otherwise ordinary networks, by the node's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikezip.errors import CaptureError, InputError, SpikezipError, StageError
from spikezip.graph import capture
from spikezip.morph import morph
from spikezip.quantize import quantize
from spikezip.spike import spike


class Net(nn.Module):
    """Stem, a block that does ``function``, head."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module | Tensor):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
        self.block = Block(function)
        for name, part in parts.items():
            setattr(self.block, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(F.relu(self.stem(x))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.function, self.calls, self.last = function, 0, torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _count(m: Block, x: Tensor) -> Tensor:
    m.calls += 1
    return x * m.calls


def _remember(m: Block, x: Tensor) -> Tensor:
    x, m.last = x + m.last, x.detach().mean()
    return x


def _write(m: nn.Module, x: Tensor) -> Tensor:
    m.seen.mul_(0.9).add_(0.1 * x.mean((0, 2, 3)))
    return x - m.seen[:, None, None]


def _autocast(m: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.relu(F.conv2d(x, torch.ones(4, 4, 1, 1))).float()


@dataclass(frozen=True)
class Case:
    """A network that must be refused, the error, and what its message says."""

    network: Callable[[], nn.Module]
    message: str
    error: type[SpikezipError] = CaptureError


REFUSED = {
    "a buffer that is updated": Case(lambda: Net(_write, seen=nn.Buffer(torch.zeros(4))), "own buffer 'block.seen'"),
    "a counter": Case(lambda: Net(_count), "'head' .*stateless"),
    "the input before": Case(lambda: Net(_remember), "stateless|could not capture"),
    "dropout that is always on": Case(
        lambda: Net(lambda m, x: F.dropout2d(x, 0.2, training=True)), "'block' .*random numbers"
    ),
    "Gumbel softmax": Case(lambda: Net(lambda m, x: F.gumbel_softmax(x, dim=1)), "'block' .*random numbers"),
    "stochastic depth by hand": Case(
        lambda: Net(lambda m, x: x * torch.bernoulli(torch.full((x.shape[0], 1, 1, 1), 0.5))),
        "'block' .*random numbers",
    ),
    "a branch on values": Case(lambda: Net(lambda m, x: x if x.max() > 1 else 2 * x), "Control flow.*values"),
    "a loop on values": Case(
        lambda: Net(lambda m, x: sum((x / 2**i for i in range(3) if x.max() > i), x)), "Control flow.*values"
    ),
    "torch.cond": Case(
        lambda: Net(lambda m, x: torch.cond(x.mean() > 0, lambda v: v + 1, lambda v: v - 1, (x,))),
        "block.*one graph.*torch.where",
    ),
    "a shape that depends on values": Case(
        lambda: Net(lambda m, x: x * x.nonzero().shape[0]), "'block' .*nonzero.*depends on data"
    ),
    "selection by a mask": Case(
        lambda: Net(lambda m, x: x + x[x > 0].mean()), "'block' .*depends on data|could not capture"
    ),
    "BatchNorm without running statistics": Case(
        lambda: Net(lambda m, x: m.norm(x), norm=nn.BatchNorm2d(4, track_running_stats=False)),
        "'block.norm' .*mixes the samples",
    ),
    "BatchNorm in training mode": Case(
        lambda: Net(lambda m, x: F.batch_norm(x, None, None, training=True)), "'block' .*mixes the samples"
    ),
    "centring over the batch": Case(lambda: Net(lambda m, x: x - x.mean(0)), "'block' .*mixes the samples"),
    "attention between images": Case(
        lambda: Net(lambda m, x: (x.flatten(1) @ x.flatten(1).t()).softmax(1) @ x.flatten(1).unflatten(1, (4, -1))),
        "batch|captur",
    ),
    "a factor of the batch's size": Case(
        lambda: Net(lambda m, x: x * x.shape[0]), "'block' .*reckons with the size of the batch"
    ),
    "a batch size that is fixed": Case(
        lambda: Net(lambda m, x: x.reshape(len(x), -1).unflatten(1, (4, 6, 6))), r"fixes the batch size.*x\.shape\[0\]"
    ),
    "a line that cannot be captured": Case(
        lambda: Net(lambda m, x: torch.from_numpy(x.detach().numpy())), r"at 'block', test_refusals\.py:\d+ `.*numpy"
    ),
    "a lazy module": Case(
        lambda: Net(lambda m, x: m.layer(x), layer=nn.LazyConv2d(4, 1)), "'block.layer.weight' is uninitialized"
    ),
    "half precision inside": Case(lambda: Net(lambda m, x: x.half().float()), r"'block' .*float16.*model\.float\(\)"),
    "autocast": Case(lambda: Net(_autocast), r"'block' .*bfloat16.*autocast"),
    "half precision": Case(lambda: Net(lambda m, x: x).half(), r"float16.*model\.float\(\)", InputError),
    "nothing to quantize": Case(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), "no quantizer.*no neuron", StageError
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    case = REFUSED[name]
    network = case.network()
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images = images.to(next(network.parameters()).dtype)
    with pytest.raises(case.error, match=f"(?s){case.message}"):
        spike(quantize(morph(capture(network, images)), 8, images))


def test_a_refused_model_is_left_as_it_was():
    network = Net(_count).train()
    with pytest.raises(CaptureError):
        capture(network, torch.zeros(1, 3, 6, 6))
    assert all(module.training for module in network.modules())
