"""Units of integer networks: what is converted where streams of different thresholds meet."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikezip.graph import capture, network
from spikezip.morph import morph
from spikezip.quantize import quantize, to_integer


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
