"""What each synaptic operation receives, and what it would cost to read it otherwise."""

from __future__ import annotations

import json

import pytest
import torch
from hand_networks import Copies, image, spiking
from torch import Tensor, nn

import spikezip
from random_networks import Drawn, shuffle_statistics
from spikezip.measure.audit import MEANING, Audit, audit
from spikezip.models.cifar_resnet import resnet20


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
