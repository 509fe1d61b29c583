"""What each synaptic operation receives, and what it would cost to read it otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from hand_networks import Copies, image, spiking
from torch import Tensor, nn
from torch.nn import functional as F

import spikezip
from random_networks import Drawn, shuffle_statistics
from spikezip.measure import ablate
from spikezip.measure.audit import MEANING, Audit, audit
from spikezip.models.cifar_resnet import resnet20
from spikezip.spike.neurons import SpikeTracking


def of(blocks: list[str], morph: spikezip.Morph = spikezip.Morph()) -> Audit:  # noqa: B008 - frozen
    model = shuffle_statistics(Drawn(blocks)).eval()
    return audit(spikezip.convert(model, torch.rand(2, 2, 5, 5), torch.rand(8, 2, 5, 5), morph=morph))


def received(found: Audit) -> dict[str, str]:
    return {f"{row.name} {row.op}": row.input for row in found.rows}


def test_a_plain_network_is_spike_driven():
    found = of(["chain", "residual"])
    assert received(found) == {
        "stem conv2d": "analog input",
        "blocks.0.conv conv2d": "ternary",
        "blocks.1.conv1 conv2d": "ternary",
        "blocks.1.conv2 conv2d": "ternary",
        "head linear": "ternary",
    }
    assert found.spike_driven
    assert found.rows[1].streams == ("relu",)
    assert "receives spikes alone" in str(found)


def test_rerouted_residuals_are_sums_of_streams_and_spike_driven():
    found = of(["residual", "residual"], spikezip.Morph(residual=spikezip.Residual.RCR))
    assert received(found)["blocks.1.conv1 conv2d"] == "streams:2"
    assert received(found)["head linear"] == "streams:3"
    assert len(found.rows[-1].streams) == 3
    assert found.spike_driven


def test_concatenated_streams_do_not_meet():
    found = of(["concatenation"])
    assert received(found)["blocks.0.join conv2d"] == "ternary"
    assert len(next(row for row in found.rows if row.name == "blocks.0.join").streams) == 2


def test_averages_products_and_attention_are_named():
    assert received(of(["pooling"]))["blocks.0.conv conv2d"] == "fractional"
    gated = of(["squeeze and excitation", "chain"])
    assert received(gated)["blocks.0.down conv2d"] == "fractional"
    assert received(gated)["blocks.1.conv conv2d"] == "product"
    assert not gated.spike_driven
    assert "Not spikes alone: blocks.0, blocks.1.conv" in str(gated)
    attention = received(of(["attention"]))
    assert attention["blocks.0 matmul"] == "ternary x ternary"
    assert attention["blocks.0.qkv linear"] == "ternary"


def test_a_sum_of_streams_that_is_multiplied_is_not_spikes_alone():
    class Multiplied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = (torch.relu(layer(x)) for layer in (self.a, self.b, self.c))
            return (a + b) * c

    found = audit(spiking(Multiplied(), (4,)))
    assert found.rows[-1].input == "streams:2 x ternary"
    assert not found.rows[-1].spike_driven
    assert not found.spike_driven


class Met(nn.Module):
    """Two layers of neurons with thresholds of their own, brought together, and a convolution that reads the result."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)
        self.read, self.how = nn.LazyConv2d(2, 1), how

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.how(torch.relu(self.a(x)), torch.relu(3 * self.b(x) + 0.1)))


def met(how: Callable[[Tensor, Tensor], Tensor], weight_bits: int | None = None) -> tuple[spikezip.SNN, Tensor]:
    torch.manual_seed(0)
    model, images = Met(how).eval(), torch.randn(8, 1, 4, 4)
    model(images)
    return spikezip.convert(model, images[:1], images, levels=5, weight_bits=weight_bits), images


@pytest.mark.parametrize("weight_bits", [8, None])
@pytest.mark.parametrize(
    ("how", "kind"),
    [
        (lambda p, q: F.max_pool3d(torch.stack([p, q], 2), 2).squeeze(2), "graded"),
        (lambda p, q: F.max_pool2d(torch.cat([p[:, :, :3], q[:, :, :3]], 2), 2), "graded"),  # across the seam
        (lambda p, q: F.max_pool2d(p + torch.linspace(0, 1, 4), 2), "graded"),
        (lambda p, q: F.max_pool2d(p * torch.linspace(0.3, 1, 4), 2), "graded"),
        (lambda p, q: F.max_pool2d(F.pad(p, (1, 1, 1, 1), value=0.5), 2), "graded"),
        (lambda p, q: torch.cat([p, q], 1).amax(1, keepdim=True), "graded"),
        (lambda p, q: F.max_pool2d(torch.cat([p, q], 1), 2), "ternary"),  # DenseNet: no window holds both
        (lambda p, q: F.max_pool2d(F.max_pool2d(torch.cat([p, q], 1), 3, 1, 1), 2), "ternary"),
        (lambda p, q: F.max_pool2d(torch.cat([F.max_pool2d(p, 3, 1, 1), q], 1), 2), "ternary"),
        (lambda p, q: F.max_pool2d(torch.cat([F.max_pool2d(p, 3, 1, 1), q], 2), 3), "graded"),
        (lambda p, q: F.max_pool2d(p * torch.tensor([0.5, 1.0]).view(2, 1, 1) + 1, 2), "ternary"),
        (lambda p, q: F.max_pool2d(F.pad(-p, (1, 1, 1, 1)), 2), "ternary"),
        (lambda p, q: p.amax(1, keepdim=True), "ternary"),
        (lambda p, q: F.adaptive_max_pool2d(p, 2), "ternary"),
    ],
)
def test_a_maximum_is_ternary_where_a_window_holds_values_of_one_staircase(how, kind, weight_bits):
    row = audit(met(how, weight_bits)[0]).rows[-1]
    assert (row.name, row.input, row.spike_driven) == ("read", kind, kind == "ternary")


@pytest.mark.parametrize(
    "how",
    [
        lambda p, q: p.masked_fill(p < 0.2, 0.0),
        lambda p, q: q.gather(1, p.argmax(1, keepdim=True).expand(-1, 2, -1, -1)),
    ],
)
def test_values_moved_by_a_mask_or_by_places_that_are_found_on_the_way(how):
    snn, images = met(how)
    assert spikezip.verify(snn, images).equal
    found = audit(snn, images[:2])
    assert found.rows[-1].macs == 0 < (found.rows[-1].acs or 0)
    assert not any("masked_fill" in what or "gather" in what for what in found.uncounted)
    assert torch.equal(ablate(snn, SpikeTracking(), images, 12).logits[-1], snn.qann(images))
    # With no neuron behind it, what arrives is no spike.
    model = Met(how).eval()
    model(images)
    ann = spikezip.morph(spikezip.capture(model, images[:1]), spikezip.Morph())
    bare = spikezip.spike(spikezip.quantize(ann, 5, images, strict=False))
    assert audit(bare).rows[-1].input == "analog"


@pytest.mark.parametrize(
    ("how", "names"),
    [
        (lambda p, q: torch.fft.fft(p).real + q, ["fft_fft (fft_fft)"]),
        (lambda p, q: F.normalize(p) - q.softmax(1), []),  # functions that are named, and counted but for roots
    ],
)
def test_what_no_rule_counts_is_not_spike_driven(how, names):
    snn, images = met(how)
    for found in (audit(snn), audit(snn, images[:2])):
        assert [f"{row.name} ({row.op})" for row in found.rows if row.input == "uncounted"] == names
        assert found.spike_driven is not bool(names)
        assert all(name.split()[0] in str(found).splitlines()[-1] for name in names)
        assert {row.input for row in found.rows} <= set(MEANING)


def test_what_no_rule_counts_before_there_are_spikes_is_analog_input():
    images = torch.randn(8, 1, 4, 4)
    model = nn.Sequential(Spectrum(), nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1)).eval()
    found = audit(spikezip.convert(model, images[:1], images))
    assert [row.name for row in found.rows] == ["1", "3"]


class Spectrum(nn.Module):
    """Real parts of the input's spectrum."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).real


def test_analog_operands_are_named_where_strictness_was_given_up():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.norm(torch.relu(self.a(x))))

    ann = spikezip.morph(spikezip.capture(Bare(), torch.rand(2, 3)), spikezip.Morph())
    snn = spikezip.spike(spikezip.quantize(ann, 8, torch.rand(16, 3), strict=False))
    found = audit(snn)
    assert received(found)["b linear"] == "analog"
    assert [row.name for row in found.exceptions] == ["b"]


def test_what_integers_would_cost_instead_of_streams():
    # One spike of code 3 and its 9 synapses: 27 accumulates; read as an integer it changes in 3 steps, 27 MACs.
    snn = spiking(Copies(1, nn.Conv2d(1, 1, 3, padding=1)), (1, 5, 5))
    found = audit(snn, image((1, 5, 5), {(0, 2, 2): 3}), 4)
    last = found.rows[-1]
    assert (last.acs, last.macs, last.as_macs) == (27, 0, 27)
    assert last.synapses == (5 + 4 + 4) ** 2  # in each direction 5 positions have 3 taps, less one at either border
    assert (found.images, found.steps) == (1, 4)
    head, *lines = str(found).splitlines()
    assert head.split()[-5:] == ["ACs", "MACs", "MACs", "as", "integers"]
    assert lines[1].split()[-3:] == ["27", "0", "27"]
    assert "a mean of 1 images" in lines[-1]


def test_an_audit_is_data():
    found = of(["residual"])
    data = json.loads(json.dumps(found.to_json()))
    assert data["format"] == "spikezip.audit/1"
    assert [row["input"] for row in data["rows"]] == [row.input for row in found.rows]
    assert data["rows"][0]["acs"] is None
    assert {row.input for row in found.rows} <= set(MEANING)


@pytest.mark.parametrize(("residual", "widest"), [(spikezip.Residual.VANILLA, 1), (spikezip.Residual.RCR, 9)])
def test_resnet20_is_spike_driven_either_way(residual, widest):
    torch.manual_seed(0)
    model = resnet20().eval()
    images = torch.rand(4, 3, 32, 32)
    snn = spikezip.convert(model, images[:1], images, morph=spikezip.Morph(residual=residual), weight_bits=None)
    found = audit(snn)
    assert found.spike_driven
    # Borders: a 3x3 convolution of a 32x32 image, padded, has 94 taps in each direction, not 96.
    assert found.rows[1].synapses == 94 * 94 * 16 * 16
    # Identity shortcuts all the way: what the last block reads is the stem's spikes and those of 8 blocks.
    assert max([1, *(int(r.input[8:]) for r in found.rows if r.input.startswith("streams:"))]) == widest
