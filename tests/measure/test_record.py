"""A record of networks that return something else than one tensor of logits."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hand_networks import Copies, image, spiking
from torch import Tensor, nn

from spikezip.errors import InputError, OutputError, StageError
from spikezip.measure import Record, audit, compare, measure, verify
from spikezip.pipeline import convert
from spikezip.report import load_record, write_report
from spikezip.spike import Even

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


class BatchLast(Several):
    def forward(self, x: Tensor) -> tuple[str, Tensor]:
        return "logits", super().forward(x)["logits"].T


def test_the_batch_may_lie_behind_the_classes():
    model, turned = Several(), BatchLast()
    wanted = measure(convert(model, IMAGES[:2], IMAGES), IMAGES, LABELS, ann=model)["accuracy"]
    assert measure(convert(turned, IMAGES[:2], IMAGES), IMAGES, LABELS, ann=turned)["accuracy"] == wanted
    with pytest.raises(InputError, match="labels go from 0 to 3, and the network tells 3 classes apart"):
        measure(convert(turned, IMAGES[:2], IMAGES), IMAGES, torch.arange(40) % 4)


def test_complex_outputs_are_no_answers():
    model = Spectrum()
    record = measure(convert(model, IMAGES[:2], IMAGES), IMAGES, LABELS, ann=model)
    assert set(record["accuracy"].values()) == {None}
    assert record["agreement"] is None
    assert sum(record["layers"][0]["spikes"]) > 0


class Flat(nn.Module):
    """One number an image, in no dimension of its own."""

    def __init__(self):
        super().__init__()
        self.several = Several()

    def forward(self, x: Tensor) -> Tensor:
        return self.several(x)["logits"][:, 0]


class Box(Several):
    """One number an image, and something beside it."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = super().forward(x)
        return found["box"][:, :1], found["logits"]


@pytest.mark.parametrize("model", [Flat(), Box()])
def test_one_number_is_no_answer(model, tmp_path):
    snn = convert(model, IMAGES[:2], IMAGES)
    record = measure(snn, IMAGES)
    assert set(record["accuracy"].values()) == {None}
    assert record["agreement"] is None
    page = write_report(record.save(tmp_path / "record.json"), tmp_path / "report.html").read_text()
    assert "same prediction" not in page
    with pytest.raises(InputError, match="gives one number an image, not classes; leave labels out"):
        measure(snn, IMAGES, torch.zeros(40, dtype=torch.int64))


def test_one_number_agrees_where_it_is_the_same():
    snn = convert(Box(), IMAGES[:2], IMAGES)
    found = compare(snn.qann, snn, IMAGES, steps=1).outputs[0]
    assert found.l1[0] > 0 and found.agree[0] < 1


def test_it_says_on_how_many_images_codes_were_compared():
    snn = convert(Several(), IMAGES[:2], IMAGES)
    found = [measure(snn, IMAGES, energy=False, batch=8, distances=n)["compared"] for n in (16, 20, 512)]
    assert found == [16, 24, 40], "whole batches, and no more images than there are"


def test_the_author_s_network_is_left_in_its_mode():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(32, 4)
    snn = convert(model, x[:1], x)
    model.train()
    measure(snn, x, torch.zeros(32, dtype=torch.int64), ann=model, energy=False)
    assert model.training
    assert model[0].training


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"steps": 0}, "steps=0"),
        ({"batch": -1}, "batch=-1"),
        ({"distances": 0}, "distances=0"),
        ({"steps": 1.5}, "1.5"),
    ],
)
def test_numbers_that_are_no_counts_are_refused(wrong, told):
    x = torch.randn(8, 4)
    snn = convert(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), x[:1], x)
    with pytest.raises(StageError, match=told):
        measure(snn, x, **wrong)


@pytest.mark.parametrize("labels", [torch.full((8,), 3), torch.full((8,), -1), torch.full((8,), 0.5), [0] * 8])
def test_labels_that_no_class_has_are_refused(labels):
    x = torch.randn(8, 4)
    snn = convert(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), x[:1], x)
    with pytest.raises(InputError, match="labels"):
        measure(snn, x, labels)


def test_a_last_layer_that_never_fires_has_no_first_spike():
    layers = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    x = torch.randn(8, 4)
    snn = convert(layers, x[:1], x)
    assert measure(snn, torch.zeros(2, 4), steps=3)["settled"]["first_output_spike"] is None


def test_a_neuron_traced_in_a_run_that_has_not_settled_is_set_against_the_qann_s_code():
    snn = spiking(Copies(1, Copies(1, nn.Flatten())), (1, 1, 1))
    first, second = measure(snn, image((1, 1, 1), {(0, 0, 0): 5}), steps=2)["traces"]
    assert first["tracer"] == second["tracer"] == [1, 2]
    assert (first["target"], second["target"]) == (5, 5)


class Logarithms(nn.Module):
    """Of the sum of the spikes, -inf before any arrives, in a drive and in the output."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        nn.init.constant_(self.a.bias, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.a(x).relu()
        log = found.sum(-1, keepdim=True).log()
        return self.c((log + self.b(found)).relu()) + log


def test_what_is_infinite_before_spikes_arrive_is_saved_as_null(tmp_path):
    x = torch.rand(16, 6, generator=torch.Generator().manual_seed(0)) * 2
    snn = convert(Logarithms(), x[:1], x, weight_bits=None, encoding=Even(16))
    trace = load_record(measure(snn, x, energy=False).save(tmp_path / "record.json"))["traces"][1]
    for values in (trace["drive"], trace["membrane"]):
        assert values[0] is None and None not in values[8:]
    found = compare(snn.qann, snn, x)
    saved = json.loads(found.save(tmp_path / "comparison.json").read_text())
    assert found.outputs[0].l1[0] == float("inf") and saved["outputs"][0]["l1"][0] is None
    assert saved["outputs"][0]["l1"][-1] == found.outputs[0].l1[-1] < 1e-6


def test_a_number_that_is_not_finite_is_named_and_nothing_is_written(tmp_path):
    record = Record({"layers": [{"l1": [0.5, float("nan")]}]})
    with pytest.raises(OutputError, match=r"layers\[0\]\.l1\[1\] is nan"):
        record.save(tmp_path / "record.json")
    assert not list(tmp_path.iterdir())


def test_results_are_one_line_and_comparisons_a_table():
    """What a notebook shows of them; thousands of numbers before."""
    snn = convert(Several(), IMAGES[:2], IMAGES)
    run, cut = snn.run(IMAGES), snn.run(IMAGES, steps=1)
    assert re.fullmatch(
        r"<Run SETTLED: images=40, steps=\d+, T_eq up to \d+, \d+ spikes an image, engine=\w+>", repr(run)
    )
    assert f"T_eq up to {int(run.settled_at.max())}," in repr(run)
    assert f"{int((cut.settled_at > 0).sum())} settled" in repr(cut)
    shown = repr(verify(snn, IMAGES))
    assert shown.startswith("<Certificate equal: images=40, mismatches=0") and len(shown) < 200
    record = repr(measure(snn, IMAGES, LABELS, name="several", steps=9))
    assert record.startswith("<Record of several on images (test): images=40, steps=9, SETTLED, QANN ")
    assert len(record) < 200
    assert repr(measure(snn, IMAGES)).endswith("SETTLED>")
    table = compare(snn.qann, snn, IMAGES, steps=2)
    assert repr(table) == str(table)
    assert repr(audit(snn)) == str(audit(snn))
