"""Quantizing: neurons where spikes must arise, named after their places; scales from data; what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spikezip
from random_networks import BLOCKS, Drawn, shuffle_statistics
from spikezip.errors import CalibrationError, InputError, StageError, UnknownNameError
from spikezip.graph import Stage, capture, info, network, ops
from spikezip.graph.ops import Kind
from spikezip.levels import Levels
from spikezip.morph import morph
from spikezip.quantize import Quantizer, calibrate, quantize
from spikezip.quantize.calibrate import best_scale
from spikezip.quantize.place import Carrier, Carriers


def quantizers(qann) -> dict[str, Quantizer]:
    return {str(node.target): module for node, module in network.modules_of(qann, Quantizer)}


@pytest.fixture(scope="module")
def drawn():
    """One network with every kind of block, morphed, and images."""
    model = shuffle_statistics(Drawn(list(BLOCKS)))
    images = torch.randn(6, *Drawn.input_shape, generator=torch.Generator().manual_seed(0))
    return morph(capture(model, images)), images


@pytest.fixture(scope="module")
def chain():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
    return morph(capture(model, torch.zeros(1, 2, 5, 5)))


# -- where ------------------------------------------------------------------------------------------------------------


def test_every_synaptic_operation_receives_spikes_except_the_first(drawn):
    ann, images = drawn
    qann = quantize(ann, 8, images)
    carriers = Carriers(qann, Quantizer)
    received = [
        carriers[operand]
        for node in qann.graph.nodes
        if node.op == "call_function" and "spec" in node.meta and ops.kind(node) is Kind.SYNAPTIC
        for operand in ops.data_operands(node)
    ]
    assert received[0] is Carrier.INPUT
    assert set(received[1:]) == {Carrier.SPIKES}
    assert len(received) > 20


def test_relu_is_contained_and_other_activations_stay(drawn):
    ann, images = drawn
    qann = quantize(ann, 8, images)
    operations = [network.op_name(n) for n in qann.graph.nodes if n.op == "call_function"]
    assert "relu" not in operations
    assert {"silu", "sigmoid", "hardtanh"} <= set(operations)


def test_no_more_neurons_than_activations_in_a_chain(chain):
    assert list(quantizers(quantize(chain, 8))) == ["1", "3"]


@pytest.mark.parametrize(
    "carry",
    [
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda x: torch.stack(x.unbind(1), 1),
        lambda x: F.max_pool2d(x, 2, 1, 1)[:, :, :3, :3],
        lambda x: F.avg_pool2d(x, 3, 1, 1) + 2 * x - x.flip(1),
        lambda x: x * x.mean((2, 3), keepdim=True),
    ],
    ids=["chunk", "unbind", "max", "average, sum", "product"],
)
def test_what_hands_spikes_on_needs_no_neuron(carry):
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(carry(F.relu(self.a(x))))

    qann = quantize(capture(Between(), torch.zeros(1, 2, 3, 3)), 8)
    assert list(quantizers(qann)) == ["relu"]


def test_names_are_the_authors(drawn):
    names = set(quantizers(quantize(drawn[0], 8)))
    assert {"blocks.1.relu", "blocks.1.relu_2", "blocks.3.act", "blocks.3.act_2"} <= names
    # A layer's own name holds its weights: the neuron behind it is named after it.
    assert "blocks.7.norm.neuron" in names


def test_negative_codes_leave_a_relu_a_relu():
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)), torch.randn(64, 4)
    qann = quantize(capture(model, images[:1]), Levels(-40, 40), images)
    assert torch.allclose(qann(images), model(images), atol=0.1)


def test_levels_of_single_layers():
    torch.manual_seed(0)
    images = torch.randn(64, 4)
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 3))
    ann = capture(model, images[:1])
    plain = quantize(ann, 4, images)
    qann = quantize(ann, 4, images, layer_levels={"3": 16, "1": Levels(0, 9)})
    assert [m.levels for m in quantizers(qann).values()] == [Levels(0, 9), Levels(-8, 7)]
    away = lambda q: float((q(images) - model(images)).detach().square().mean())  # noqa: E731
    assert away(qann) < away(plain) / 2, "and the scales were found for them"
    snn = spikezip.convert(model, images[:1], images, levels=4, layer_levels={"1": 9})
    assert dict(snn.layers)["1"].levels == Levels(0, 8)
    assert spikezip.verify(snn, images).equal
    for given, error, said in (
        ({"l": 4}, UnknownNameError, "no quantizer 'l'.*Known: 1, 3"),
        ({"1": 1}, StageError, "levels=1 leaves nothing"),
        ({"1": Levels(-4, 3)}, StageError, "where no value is negative.*Levels\\(0, 3\\)"),
        ([4, 4], StageError, "layer_levels is a list"),
    ):
        with pytest.raises(error, match=said):
            quantize(ann, 4, layer_levels=given)
    with pytest.raises(StageError, match="layer_levels="):
        quantize(ann, {"1": 4})


def test_levels_by_sign():
    model = nn.Sequential(
        nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 1)
    )
    ann = capture(model, torch.zeros(1, 2))

    def found(*args, **kwargs):
        return [m.levels for m in quantizers(quantize(ann, *args, **kwargs)).values()]

    assert found(8) == [Levels(0, 7), Levels(-4, 3), Levels(0, 7)]
    assert found(5) == [Levels(0, 4), Levels(-2, 2), Levels(0, 4)]
    assert found(Levels(0, 8)) == [Levels(0, 8), Levels(-4, 4), Levels(0, 8)]
    assert found(Levels(-2, 9)) == [Levels(0, 9), Levels(-2, 9), Levels(0, 9)], "a ReLU gives nothing negative"
    assert found(Levels(-2, 0)) == [Levels(0, 1), Levels(-2, 0), Levels(0, 1)]
    assert found(4, signed_levels=Levels(-7, 7)) == [Levels(0, 3), Levels(-7, 7), Levels(0, 3)]


@pytest.mark.parametrize(
    ("join", "negative"),
    [
        (lambda y: y.masked_fill(torch.tensor([True, False, False]), -1.0), True),
        (lambda y: y.masked_fill(torch.tensor([True, False, False]), 1.0), False),
        (lambda y: F.pad(y, (0, 1), value=-1.0)[:, 1:], True),
        (lambda y: F.pad(y, (0, 1))[:, 1:], False),
        (lambda y: torch.stack([y, torch.tensor([[-1.0, 0.0, 1.0]]).expand(y.shape[0], -1)], 1), True),
        (lambda y: torch.cat([y, y.square(), torch.ones(1, 3).expand(y.shape[0], -1)], 1)[:, 1::3], False),
        (lambda y: F.interpolate(y[:, None, None], scale_factor=2, mode="bicubic")[:, 0, 0, :3], True),
    ],
    ids=["masked", "masked, 1", "padded", "padded, 0", "stacked", "joined", "bicubic"],
)
def test_what_is_put_in_may_be_negative(join, negative):
    class TwoReaders(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = join(self.a(x).abs())
            return self.b(y), self.c(y)

    (quantizer,) = quantizers(quantize(morph(capture(TwoReaders(), torch.zeros(1, 2))), 8)).values()
    assert (quantizer.levels.lowest < 0) is negative


@pytest.mark.parametrize(
    "divide",
    [
        lambda h, top: h / top,
        lambda h, top: h * (127 / top),
        lambda h, top: h / (top.unsqueeze(-1) / 127).squeeze(-1),
        lambda h, top: h * top.rsqrt(),
        lambda h, top: h / top.sqrt(),
    ],
    ids=["divided by", "reciprocal", "scaled", "rsqrt", "sqrt"],
)
def test_what_only_divides_stays_as_it_is(divide):
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.a(x))
            return self.b(divide(h, h.amax(-1, keepdim=True).clamp(min=1e-5)))

    qann = quantize(morph(capture(Normalised(), torch.zeros(1, 2))), 8)
    assert not [name for name in quantizers(qann) if name.startswith("clamp")]


_MOST = torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    ("act", "neurons"),
    [
        (lambda y: y.clamp(min=-_MOST).softmax(-1), 1),
        (lambda y: (y.clamp(-8, 8).unsqueeze(1) / 2 + y[:, None]).softmax(-1).squeeze(1), 1),
        (lambda y: y.clamp(min=0).softmax(-1), 2),
        (lambda y: y.clamp(-1, 1).amax(-1, keepdim=True).exp(), 2),
        (lambda y: y.clamp(-1, 1), 1),
    ],
    ids=["softmax", "scaled, added", "ReLU", "maximum", "synapse"],
)
def test_a_clamp_before_a_function_has_no_neuron(act, neurons):
    class Limited(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.LazyLinear(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(act(self.a(x)))

    model = Limited()
    model(torch.zeros(1, 2))
    assert len(quantizers(quantize(morph(capture(model, torch.zeros(1, 2))), 8))) == neurons


def test_not_strict_leaves_analog_operands():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    ann = capture(model, torch.zeros(1, 4))
    assert len(quantizers(quantize(ann, 8))) == 2
    assert len(quantizers(quantize(ann, 8, strict=False))) == 1


def test_an_activation_of_a_stored_tensor_is_a_constant():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.gate = nn.Linear(2, 3), nn.Linear(3, 2), nn.Parameter(torch.rand(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)) * F.relu(self.gate))

    assert len(quantizers(quantize(capture(Gated(), torch.zeros(1, 2)), 8))) == 1


# -- stages -----------------------------------------------------------------------------------------------------------


def test_a_new_trainable_network(chain):
    nodes = [str(n.target) for n in chain.graph.nodes]
    qann = quantize(chain, 8, torch.randn(5, 2, 5, 5))
    assert [str(n.target) for n in chain.graph.nodes] == nodes
    assert (info(chain).stage, info(qann).stage) == (Stage.ANN, Stage.QANN)
    qann(torch.randn(3, 2, 5, 5)).square().sum().backward()
    assert all(p.grad is not None for p in qann.parameters())
    assert all(p.grad is None for p in chain.parameters())


def test_stages_out_of_order(chain):
    qann = quantize(chain, 8)
    with pytest.raises(StageError, match=r"quantize\(\) takes an ANN, but was given a QANN. Call capture\(\) before"):
        quantize(qann, 8)
    with pytest.raises(StageError, match=r"morph\(\) takes an ANN, but was given a QANN"):
        morph(qann)
    with pytest.raises(StageError, match=r"did not come from spikezip. Call spikezip\.capture"):
        quantize(nn.Linear(2, 2), 8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (1, "at least 2"),
        (0, "at least 2"),
        (True, "is a bool"),
        ("8", "is a str"),
        (8.0, "is a float"),
        (None, "is a NoneType"),
    ],
)
def test_levels_that_are_none(chain, levels, message):
    with pytest.raises(StageError, match=message):
        quantize(chain, levels)


@pytest.mark.parametrize("pair", [(1, 7), (-4, -1), (0, 0), (3, 2)])
def test_levels_must_hold_zero_and_one_more(pair):
    with pytest.raises(StageError, match=rf"levels {pair[0]}\.\.{pair[1]} are not admissible.*Levels\(0, 7\)"):
        Levels(*pair)


# -- scales -----------------------------------------------------------------------------------------------------------


def test_calibration_takes_tensors_batches_and_pairs(chain):
    images = torch.randn(70, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    batches = [images[:64], images[64:]]

    def scales(data):
        qann = quantize(chain, 8, data)
        assert all(bool(q.calibrated) for q in quantizers(qann).values())
        return [float(q.scale.detach()) for q in quantizers(qann).values()]

    expected = scales(images)
    assert scales(batches) == expected
    assert scales(iter(batches)) == expected
    assert scales([(b, torch.zeros(len(b))) for b in batches]) == expected
    assert all(s > 0 for s in expected)


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x + y.sum(1, keepdim=True)) * 2


def test_calibration_of_several_inputs_takes_them_as_they_are_or_batches_of_them():
    x, y = torch.rand(6, 3), torch.rand(6, 2)
    ann = morph(capture(TwoInputs(), (x[:1], y[:1])))
    scales = [
        [float(q.scale.detach()) for q in quantizers(quantize(ann, 8, data)).values()]
        for data in ((x, y), [x, y], [(x, y)], [(x[:3], y[:3], "labels"), (x[3:], y[3:], "labels")])
    ]
    assert all(each == scales[0] for each in scales)
    for data in ((x,), x, [(x,)]):
        with pytest.raises(InputError, match="has 1 inputs; the network takes 2"):
            quantize(ann, 8, data)
    for data in ((x, torch.rand(200, 2)), (x[:1], y)):
        with pytest.raises(InputError, match=r"inputs have different batch sizes: \[[61], (200|6)\]"):
            quantize(ann, 8, data)


def test_calibration_with_a_mask_of_truth_values():
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return F.relu(x) * mask[:, None]

    data = (torch.randn(9, 2), torch.arange(9) > 3)
    qann = quantize(capture(Masked(), tuple(x[:1] for x in data)), 8, data)
    assert dict(info(qann).notes)["input_range"] == [float(data[0].abs().max()), 1.0]


def test_calibrating_again_follows_the_new_data(chain):
    images = torch.randn(20, 2, 5, 5)
    qann = quantize(chain, 8, images)
    before = float(quantizers(qann)["1"].scale.detach())
    calibrate(qann, 100 * images)
    assert float(quantizers(qann)["1"].scale.detach()) > 10 * before


@pytest.mark.parametrize("levels", [Levels(0, 7), Levels(-4, 3), Levels(0, 1), Levels(-3, 0)])
def test_best_scale_is_no_worse_than_any_other(levels):
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))

    def error(scale: float) -> float:
        target = values.clamp(min=0) if levels.lowest == 0 else values
        return float((levels.codes(values, scale) * scale - target).square().mean())

    found = best_scale(values, levels)
    assert error(found) <= 1.002 * min(error(s) for s in torch.linspace(0.02, 4, 400).tolist())


def test_silent_layer_has_a_scale():
    assert best_scale(-torch.rand(5), Levels(0, 7)) == 1.0


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], CalibrationError, "calibration set is empty.*few hundred"),
        ([torch.zeros(0, 2, 5, 5)], CalibrationError, "is empty"),
        (torch.full((2, 2, 5, 5), float("nan")), InputError, "calibration data holds NaN"),
        (torch.zeros(2, 3, 5, 5), InputError, r"shape \(2, 3, 5, 5\); this network takes \[B, 2, 5, 5\]"),
        (torch.zeros(2, 2, 5, 5).double(), InputError, "float64; this network takes torch.float32"),
        ([[1.0]], InputError, "is a float"),
    ],
)
def test_unusable_calibration_data(chain, data, error, message):
    with pytest.raises(error, match=message):
        quantize(chain, 8, data)


def test_a_network_that_overflows_names_the_layer(chain):
    ann = network.fork(chain)
    ann.get_parameter("0.weight").data.fill_(1e38)
    with pytest.raises(CalibrationError, match=r"input of '1' is not finite.*Check the normalisation"):
        quantize(ann, 8, torch.full((2, 2, 5, 5), 10.0))


def test_options_that_are_none(chain):
    with pytest.raises(StageError, match="refit='no': give True, False, or None"):
        quantize(chain, refit="no")
