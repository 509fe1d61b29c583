"""Units of integer networks: what is converted where streams of different thresholds meet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikezip.graph import capture, network
from spikezip.measure import verify
from spikezip.morph import morph
from spikezip.quantize import Quantizer, quantize, to_integer
from spikezip.run import Engine
from spikezip.spike import spike


class Streams(nn.Module):
    """Every layer adds a stream to those before and reads them all, as re-routed residual blocks do."""

    def __init__(self, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(depth))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        for layer in self.layers:
            x = F.relu(layer(x)) + x
        return self.head(x)


def test_a_long_sum_of_streams_stays_on_the_grid():
    """Only what joins is converted: the digits of the ratios do not add up from sum to sum."""
    torch.manual_seed(0)
    model, images = Streams(20), torch.randn(64, 6)
    exactness = network.note(to_integer(quantize(morph(capture(model, images)), 8, images)), "exactness")
    sums = [e.bits for e in exactness if e.op == "add"]
    assert len(sums) == 20
    assert max(sums) < 24
    assert {e.arithmetic for e in exactness} <= {"float32", "float64"}


#: What makes whole numbers or truth values of spikes, or joins them with real numbers: they are in no unit.
WHOLE = {
    "compared": lambda h: (h > 0.3).float(),
    "counted": lambda h: (h > 0.2).sum(1, keepdim=True).float().expand_as(h),
    "cut off": lambda h: (4 * h).long().float(),
    "sorted into classes": lambda h: torch.bucketize(h, torch.tensor([0.1, 0.3, 0.6])).float(),
    "added": lambda h: h + (h > 0.3),
    "subtracted": lambda h: h - (3 * h).int(),
    "multiplied": lambda h: h * (4 * h).int(),
    "joined": lambda h: torch.cat([h[:, :4], h[:, 4:] > 0.3], 1),
    "added, stored": lambda h: h + torch.arange(8),
}


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(F.relu(self.first(x))))


@pytest.mark.parametrize("function", WHOLE.values(), ids=WHOLE.keys())
def test_whole_numbers_are_in_no_unit(function):
    images = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    model = Between(function).eval()
    qann = quantize(morph(capture(model, images)), 16, images, correct_bias=False)
    integer = to_integer(qann, 16)
    if function is WHOLE["compared"]:
        assert {q.levels.lowest for _, q in network.modules_of(qann, Quantizer)} == {0}
    with torch.no_grad():
        wanted, found = qann(images), integer(images)
    assert float((found - wanted).norm() / (wanted - wanted.mean(0)).norm()) < 0.02
    for engine in Engine:
        assert verify(spike(integer), images, engine=engine).equal
