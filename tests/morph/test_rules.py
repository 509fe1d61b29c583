"""Each rewriting rule: keeps the function where it says so, applies once, leaves what it is given alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_networks import BLOCKS, Drawn, shuffle_statistics
from spikezip.errors import StageError
from spikezip.graph import capture, info, network, origin
from spikezip.levels import Levels
from spikezip.measure import verify
from spikezip.models import PaddedShortcut
from spikezip.morph import RULES, Activation, Morph, Pooling, Residual, morph
from spikezip.quantize import quantize, to_integer
from spikezip.run import Engine
from spikezip.spike import spike

EVERYTHING = Morph(Pooling.AVERAGE, Activation.RELU, Residual.RCR)


def operations(gm) -> list[str]:
    return [network.op_name(n) for n in gm.graph.nodes if n.op == "call_function"]


@pytest.fixture(scope="module")
def drawn():
    """One network with every kind of block, captured in float64, and images."""
    model = shuffle_statistics(Drawn(list(BLOCKS))).double().eval()
    images = torch.randn(2, *Drawn.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return capture(model, images), images


@pytest.mark.parametrize("choice", [Morph(), EVERYTHING], ids=["default", "everything"])
def test_twice_is_once(drawn, choice):
    ann, images = drawn
    once = morph(ann, choice)
    twice = morph(once, choice)
    assert operations(twice) == operations(once)
    assert torch.equal(twice(images), once(images))
    assert dict(info(twice).notes)["morphed"] == dict(info(once).notes)["morphed"]


class Computed(nn.Module):
    """A weight computed from a weight, and products added to what the input gives, with factors."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5, generator=torch.Generator().manual_seed(4)))

    def forward(self, x: Tensor) -> Tensor:
        rows = F.linear(x.flatten(2), torch.cat([self.weight, 2 * self.weight.t()], 1).sum(1).diag())
        product = torch.baddbmm(rows, rows, rows.transpose(1, 2) @ rows, beta=0.5, alpha=2.0)
        return torch.addmm(product[:, 0], product[:, 1], self.weight, alpha=0.3)


@pytest.fixture(scope="module")
def computed():
    images = torch.randn(2, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return capture(Computed().double(), images), images


def test_rules_that_keep_the_function_keep_it(drawn, computed):
    for rule in RULES:
        if rule.keeps:
            ann, images = computed if rule.name in ("fold constants", "spell fused sums") else drawn
            new = network.fork(ann)
            assert rule.apply(new) > 0, rule.name
            torch.testing.assert_close(new(images), ann(images), rtol=1e-12, atol=1e-12)


def test_what_weights_are_computed_from_weights_learns(computed):
    ann, _ = computed
    folded = morph(ann)
    (layer,) = [n for n in folded.graph.nodes if network.op_name(n) == "linear"]
    assert isinstance(network.constant(layer.args[1]), nn.Parameter)
    assert network.constant(layer.args[1]).requires_grad
    frozen = morph(network.fork(ann).requires_grad_(False))
    weights = dict(frozen.named_parameters())
    assert weights.keys() == dict(folded.named_parameters()).keys()
    assert not any(p.requires_grad for p in weights.values()), "of frozen weights, frozen ones"


def test_a_weight_computed_in_many_steps_is_folded_at_once():
    class Orthogonal(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(3))

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight / self.weight.norm()
            for _ in range(12):  # Björck and Bowie, 1971: three times as many paths to the weight each time
                weight = 1.5 * weight - 0.5 * weight @ weight.t() @ weight
            return F.linear(x, weight)

    assert operations(morph(capture(Orthogonal(), torch.zeros(1, 3)))) == ["linear"]


def test_what_is_computed_from_what_was_computed_is_folded():
    class InTwoSteps(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            once = self.mask * 2  # read in forward, and by the next
            return torch.relu(x * once) + (once + 1)

    assert operations(morph(capture(InTwoSteps(), torch.zeros(1, 3)))) == ["mul", "relu", "add"]


def test_what_is_given_is_not_changed(drawn):
    ann, images = drawn
    before, nodes = ann(images), operations(ann)
    morph(ann, EVERYTHING)
    assert operations(ann) == nodes
    assert torch.equal(ann(images), before)


# -- attention --------------------------------------------------------------------------------------------------------

_FLOAT_MASK = torch.linspace(-2, 2, 12).reshape(3, 4).double()
_BOOL_MASK = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 0, 0]]).bool()
_HIDDEN_ROW = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()


class Attends(nn.Module):
    def __init__(self, mask: Tensor | None = None, above: float | None = None, **options):
        super().__init__()
        self.register_buffer("mask", mask)
        self.above, self.options = above, options

    def forward(self, q: Tensor, kv: Tensor) -> Tensor:
        mask = self.mask if self.above is None else q @ kv.transpose(-2, -1) > self.above
        return F.scaled_dot_product_attention(q, kv, 2 * kv + 1, attn_mask=mask, **self.options)


@pytest.mark.parametrize(
    "model",
    [
        Attends(),
        Attends(scale=0.3),
        Attends(is_causal=True),
        Attends(_FLOAT_MASK, scale=1.7),
        Attends(_BOOL_MASK),
        Attends(above=-1.0),
        Attends(_HIDDEN_ROW),
        Attends(_FLOAT_MASK.masked_fill(~_HIDDEN_ROW, -math.inf)),
        Attends(above=2.0),
    ],
    ids=[
        *("plain", "scale", "causal", "float mask", "bool mask", "mask from the signal"),
        *("hidden row", "hidden row, floats", "hidden row from the signal"),
    ],
)
def test_attention_spelled_out_is_torchs(model):
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(2, 5, 3, 6, dtype=torch.float64, generator=generator)
    kv = torch.randn(2, 5, 4, 6, dtype=torch.float64, generator=generator)
    spelled = morph(capture(model, (q, kv)))
    assert "scaled_dot_product_attention" not in operations(spelled)
    assert operations(spelled).count("softmax") == 1
    torch.testing.assert_close(spelled(q, kv), model(q, kv), rtol=1e-12, atol=1e-12)


class AttendsTwice(nn.Module):
    def forward(self, q: Tensor, kv: Tensor) -> Tensor:
        answer = F.scaled_dot_product_attention(q, kv, kv)
        return F.scaled_dot_product_attention(q, answer, answer, is_causal=True)


def test_what_attention_answers_is_a_key():
    q, kv = torch.rand(2, 2, 3, 6, dtype=torch.float64), torch.rand(2, 2, 4, 6, dtype=torch.float64)
    ann = capture(AttendsTwice(), (q, kv))
    torch.testing.assert_close(morph(ann)(q, kv), ann(q, kv), rtol=1e-12, atol=1e-12)


def test_rows_that_a_mask_hides_are_0_in_every_engine():
    torch.manual_seed(0)
    images = torch.randn(16, 3, 6), torch.randn(16, 4, 6)
    model = Attends(above=2.0)
    hidden = ((images[0] @ images[1].transpose(1, 2)) <= 2.0).all(-1)
    snn = spike(to_integer(quantize(morph(capture(model, tuple(x[:1] for x in images))), 8, images)))
    assert hidden.any() and not snn.qann(*images)[hidden].any()
    assert all(verify(snn, images, engine=engine).equal for engine in Engine)
    assert snn.layers[0][1].levels == Levels(0, 7)


def test_both_products_of_attention_receive_spikes():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), BLOCKS["attention"]())
    images = torch.randn(4, 2, 3, 3)
    qann = quantize(morph(capture(model, images)), 8, images)
    assert "scaled_dot_product_attention" not in operations(qann)
    products = [n for n in qann.graph.nodes if network.op_name(n) == "matmul"]
    assert len(products) == 2


# -- pooling and activations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maximum", "average", "shape"),
    [
        (nn.MaxPool1d(3, 2, 1), nn.AvgPool1d(3, 2, 1, count_include_pad=False), (2, 9)),
        (nn.MaxPool2d(2), nn.AvgPool2d(2), (2, 6, 6)),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(3, 2, 1, True, count_include_pad=False), (2, 6, 6)),
        (nn.MaxPool3d(2, 1), nn.AvgPool3d(2, 1), (2, 3, 3, 3)),
    ],
)
def test_average_pooling(maximum, average, shape):
    x = torch.randn(3, *shape)
    ann = capture(maximum, x)
    assert torch.equal(morph(ann)(x), maximum(x))
    torch.testing.assert_close(morph(ann, Morph(pooling=Pooling.AVERAGE))(x), average(x))


def test_dilated_max_pooling_is_kept():
    pool, x = nn.MaxPool2d(2, 1, dilation=2), torch.randn(2, 2, 6, 6)
    assert torch.equal(morph(capture(pool, x), Morph(pooling=Pooling.AVERAGE))(x), pool(x))


def test_only_relu_replaces_activations_but_not_gates():
    activations = [nn.LeakyReLU(), nn.SiLU(), nn.GELU(), nn.ReLU6(), nn.ELU(), nn.Hardswish(), nn.PReLU()]
    model = nn.Sequential(*[m for a in activations for m in (nn.Linear(3, 3), a)], nn.Sigmoid())
    x = torch.randn(2, 3)
    ann = capture(model, x)
    with_relu = morph(ann, Morph(activation=Activation.RELU))
    assert operations(with_relu) == ["linear", "relu"] * 7 + ["sigmoid"]
    expected = x
    for module in model:
        expected = F.relu(expected) if module in activations else module(expected)
    assert torch.equal(with_relu(x), expected)
    assert torch.equal(morph(ann)(x), model(x))


class Guarded(nn.Module):
    """Clamps that keep a divisor and a logarithm's argument from 0, and one that is an activation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) + x.clamp(min=1e-6).log() + x.clamp(0, 6) @ torch.eye(3)


def test_only_relu_leaves_what_bounds_a_divisor_or_a_functions_argument():
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 9.0]])
    ann = morph(capture(Guarded(), x), Morph(activation=Activation.RELU))
    assert torch.allclose(ann(x), Guarded()(x) + (x.clamp(min=0) - x.clamp(0, 6)))
    assert operations(ann).count("relu") == 1


# -- residuals --------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Stem and one residual block with the given shortcut."""

    def __init__(self, shortcut: nn.Module, stride: int = 1, alpha: float = 1.0, shortcut_first: bool = False):
        super().__init__()
        self.stem = nn.Conv2d(2, 2, 1)
        self.conv1 = nn.Conv2d(2, 4 if stride == 2 else 2, 3, stride, 1)
        self.conv2 = nn.Conv2d(4 if stride == 2 else 2, 4 if stride == 2 else 2, 3, padding=1)
        self.shortcut, self.alpha, self.shortcut_first = shortcut, alpha, shortcut_first

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        return self.conv2(F.relu(self.conv1(x))), self.shortcut(x)

    def forward(self, x: Tensor) -> Tensor:
        main, short = self.branches(x)
        total = short + main if self.shortcut_first else torch.add(main, short, alpha=self.alpha)
        return F.relu(total).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (Block(nn.Identity()), 3),
        (Block(nn.Identity(), shortcut_first=True), 3),
        (Block(PaddedShortcut(2), stride=2), 3),
        (Block(nn.Conv2d(2, 4, 1, 2), stride=2), 4),
        (Block(nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)), stride=2), 4),
    ],
    ids=["identity", "shortcut first", "option A", "convolution", "pooled convolution"],
)
def test_rcr_puts_neurons_before_the_addition(model, layers):
    model = shuffle_statistics(model).double().eval()
    images = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    ann = morph(capture(model, images), Morph(residual=Residual.RCR))
    main, short = model.branches(images)
    torch.testing.assert_close(ann(images), (F.relu(main) + short).mean((2, 3)), rtol=1e-12, atol=1e-12)

    qann = quantize(ann, 8, images)
    (total,) = [n for n in qann.graph.nodes if network.op_name(n) == "add"]
    assert [n.op for n in total.users] == ["call_function"], "no neuron behind the sum"
    main_neuron = total.args[0]
    assert main_neuron.op == "call_module"
    names = [str(n.target) for n in qann.graph.nodes if n.op == "call_module"]
    assert len(names) == layers
    if any(isinstance(m, nn.Conv2d) for m in model.shortcut.modules()):
        levels = qann.get_submodule(str(total.args[1].target)).levels
        assert (levels.lowest, levels.highest) == (-4, 3), "a convolutional shortcut has no ReLU: it is signed"


def test_rcr_leaves_a_weighed_sum_alone():
    model, images = Block(nn.Identity(), alpha=0.5), torch.randn(2, 2, 6, 6)
    ann = capture(model, images)
    with pytest.warns(UserWarning, match="residual=rcr changed nothing"):
        kept = morph(ann, Morph(residual=Residual.RCR))
    assert torch.equal(kept(images), ann(images))


def test_blocks_that_are_rewired_already_are_no_reason_to_warn():
    model, images = Block(nn.Identity()), torch.randn(2, 2, 6, 6)
    once = morph(capture(model, images), Morph(residual=Residual.RCR))
    again = morph(once, Morph(residual=Residual.RCR))
    assert network.note(once, "residual") == network.note(again, "residual") == "rcr"


def test_a_rewritten_node_keeps_its_authors_name(drawn):
    folded = morph(drawn[0])
    names = {origin(n) for n in folded.graph.nodes if n.op == "call_function"}
    assert {"stem", "blocks.0.conv", "blocks.1.conv1", "head"} <= names


@pytest.mark.parametrize("choice", ["rcr", Residual.RCR, Morph, None])
def test_what_is_no_choice_is_refused(drawn, choice):
    with pytest.raises(StageError, match=r"give Morph\(\)"):
        morph(drawn[0], choice)


@pytest.mark.parametrize("wrong", [{"residual": "rcr"}, {"pooling": Residual.RCR}, {"batch_norm": True}])
def test_what_is_no_choice_is_refused_with_what_there_is(wrong):
    (name,) = wrong
    with pytest.raises(StageError, match=rf"^{name}=.*: give one of {type(getattr(Morph(), name)).__name__}\."):
        Morph(**wrong)
