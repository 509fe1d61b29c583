"""From QANN to SNN: the contract is checked node by node; encodings."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from spikezip.errors import StageError
from spikezip.graph import Stage, capture, info, network, rewrite
from spikezip.measure import verify
from spikezip.quantize import Quantizer, quantize, to_integer
from spikezip.run import Engine
from spikezip.spike import Constant, Even, Pulse, Shares, check_qann, encoding_text, parse_encoding, spike


@pytest.fixture(scope="module")
def ann():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    return capture(model, torch.zeros(1, 3))


@pytest.fixture
def qann(ann):
    return quantize(ann, 4, torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))


def _with(qann, name: str, **values: float):
    for key, value in values.items():
        getattr(qann.get_submodule(name), key).data.fill_(value)
    return qann


# -- the swap ---------------------------------------------------------------------------------------------------------


def test_each_quantizer_becomes_a_layer_of_neurons(qann):
    snn = spike(qann, slew=2)
    assert [name for name, _ in snn.layers] == ["1", "3.neuron"]
    for (_, neuron), (_, quantizer) in zip(snn.layers, network.modules_of(qann, Quantizer), strict=True):
        assert (neuron.levels, neuron.slew) == (quantizer.levels, 2)
        assert torch.equal(neuron.threshold, quantizer.scale)
    assert (info(snn.graph).stage, info(qann).stage) == (Stage.SNN, Stage.QANN)
    assert not any(p.requires_grad for p in snn.graph.parameters())
    assert all(p.requires_grad for p in qann.parameters()), "the QANN is left trainable"


def test_tracers_start_at_one_code_where_codes_are_not_negative(qann):
    snn = spike(qann, initial_code=2)
    assert [(n.levels.lowest < 0, n.initial_code) for _, n in snn.layers] == [(False, 2), (True, 0)]
    assert snn.initial_code == 2
    assert [n.initial_code for _, n in spike(qann, initial_code=3).layers] == [3, 0]
    with pytest.raises(StageError, match=r"initial_code=4 is above all codes of layers without .*; the highest is 3"):
        spike(qann, initial_code=4)


def test_a_layer_of_fewer_codes_starts_at_its_highest():
    images = torch.rand(16, 4)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    qann = quantize(capture(model, images[:1]), 8, images, layer_levels={"3": 2})
    assert [n.initial_code for _, n in spike(qann, initial_code=5).layers] == [5, 1]


@pytest.mark.parametrize("code", [-1, 0.5, True])
def test_initial_codes_are_whole_numbers(qann, code):
    with pytest.raises(StageError, match="a whole number, 0 or more"):
        spike(qann, initial_code=code)


def test_it_is_copied_but_not_pickled(qann):
    snn = spike(qann)
    images = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    wanted = snn.qann(images)
    for other in (copy.copy(snn), copy.deepcopy(snn)):
        assert type(other) is type(snn)
        assert torch.equal(other.qann(images), wanted)
    assert copy.deepcopy(snn).graph is not snn.graph
    for write in (pickle.dumps, lambda network: torch.save(network, io.BytesIO())):
        with pytest.raises(StageError, match=r"Use snn.save\(path\) and spikezip.load\(path\)"):
            write(snn)


def test_the_snn_carries_its_qann(qann):
    images = torch.randn(5, 3)
    assert torch.equal(spike(qann).qann(images), qann(images))


@pytest.mark.parametrize(("slew", "bound"), [(1, 2 + 2), (2, 1 + 1), (3, 0), (99, 0)])
def test_bound_adds_up_along_the_longest_path(qann, slew, bound):
    """Codes 0..3 and -2..1: ``ceil(3 / slew) - 1`` steps beyond the first each."""
    assert spike(qann, slew=slew).bound == bound


def test_uncalibrated_is_refused(ann):
    with pytest.raises(StageError, match=r"quantizer '1' has no scale yet. Call calibrate\(qann, data\)"):
        spike(quantize(ann, 4))


@pytest.mark.parametrize("scale", [0.0, -0.5, math.nan, math.inf])
def test_a_threshold_must_be_positive_and_finite(qann, scale):
    with pytest.raises(StageError, match=r"scale of '3\.neuron' is .*positive and finite.*calibrate\(\) again"):
        spike(_with(qann, "3.neuron", scale=scale))


def test_a_relu_left_is_named(qann):
    with qann.graph.inserting_after(node := next(n for n in qann.graph.nodes if n.target == "1")):
        relu = qann.graph.call_function(torch.ops.aten.relu.default, (node,))
    relu.meta = {"origin": "layer2.0.relu", "spec": node.meta["spec"]}
    next(u for u in node.users if u is not relu).replace_input_with(node, relu)
    with pytest.raises(StageError, match=r"'layer2\.0\.relu' \(relu\) is a ReLU.*Call quantize\(\) before spike\(\)"):
        check_qann(qann)


class Features(nn.Module):
    """Answers, and the features they come from."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.b(torch.relu(self.a(x))))
        return self.c(features), features


def test_a_relu_that_is_returned_may_stay():
    torch.manual_seed(0)
    images = torch.randn(20, 3)
    snn = spike(to_integer(quantize(capture(Features(), images), 8, images)))
    assert [name for name, _ in snn.layers] == ["relu", "relu_1"]
    assert all(verify(snn, images, engine=engine).equal for engine in Engine)


def test_an_analog_operand_is_named(qann):
    neuron = next(n for n in qann.graph.nodes if n.target == "3.neuron")
    rewrite.replace(neuron, neuron.args[0])
    with pytest.raises(
        StageError, match=r"'4' \(linear\) would receive the analog value of '3' \(layer_norm\).*strict=True"
    ):
        check_qann(qann)


def test_analog_operands_are_allowed_where_asked_for(ann):
    snn = spike(quantize(ann, 4, torch.randn(20, 3), strict=False))
    assert [name for name, _ in snn.layers] == ["1"]


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.ReLU())])
def test_a_network_without_neurons_is_refused(model):
    images = torch.randn(4, 3)
    with pytest.raises(StageError, match=r"no neuron can be placed.*at the outputs alone.*call quantize\(\) before"):
        spike(quantize(capture(model, images), 4, images))


def test_stages_out_of_order(ann, qann):
    with pytest.raises(StageError, match=r"spike\(\) takes a QANN, but was given an ANN. Call quantize\(\) before"):
        spike(ann)
    with pytest.raises(StageError, match=r"spike\(\) takes a QANN, but was given an SNN"):
        spike(spike(qann).graph)


# -- encodings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [Pulse(), Even(1), Even(3), Even(7), Constant(), Shares((1, 3, 4))])
@pytest.mark.parametrize("steps", [7, 12, 49])
def test_shares_grow_to_exactly_one_and_stay(encoding, steps):
    shares = [encoding.share(t, steps) for t in range(1, steps + 5)]
    t_off = encoding.t_off(steps)
    assert shares == sorted(shares)
    assert 0 < shares[0] <= 1
    assert all(s == 1.0 for s in shares[t_off - 1 :])
    assert all(s < 1.0 for s in shares[: t_off - 1])


@pytest.mark.parametrize("encoding", [Pulse(), Even(1), Even(8), Constant(), Shares((3, 0, 4)), Shares((1,))])
def test_encodings_as_text(encoding):
    assert parse_encoding(encoding_text(encoding)) == encoding


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Pulse",
        "even",
        "even:",
        "even:0",
        "even:²",
        f"even:{'9' * 5000}",
        "shares:²",
        "even:-1",
        "even:2.5",
        "pulse:3",
        "constant:1",
        "shares:",
        "shares:1/-1/4",
    ],
)
def test_text_that_is_no_encoding(text):
    with pytest.raises(StageError, match=r"There is no encoding .*even:8"):
        parse_encoding(text)


def test_text_is_no_encoding_yet(qann):
    for given in ({"encoding": "even:4"}, {"bias_encoding": "pulse"}):
        with pytest.raises(StageError, match=r"is no encoding; give Pulse\(\)"):
            spike(qann, **given)


class Endless:
    """Shares, and nothing that says when they are complete."""

    name = "endless"

    def share(self, t: int, steps: int) -> float:
        return 1.0


class Listed(Endless):
    """Numbers where functions of the step are wanted."""

    share, t_off = (0.5, 1.0), 2


@pytest.mark.parametrize("given", [Pulse, Even, Endless(), Endless, Listed()])
def test_a_class_or_half_an_encoding_is_none(qann, given):
    for wrong in ({"encoding": given}, {"bias_encoding": given}):
        with pytest.raises(StageError, match="with name, share and t_off"):
            spike(qann, **wrong)


def test_shares_may_fall_but_must_complete():
    falls = Shares((3, 1, 4, 4))
    assert [falls.share(t, 9) for t in range(1, 7)] == [0.75, 0.25, 1.0, 1.0, 1.0, 1.0]
    assert falls.t_off(9) == 3
    assert Shares((4, 2, 4)).t_off(9) == 3, "what is taken back has not arrived"
    for wrong in ((), (1, 3), (5, 4), (-1, 4), (0,), (True, 2), (1, 1 << 13)):
        with pytest.raises(StageError, match="none above the last, which is a power of two"):
            Shares(wrong)


@pytest.mark.parametrize("release", [0, -1, 2.5, True])
def test_a_release_lasts_whole_steps(release):
    with pytest.raises(StageError, match="whole number of steps"):
        Even(release)
