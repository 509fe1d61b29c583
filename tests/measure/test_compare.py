"""Where did my accuracy go: the comparison points at the layer that was spoilt, and counts by hand agree."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from random_networks import Drawn, shuffle_statistics
from spikezip.errors import InputError, OutputError, StageError
from spikezip.graph import capture, network
from spikezip.levels import Levels
from spikezip.measure.compare import compare
from spikezip.measure.equivalence import qann_codes
from spikezip.morph import morph
from spikezip.quantize import quantize, to_integer
from spikezip.report import comparison as drawn
from spikezip.run import Engine, reference
from spikezip.spike import Even, spike

IMAGES = torch.randn(12, *Drawn.input_shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def ann():
    return morph(capture(shuffle_statistics(Drawn(["residual", "attention"], outputs=2, seed=1)).eval(), IMAGES[:1]))


@pytest.fixture(scope="module")
def qann(ann):
    return quantize(ann, 8, IMAGES)


def test_counts_by_hand():
    """One layer, weights 1, scale 1, codes 0..3: ANN 0.4, 1.6, 5 and QANN 0, 2, 3."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1))
    model[0].weight.data.fill_(1.0)
    images = torch.tensor([[0.4, 0.0], [1.0, 0.6], [2.0, 3.0]])
    ann = morph(capture(model, images[:1]))
    qann = quantize(ann, 4, images)
    qann.get_submodule("1").scale.data.fill_(1.0)
    (layer,) = compare(ann, qann, images, batch=2).layers
    assert (layer.name, layer.neurons, layer.levels) == ("1", 1, (0,))
    assert layer.l1 == pytest.approx(((0.4 + 0.4 + 2.0) / 3,))
    assert layer.size == pytest.approx((7.0 / 3,))
    assert layer.maximum == pytest.approx((2.0,))
    assert layer.differ == (0.0,)  # the ANN's own codes are the QANN's: nothing was lost but its rounding
    values = torch.tensor([[0.4, 1.6, 5.0], [0.0, 2.0, 3.0]], dtype=torch.float64)
    assert layer.correlation[0] == pytest.approx(float(torch.corrcoef(values)[0, 1]))


def test_ann_beside_qann_finds_every_quantizer(ann, qann):
    found = compare(ann, qann, IMAGES)
    assert found.kind == "ANN–QANN"
    assert found.unmatched == ()
    quantizers = {str(n.target) for n in qann.graph.nodes if n.op == "call_module"}
    assert {layer.name for layer in found.layers} == quantizers
    assert found.layers[0].differ == (0.0,)  # before the first quantizer nothing differs but by rounding
    assert all((layer.correlation[0] or 0) > 0.4 and layer.relative < 0.5 for layer in found.layers)


@pytest.mark.parametrize("spoilt", ["blocks.0.relu", "blocks.1.neuron_2"])
def test_the_spoilt_layer_is_the_first_bad_one(qann, spoilt):
    """A quantizer that saturates: everything before it is untouched, it is the first that differs."""
    worse = network.fork(qann)
    worse.get_submodule(spoilt).scale.data.mul_(0.2)
    found = compare(qann, worse, IMAGES)
    assert found.kind == "QANN–QANN"
    first = found.first_bad()
    assert first is not None
    assert first.name == spoilt
    assert first.levels[0] >= 1
    worst = found.worst()
    assert worst is not None
    assert worst.differ[0] == max(layer.differ[0] for layer in found.layers)
    assert f"{spoilt} <" in str(found)
    assert found.first_bad(1.0) is None


def test_qann_beside_snn_step_by_step(qann):
    snn = spike(qann, Even(2))
    found = compare(qann, snn, IMAGES, steps=6, batch=12)
    assert found.steps == 6
    tracers: dict[tuple[str, int], Tensor] = {}
    reference(snn, (IMAGES,), 6, stop=False, observe=lambda n, t, which, codes: tracers.update({(n, t): codes[0]}))
    codes, _ = qann_codes(snn, (IMAGES,))
    for layer in found.layers:
        scale = float(qann.get_submodule(layer.name).scale.detach())
        for t in range(1, 7):
            away = (tracers[layer.name, t] - codes[layer.name].reshape(tracers[layer.name, t].shape)).abs().double()
            assert layer.differ[t - 1] == pytest.approx(float((away > 0).double().mean()))
            assert layer.l1[t - 1] == pytest.approx(scale * float(away.mean()))
            assert layer.levels[t - 1] == int(away.max())
    assert found.layers[0].differ[0] > 0


def test_a_settled_snn_is_its_qann(qann):
    found = compare(qann, spike(qann), IMAGES)
    assert found.first_bad() is None
    assert all(layer.equal_from is not None and 1 < layer.equal_from <= found.steps for layer in found.layers)
    assert all(output.maximum[-1] == 0.0 and output.agree[-1] == 1.0 for output in found.outputs)


@pytest.mark.parametrize("merged", [False, True], ids=["second", "merged with windows"])
def test_wherever_the_batch_lies(merged):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(0, 1) if merged else x
            x = self.two(torch.relu(self.one(x)))
            return x.reshape(-1, 15) if merged else x.transpose(0, 1)

    torch.manual_seed(0)
    images = torch.rand(6, 5, 4)
    ann = morph(capture(Net(), images[:2]))
    qann = quantize(ann, 8, images)
    found = compare(qann, spike(qann), images, batch=4)
    assert (found.layers[0].l1[-1], found.outputs[0].maximum[-1], found.outputs[0].agree[-1]) == (0, 0, 1)
    assert compare(ann, qann, images, batch=4).layers[0].differ == (0.0,)


def test_more_levels_than_16_bits_hold():
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(8, 4)
    qann = quantize(morph(capture(model, images[:1])), Levels(0, 60000), images)
    assert compare(qann, spike(qann, slew=60000), images).layers[0].levels[-1] == 0


def test_modules_keep_their_modes(qann):
    gm = network.fork(qann).eval()
    module = next(iter(dict(gm.named_children()).values())).train()
    compare(gm, spike(qann), IMAGES[:2])
    assert module.training and not gm.training


def test_integer_codes_stand_for_real_values(ann, qann):
    integer = to_integer(qann)
    found = compare(qann, integer, IMAGES)
    assert all(layer.relative < 0.2 for layer in found.layers)  # though thresholds are 1 in one of them
    beside_ann, plain = compare(ann, integer, IMAGES), compare(ann, qann, IMAGES)
    for whole, real in zip(beside_ann.layers, plain.layers, strict=True):
        assert whole.relative == pytest.approx(real.relative, abs=0.1)
    engines = compare(spike(integer), spike(integer), IMAGES, steps=4, engines=(Engine.EVENT, Engine.SWEEP))
    assert engines.kind == "SNN–SNN"
    assert all(max(layer.differ) == 0 for layer in engines.layers)


def test_integer_networks_of_unlike_levels_in_one_unit(ann, qann):
    """8 levels beside 16: what the integers stand for is as far apart as the real values are."""
    finer = quantize(ann, 16, IMAGES)
    real = compare(qann, finer, IMAGES)
    for a, b in ((to_integer(qann), finer), (qann, to_integer(finer)), (to_integer(qann), to_integer(finer))):
        for whole, plain in zip(compare(a, b, IMAGES).layers, real.layers, strict=True):
            assert whole.size[-1] == pytest.approx(plain.size[-1], rel=0.1)
            assert whole.l1[-1] == pytest.approx(plain.l1[-1], rel=0.5)
            assert whole.maximum[-1] < 2 * plain.maximum[-1]
            assert whole.differ[-1] == pytest.approx(plain.differ[-1], abs=0.25)
    # a's values under b's grid: the first layer's inputs are the same, so only rounding to the coarser one is left
    first = real.layers[0]
    assert first.levels[-1] <= 2


def test_small_values_correlate_as_great_ones_do():
    """Of activations near 1e-7 a correlation was not told; that of a constant is none."""
    torch.manual_seed(0)
    images = torch.rand(40, 3)
    found = {}
    for size in (1.0, 1e-7):
        model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 2))
        with torch.no_grad():
            model[0].weight.copy_(size * torch.linspace(0.1, 1.0, 24).reshape(8, 3))
        ann = morph(capture(model, images[:1]))
        (layer,) = compare(ann, quantize(ann, 8, images), images).layers
        found[size] = layer.correlation[0]
    assert found[1.0] == pytest.approx(found[1e-7], abs=1e-3) and found[1.0] > 0.9
    with torch.no_grad():
        model[0].weight.zero_()
    ann = morph(capture(model, images[:1]))
    qann = quantize(ann, 8)
    assert compare(ann, qann, images).layers[0].correlation == (None,)


def test_two_encodings_differ_on_their_way_and_meet(qann):
    found = compare(spike(qann), spike(qann, Even(4)), IMAGES, steps=30)
    assert max(layer.differ[0] for layer in found.layers) > 0.2
    assert found.first_bad() is None


def test_written_and_drawn(qann, tmp_path):
    found = compare(qann, spike(qann), IMAGES, steps=4)
    path = found.save(tmp_path / "comparison.json")
    content = json.loads(path.read_text())
    assert content["kind"] == "QANN–SNN"
    assert [layer["name"] for layer in content["layers"]] == [layer.name for layer in found.layers]
    with pytest.raises(OutputError, match="exists"):
        found.save(path)
    for each in (content, compare(qann, to_integer(qann), IMAGES).to_json()):
        drawing = drawn(each)
        assert len(drawing.data.rows) == len(each["layers"]) * len(each["layers"][0]["differ"])
        assert drawing.figure.axes


def test_what_is_refused(ann, qann):
    with pytest.raises(StageError, match="Two ANNs"):
        compare(ann, ann, IMAGES)
    with pytest.raises(InputError, match="shape"):
        compare(ann, qann, IMAGES[:, :1])
    other = nn.Sequential(nn.Flatten(), nn.Linear(50, 4), nn.ReLU(), nn.Linear(4, 2))
    stranger = quantize(morph(capture(other, IMAGES[:1])), 8, IMAGES)
    with pytest.raises(StageError, match="share no layer"):
        compare(stranger, qann, IMAGES)
    small = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(StageError, match="different inputs"):
        compare(quantize(morph(capture(small, torch.zeros(1, 3))), 8, torch.randn(9, 3)), qann, IMAGES)
