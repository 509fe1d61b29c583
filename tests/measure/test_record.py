"""A record of networks that return something else than one tensor of logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikezip.measure import measure
from spikezip.pipeline import convert

IMAGES = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3


class Several(nn.Module):
    """Logits, and something beside them, by name."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.logits, self.box = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.first(x))
        return {"logits": self.logits(hidden), "box": self.box(hidden)}


class Spectrum(Several):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(super().forward(x)["logits"])


def test_the_first_of_several_outputs_is_the_answer():
    model = Several()
    record = measure(convert(model, IMAGES[:2], IMAGES), IMAGES, LABELS, ann=model)
    with torch.no_grad():
        right = (model(IMAGES)["logits"].argmax(-1) == LABELS).double().mean()
    assert record["accuracy"]["ann"] == float(right)


def test_complex_outputs_are_no_answers():
    model = Spectrum()
    record = measure(convert(model, IMAGES[:2], IMAGES), IMAGES, LABELS, ann=model)
    assert set(record["accuracy"].values()) == {None}
    assert record["agreement"] is None
    assert sum(record["layers"][0]["spikes"]) > 0
