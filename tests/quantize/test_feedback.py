"""Weights that make up for one another's rounding."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, fx, nn

from random_networks import Drawn, shuffle_statistics
from spikezip import capture, convert, morph, quantize, to_integer, verify
from spikezip.errors import CalibrationError
from spikezip.graph import network, ops
from spikezip.quantize import feedback
from spikezip.quantize.averages import spell_averages
from spikezip.quantize.grid import channels_first
from spikezip.quantize.units import Units, nearest


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Every way of seeing an input that is rounded in order, and one that is not (transposed)."""

    def __init__(self):
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, groups=8)
        self.grouped, self.wider = nn.Conv2d(8, 12, 1, groups=2), nn.ConvTranspose2d(12, 6, 2)
        self.hidden, self.matrix = nn.Linear(6, 16), nn.Parameter(torch.randn(16, 5) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.depthwise(x))
        x = torch.relu(self.grouped(x))
        x = torch.relu(self.wider(x))
        return torch.relu(self.hidden(x.mean((2, 3)))) @ self.matrix


def alike(count: int, *, seed: int) -> Tensor:
    """Images whose channels and pixels go together."""
    whole, channels = drawn(count, 1, 1, 1, seed=seed), drawn(count, 3, 1, 1, seed=seed + 1)
    return whole + channels + drawn(count, 3, 6, 6, seed=seed + 2) / 2


@pytest.fixture(scope="module")
def qann() -> fx.GraphModule:
    torch.manual_seed(0)
    return quantize(morph(capture(Net().eval(), alike(1, seed=9))), 16, alike(256, seed=0))


@torch.no_grad()
def _error(found: fx.GraphModule, wanted: fx.GraphModule, images: Tensor) -> float:
    return float((found(images) - wanted(images)).square().mean())


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_few_bits_lose_less_on_images_never_seen(qann: fx.GraphModule, bits: int):
    unseen = alike(256, seed=5)
    nearest, fed = (_error(to_integer(qann, bits, calibration=c), qann, unseen) for c in (None, alike(256, seed=0)))
    assert fed < 0.6 * nearest


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_weights_stay_on_the_grid_of_their_bits(qann: fx.GraphModule, bits: int):
    plain, fed = (to_integer(qann, bits, calibration=c) for c in (None, alike(64, seed=0)))
    trial = network.fork(qann)
    spell_averages(trial)
    units = Units(trial, bits, keep=True)
    units.run()
    assert len(units.rounded) == 6
    nodes = {n.name: [n] for n in plain.graph.nodes}
    for n in fed.graph.nodes:
        nodes[n.name].append(n)
    changed = 0
    for node, before in units.rounded.items():
        was, now = (network.constant(ops.weight_of(n)) for n in nodes[node.name])
        steps = before.step.reshape(-1, *[1] * (before.weight.dim() - 1))
        codes = channels_first(node, now.double()) / steps
        assert torch.equal(codes, codes.round())
        assert float(codes.abs().max()) <= 2 ** (bits - 1) - 1
        if network.op_name(node) == "conv_transpose2d":  # its windows are not written out
            assert torch.equal(was, now)
        changed += int((was != now).sum())
        if before.bias is not None:
            bias = network.constant(nodes[node.name][1].args[ops.bias_index(node)]).double() / before.fine
            assert torch.equal(bias, bias.round())
    assert (changed > 0) is (bits < 16)  # nothing is left to gain there


def test_each_is_rounded_as_if_those_after_it_were_free():
    """Two weights whose inputs are one: what the first loses the second takes whole, whatever the block's size."""
    products = torch.tensor([[[1.0, 1.0], [1.0, 1.0 + 1e-9]]], dtype=torch.float64) * 100
    exact = torch.tensor([[[0.4, 0.4], [1.3, 1.3]]], dtype=torch.float64)
    steps, most = torch.ones_like(exact), torch.full_like(exact, 7.0)
    assert nearest(exact, steps, most).sum(-1).tolist() == [[0.0, 2.0]]
    assert feedback._in_order(exact, steps, most, products).sum(-1).tolist() == [[1.0, 3.0]]


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch):
    inputs = drawn(400, 2, 30).double().cumsum(-1)
    products = torch.einsum("igm,ign->gmn", inputs, inputs)
    exact = drawn(2, 5, 30, seed=1).double()
    steps, most = torch.full_like(exact, 0.25), torch.full_like(exact, 7.0)
    whole = feedback._in_order(exact, steps, most, products)
    monkeypatch.setattr(feedback, "_BLOCK", 7)
    assert torch.equal(feedback._in_order(exact, steps, most, products), whole)


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_images_to_judge_by_change_nothing(qann: fx.GraphModule, count: int):
    plain, fed = (dict(to_integer(qann, 4, calibration=c).named_parameters()) for c in (None, alike(count, seed=0)))
    assert all(torch.equal(plain[name], fed[name]) for name in plain)


def test_layers_too_wide_are_rounded_as_before(qann: fx.GraphModule, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feedback, "_WIDEST", 5)
    plain, fed = (dict(to_integer(qann, 4, calibration=c).named_parameters()) for c in (None, alike(64, seed=0)))
    assert {n for n in plain if not torch.equal(plain[n], fed[n])} <= {n for n in plain if n.startswith("grouped")}


def test_no_images_are_refused(qann: fx.GraphModule):
    with pytest.raises(CalibrationError, match="empty"):
        to_integer(qann, 4, calibration=[])


@pytest.mark.filterwarnings("ignore:Weights of 4 bits change")
@pytest.mark.parametrize("seed", range(4))
def test_what_is_rounded_in_order_is_still_equal(seed: int):
    model = shuffle_statistics(
        Drawn(["attention", "branches", "functions"][: 1 + seed % 3], outputs=2, seed=seed)
    ).eval()
    images = drawn(16, *Drawn.input_shape, seed=seed)
    snn = convert(model, images[:1], images, levels=5, weight_bits=4)
    verify(snn, images).require()


def test_what_takes_the_answers_further_away_is_left(qann: fx.GraphModule, monkeypatch: pytest.MonkeyPatch):
    spoilt = []

    def spoil(_: fx.GraphModule, rounded: dict[fx.Node, object], *__: object) -> None:
        for node in rounded:
            index = ops.bias_index(node)
            for constant in (ops.weight_of(node), node.args[index] if index is not None else None):
                if constant is not None:
                    spoilt.append(network.constant(constant).neg_())

    monkeypatch.setattr(sys.modules["spikezip.quantize.integer"], "feed_back", spoil)
    plain, fed = (dict(to_integer(qann, 4, calibration=c).named_parameters()) for c in (None, alike(64, seed=0)))
    assert all(torch.equal(plain[name], fed[name]) for name in plain)
    assert len(spoilt) > 4
