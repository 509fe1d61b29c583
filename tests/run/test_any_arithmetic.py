"""An integer SNN gives one answer: whatever the engine, batch size, number of threads and memory layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_networks import shuffle_statistics
from spikezip import convert
from spikezip.graph import capture
from spikezip.morph import Morph, morph
from spikezip.quantize import quantize, to_integer
from spikezip.run import Engine, execute
from spikezip.spike import SpikingNetwork, spike

IMAGES, STEPS = 64, 40


class Net(nn.Module):
    """Convolutions plain, strided, grouped and by one, two residual additions, both poolings, a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.same, self.down = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.short, self.group = nn.Conv2d(16, 32, 1, stride=2), nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        x = F.relu(self.same(x) + x)
        x = F.relu(self.group(F.relu(self.down(x))) + self.short(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(IMAGES, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def snn(images: Tensor) -> SpikingNetwork:
    torch.manual_seed(0)
    ann = morph(capture(shuffle_statistics(Net()).eval(), images[:1]), Morph())
    return spike(to_integer(quantize(ann, 8, images)))


@pytest.fixture(scope="module")
def wanted(snn: SpikingNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    run = execute(snn, images, STEPS, engine=Engine.REFERENCE)
    return run.outputs[0][-1], run.settled_at


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels last"])
@pytest.mark.parametrize("batch", [1, 7, IMAGES])
@pytest.mark.parametrize("engine", list(Engine), ids=lambda engine: engine.value)
def test_one_answer(
    snn: SpikingNetwork,
    images: Tensor,
    wanted: tuple[Tensor, Tensor],
    engine: Engine,
    batch: int,
    layout: torch.memory_format,
    threads: int,
):
    some = IMAGES if batch > 1 else 4  # one by one is slow, and four say it
    parts = [part.contiguous(memory_format=layout) for part in images[:some].split(batch)]
    runs = [execute(snn, part, STEPS, engine=engine) for part in parts]
    assert torch.equal(torch.cat([run.outputs[0][-1] for run in runs]), wanted[0][:some])
    assert torch.equal(torch.cat([run.settled_at for run in runs]), wanted[1][:some])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels last"])
@pytest.mark.parametrize("batch", [1, 7, IMAGES])
def test_the_qann_too(
    snn: SpikingNetwork,
    images: Tensor,
    wanted: tuple[Tensor, Tensor],
    batch: int,
    layout: torch.memory_format,
    threads: int,
):
    with torch.no_grad():
        answers = [snn.qann(part.contiguous(memory_format=layout)) for part in images.split(batch)]
    assert torch.equal(torch.cat(answers), wanted[0])


def test_it_is_no_small_matter(snn: SpikingNetwork, images: Tensor, wanted: tuple[Tensor, Tensor]):
    """Images settle at several steps, and differ in their answers."""
    assert len(wanted[1].unique()) > 1
    assert int(wanted[1].min()) > 1
    assert len(wanted[0].unique(dim=0)) == IMAGES


class Stepped(nn.Module):
    """A layer, a GroupNorm, and what jumps where its values move by their last bit."""

    def __init__(self, jump: Callable[[Tensor], Tensor]):
        super().__init__()
        self.layer, self.norm, self.jump, self.head = nn.Conv2d(3, 6, 1), nn.GroupNorm(2, 6), jump, nn.Linear(6 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.jump(self.norm(F.relu(self.layer(x)))).flatten(1))


@pytest.mark.parametrize(
    "jump",
    [
        torch.sign,
        torch.floor,
        lambda y: (y >= 0).float(),
        lambda y: torch.div(y, 0.5, rounding_mode="floor"),
        lambda y: y.flatten(2).sort(stable=True, dim=-1)[1].unflatten(2, (8, 8)) / 64,
        lambda y: y.int() + y.argmax(2, keepdim=True) / 8,
    ],
    ids=["sign", "floor", "ge", "div", "sort", "int and argmax"],
)
def test_steps_behind_a_function(jump: Callable[[Tensor], Tensor]):
    """On an even image a channel is at its group's mean but for a last bit, which engines round each their way."""
    torch.manual_seed(0)
    levels = torch.randint(0, 3, (32, 3, 1, 1), generator=torch.Generator().manual_seed(1))
    images = (levels / 2).expand(32, 3, 8, 8).clone()
    snn = convert(Stepped(jump).eval(), images[:1], images, levels=5)
    truth = snn.qann(images)
    for engine in Engine:
        assert torch.equal(execute(snn, images, engine=engine).answer, truth), engine


def test_what_is_infinite_stays_so_behind_a_function():
    """Rounded to fixed point it would be a number, and equal to no infinity."""
    torch.manual_seed(0)
    images = torch.randn(32, 3, 8, 8)

    def hidden(y: Tensor) -> Tensor:
        masked = y.masked_fill(y < 0.2, -torch.inf)
        return torch.where(masked == -torch.inf, -1.0, masked)

    model = Stepped(hidden).eval()
    snn = convert(model, images[:1], images, levels=32)
    with torch.no_grad():
        assert float((snn.qann(images) - model(images)).abs().mean()) < 0.1
