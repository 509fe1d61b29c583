"""Units of integer networks: what is converted where streams of different thresholds meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from spikezip.errors import StageError
from spikezip.graph import capture, network
from spikezip.measure import default_engine, verify
from spikezip.morph import morph
from spikezip.pipeline import convert
from spikezip.quantize import Quantizer, quantize, to_integer
from spikezip.quantize.grid import Grids, dyadic_exponent
from spikezip.quantize.integer import check_integer
from spikezip.quantize.units import unlike
from spikezip.run import Engine
from spikezip.spike import spike


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


def test_the_same_network_is_widened_in_the_same_order():
    """Nodes that are to compute in float64 are taken as they stand in the graph, not as they lie in memory."""

    class Functions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(x) * torch.tanh(x) + torch.exp(-x) - F.gelu(x) * torch.cos(x).sqrt()

    images = torch.linspace(-1, 1, 64).reshape(8, 8)
    qann = quantize(morph(capture(nn.Sequential(Functions(), nn.Linear(8, 3)), images)), 8, images)
    kept, graphs = [], set()
    for _ in range(4):
        kept.append(to_integer(qann))  # so that the next one lies elsewhere
        graphs.add(str(kept[-1].graph))
    assert len(graphs) == 1


def test_what_is_rounded_says_to_how_many_digits():
    class Answers(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(self.two(torch.sigmoid(self.one(x))), -1)

    images = torch.linspace(-1, 1, 64).reshape(16, 4)
    qann = quantize(morph(capture(Answers(), images)), 8, images)
    exactness = network.note(to_integer(qann), "exactness")
    assert [e.bits for e in exactness if e.arithmetic == "rounded"] == [23, 48]


#: What makes whole numbers or truth values of spikes, or joins them with real numbers: they are in no unit.
WHOLE = {
    "compared": lambda h: (h > 0.3).float(),
    "counted": lambda h: (h > 0.2).sum(1, keepdim=True).float().expand_as(h),
    "cut off": lambda h: (4 * h).long().float(),
    "sorted into classes": lambda h: torch.bucketize(h, torch.tensor([0.1, 0.3, 0.6])).float(),
    "added": lambda h: h + (h > 0.3),
    "subtracted": lambda h: h - (3 * h).int(),
    "multiplied": lambda h: h * (4 * h).int(),
    "joined": lambda h: torch.cat([h[:, :4], h[:, 4:] > 0.3], 1),
    "added, stored": lambda h: h + torch.arange(8),
}


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(F.relu(self.first(x))))


@pytest.mark.parametrize("function", WHOLE.values(), ids=WHOLE.keys())
def test_whole_numbers_are_in_no_unit(function):
    images = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    model = Between(function).eval()
    qann = quantize(morph(capture(model, images)), 16, images)
    integer = to_integer(qann, 16)
    if function is WHOLE["compared"]:
        assert {q.levels.lowest for _, q in network.modules_of(qann, Quantizer)} == {0}
    with torch.no_grad():
        wanted, found = qann(images), integer(images)
    assert float((found - wanted).norm() / (wanted - wanted.mean(0)).norm()) < 0.02
    for engine in Engine:
        assert verify(spike(integer), images, engine=engine).equal


#: What joins real numbers with whole ones that come in.
JOINS = {
    "joined": lambda m, x, n: torch.cat([x[:, 2:], n[:, :2]], 1),
    "stacked": lambda m, x, n: torch.stack([x[:, :3], n[:, :3]], 2).flatten(1),
    "typed as": lambda m, x, n: n.type_as(x),
    "put in": lambda m, x, n: x.masked_fill(n > 500_000, m.most),
    "chosen": lambda m, x, n: torch.where(x > 0, x, n),
    "the greater": lambda m, x, n: torch.maximum(x, n),
    "added": lambda m, x, n: x + n,
    "multiplied": lambda m, x, n: x * n.view_as(x),
}


class Joining(nn.Module):
    def __init__(self, join: Callable[..., Tensor]):
        super().__init__()
        self.first, self.last, self.join = nn.Linear(6, 8), nn.Linear(8, 4), join
        self.register_buffer("most", torch.tensor(1_000_000))

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return self.last(F.relu(self.first(self.join(self, x, n))))


@pytest.mark.parametrize("join", JOINS.values(), ids=JOINS.keys())
def test_no_value_leaves_its_grid_where_whole_numbers_join(join):
    torch.manual_seed(0)
    inputs = torch.randn(64, 6), torch.randint(0, 1_000_000, (64, 6))
    integer = to_integer(quantize(morph(capture(Joining(join), inputs)), 256, inputs))
    grids, checked = Grids(integer), 0

    class Values(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            nonlocal checked
            found, grid = super().run_node(n), grids.get(n)
            if grid is not None:
                checked += 1
                assert float(found.detach().double().abs().max()) <= float(grid.bound.max()), n
            return found

    Values(integer).run(*inputs)
    assert checked > 4
    for engine in Engine:
        assert verify(spike(integer), inputs, engine=engine).equal


class Cancelling(nn.Module):
    """Great numbers that a stream takes away to the last bit, on what is valid at least."""

    def __init__(self, how: Callable[[Cancelling, Tensor, Tensor], Tensor]):
        super().__init__()
        self.first, self.head, self.how = nn.Linear(8, 12), nn.Linear(12, 3), how
        self.register_buffer("mean", torch.full((8,), 300.0))
        self.register_buffer("most", torch.tensor(1e4))

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        return self.how(self, x, m)


@pytest.mark.parametrize(
    "how",
    [
        lambda n, x, m: n.head(F.relu(n.first(x / 300) - (1 - m) * 100)),
        lambda n, x, m: n.head(F.relu(n.first(x / 300) - (n.most - m * n.most))),
        lambda n, x, m: torch.sigmoid(n.head(F.relu(n.first(x / 300)))) - (1 - m[:, :3]) * 1e4,
        lambda n, x, m: n.head(F.relu(n.first(F.relu(x - 300.0)))),
        lambda n, x, m: n.head(F.relu(n.first(F.relu(x * 0.37 - 111.0)))),
        lambda n, x, m: n.head(F.relu(n.first(F.relu(x - n.mean)))),
        lambda n, x, m: n.head((F.relu(n.first(x / 300)) + 300) - torch.full((12,), 300)),
        lambda n, x, m: n.head(torch.where(x[:, :1] * 0.37 > 111.2, F.relu(n.first(x / 300)), 0.0)),
    ],
    ids=["mask", "stored mask", "answers", "number", "scaled", "stored", "whole", "compared"],
)
def test_what_cancels_does_so_in_any_unit(how):
    """A stream and what is taken from it are converted by one factor."""
    torch.manual_seed(0)
    model = Cancelling(how).eval()
    x, m = (300 + 2 * torch.randn(64, 8)).round(), (torch.rand(64, 12) > 0.3).float()
    qann = quantize(morph(capture(model, (x, m))), 256, (x, m))
    integer = to_integer(qann, 8)
    wanted, found = qann(x, m).detach(), integer(x, m)
    seen = wanted > -100
    assert float((found - wanted)[seen].square().mean().sqrt() / wanted[seen].std()) < 0.03
    assert verify(spike(integer), (x[:8], m[:8])).equal


class Mean(nn.Module):
    """The mean over large images: a stream in small units, whose weights are small ones too."""

    shape = (1, 96, 96)

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x * self.factor)).mean((2, 3)))

    factor = 1.0


class Product(nn.Module):
    """The product of two streams of fine levels."""

    shape = (8,)

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).sigmoid() * self.second(x).sigmoid())


class Chain(nn.Module):
    """A state that a gate multiplies at every step: a product of products, and so on."""

    shape = (5, 2)

    def __init__(self):
        super().__init__()
        self.gate, self.new, self.head = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = self.new(x[:, 0]).sigmoid()
        for gate in (self.gate(x) + 1).sigmoid().unbind(1):
            state = gate * state + state
        return self.head(state)


class Sound(nn.Module):
    """Whole numbers of 16 bits."""

    shape = (1, 64)

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 4, 9, 4), nn.Linear(56, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv((x.float() - 1000) / 32768)).flatten(1))


class Scaled(Mean):
    """Images of an odd unit, resized."""

    shape = (1, 12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, size=(10, 10), mode="bilinear"))


class Large(Scaled):
    factor = 1 / 4000


class Tiny(Scaled):
    factor = 1e4


class Uneven(nn.Module):
    """Averages of sequences without channels, over fewer values at their ends."""

    shape = (16,)

    def __init__(self):
        super().__init__()
        self.first, self.pool, self.head = (
            nn.Linear(16, 32),
            nn.AvgPool1d(3, 1, 1, count_include_pad=False),
            nn.Linear(32, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(F.relu(self.first(x))))


class Vector(nn.Module):
    """A product with a vector."""

    shape = (8,)

    def __init__(self):
        super().__init__()
        self.first, self.weight = nn.Linear(8, 12), nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.first(x)) @ self.weight


@pytest.mark.parametrize("net", [Mean, Product, Chain, Sound, Large, Tiny, Uneven, Vector])
def test_integer_weights_hardly_change_the_answers(net: Any):
    """In whatever unit values are, and however far they go."""
    torch.manual_seed(0)
    model = net()
    images = torch.randn(32, *net.shape) * (1 + torch.rand(32, *[1] * len(net.shape)))
    if net is Sound:
        images = (8000 * images).clamp(-32768, 32767).to(torch.int16)
    elif net in (Large, Tiny):
        images = torch.rand(images.shape) / net.factor
    qann = quantize(morph(capture(model, images[:1])), 256, images)
    for bits, most in ((8, 0.05), (16, 0.01)):
        snn = spike(to_integer(qann, bits))
        wanted, found = qann(images).detach(), snn.qann(images)
        assert float((found - wanted).square().mean().sqrt() / wanted.std()) < most
    few = spike(to_integer(quantize(morph(capture(model, images[:1])), 8, images)))
    for engine in Engine:
        assert verify(few, images[:4], engine=engine).equal


class Latents(nn.Module):
    """Queries from stored latents, the same for every image."""

    shape = (5, 4)

    def __init__(self):
        super().__init__()
        self.latents, self.q, self.k = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.q(self.latents.unsqueeze(0).expand(x.shape[0], -1, -1)) @ self.k(x).transpose(1, 2)


class Start(nn.Module):
    """A recurrence that starts at zeros."""

    shape = (1, 3)

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


class Long(nn.Module):
    """A product of two products, each of which float64 holds: not so what sums them up."""

    shape = (4, 4)

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x).sigmoid()
        return (h * h * h * h) @ (h * h * h).transpose(1, 2)


def test_sums_too_long_for_float64_are_rounded_before():
    torch.manual_seed(0)
    model, images = Long(), torch.randn(16, *Long.shape)
    qann = quantize(morph(capture(model, images[:1])), 256, images)
    integer = to_integer(qann, 16)
    assert "inexact" not in {e.arithmetic for e in network.note(integer, "exactness")}
    wanted, found = qann(images).detach(), integer(images)
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("net", [Latents, Start])
def test_what_every_image_shares_is_on_the_grid(net: Any):
    torch.manual_seed(0)
    model, images = net().eval(), torch.randn(16, *net.shape)
    ann = morph(capture(model, images[:1]))
    torch.testing.assert_close(ann(images), model(images))
    qann = quantize(ann, 8, images)
    integer = to_integer(qann)
    assert "inexact" not in {e.arithmetic for e in network.note(integer, "exactness")}
    assert default_engine(spike(integer)) is Engine.SWEEP
    wanted, found = qann(images).detach(), integer(images)
    assert float((found - wanted).norm() / wanted.norm()) < 0.05


def test_a_layer_does_not_vanish():
    """Weights too small for what they multiply are refused by name, not set to 0; those that hardly matter may be 0."""
    torch.manual_seed(0)
    images = torch.rand(32, 4)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight *= 1e-9
        qann = quantize(morph(capture(model, images[:1])), 8, images)
        assert float((qann(images) - to_integer(qann, 8)(images)).abs().max()) < 0.02
        model[4].weight *= 1e-9
    check_integer(quantize(morph(capture(model, images[:1])), 8))  # other thresholds might have held it
    with pytest.raises(StageError, match=r"round all weights of '4' \(linear\) to 0: they are at most .e-10."):
        to_integer(quantize(morph(capture(model, images[:1])), 8, images))


def test_columns_that_hardly_vary_are_told_apart():
    torch.manual_seed(0)
    rows = torch.randn(64, 4) * torch.tensor([1, 1e4, 0.1, 15]) + torch.tensor([0, 1e4, 3, 100])
    norm = nn.BatchNorm1d(4).eval()
    norm.running_mean, norm.running_var = rows.mean(0), rows.var(0)
    model = nn.Sequential(norm, nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    qann = quantize(morph(capture(model, rows[:1])), 256, rows)
    wanted, found = qann(rows).detach(), to_integer(qann, 16)(rows)
    assert float((found - wanted).square().mean().sqrt() / wanted.std()) < 0.05
    with pytest.warns(UserWarning, match="Try more weight_bits, normalise the input's channels"):
        convert(model, rows[:1], rows, weight_bits=3)


class Targets(nn.Module):
    """A regression whose answers are of unlike size: scaled, shifted, or beside others, by stored numbers."""

    def __init__(self, how: Callable[[Targets, Tensor], Tensor]):
        super().__init__()
        self.how, self.net = how, nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        self.register_buffer("std", torch.tensor([1e5, 1.0, 1e-2]))
        self.register_buffer("mean", torch.tensor([3e5, 0.5, 0.07]))

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, self.net(x))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "how",
    [
        lambda m, h: h * m.std + m.mean,
        lambda m, h: h / m.std,
        lambda m, h: h - m.mean,
        lambda m, h: torch.cat([m.mean.expand(h.shape[0], 3), h], 1),
        lambda m, h: (h * m.std).reshape(-1, 3, 1),
    ],
    ids=["scaled and shifted", "divided", "shifted", "beside", "reshaped"],
)
def test_constants_of_unlike_size_keep_the_small_ones(how, bits):
    torch.manual_seed(0)
    model, images = Targets(how), torch.randn(64, 6)
    qann = quantize(morph(capture(model, images[:1])), 64, images)
    integer = to_integer(qann, bits)
    wanted, found = qann(images).detach().double(), integer(images).double()
    size = wanted.abs().mean(0)  # of each answer by itself
    assert bool(((found - wanted).abs().mean(0) < 0.05 * size).all())
    assert verify(spike(integer), images).equal


class Biased(nn.Module):
    """Attention with a bias of positions and a mask in one stored tensor."""

    shape = (8, 6)

    def __init__(self, hidden: float, *, everywhere: bool = False):
        super().__init__()
        self.qkv, self.head = nn.Linear(6, 18), nn.Linear(6, 3)
        places = torch.arange(8)
        mask = torch.full((8, 8), hidden).triu(1)
        if everywhere:  # in every row and column
            mask = torch.where((places[:, None] - places).abs() % 4 == 3, hidden, 0.0)
        self.register_buffer("bias", 0.7 * (places - places[:, None]) + mask)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head((q @ k.transpose(1, 2) + self.bias).softmax(-1) @ v).mean(1)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("hidden", [-1e4, -1e9, torch.finfo(torch.float32).min, float("-inf")])
def test_a_mask_in_a_bias_leaves_the_bias(hidden, everywhere):
    torch.manual_seed(0)
    model, images = Biased(hidden, everywhere=everywhere), torch.randn(32, 8, 6)
    qann = quantize(morph(capture(model, images[:1])), 64, images)
    integer = to_integer(qann, 16)
    wanted, found = qann(images).detach(), integer(images)
    assert float((found - wanted).norm() / (wanted - wanted.mean(0)).norm()) < 0.05
    assert verify(spike(integer), images).equal


def test_a_mask_that_no_step_goes_with_is_refused_by_name():
    torch.manual_seed(0)
    model, images = Biased(-1e38), torch.randn(8, 8, 6)
    model.bias[3] -= 1e38  # where all is masked, all counts
    qann = quantize(morph(capture(model, images[:1])), 8, images)
    with pytest.raises(StageError, match=r"\(add\) has a constant whose values, up to 2e\+38, are too unlike.*-inf"):
        to_integer(qann)


@pytest.mark.parametrize(("hidden", "held"), [(-1e3, True), (-1e6, True), (-1e38, False)])
def test_a_mask_before_a_threshold_leaves_what_is_added(hidden, held):
    """Added in units of the threshold that reads the sum."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
            self.register_buffer("gate", torch.tensor([0.3, -0.2, 0.5, 0.1, hidden, 0.4, hidden, -0.6]))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.first(x).sigmoid() + self.gate))

    torch.manual_seed(0)
    model, images = Gated(), torch.randn(64, 6)
    qann = quantize(morph(capture(model, images[:1])), 32, images)
    check_integer(quantize(morph(capture(model, images[:1])), 32))  # other thresholds might have held it
    if not held:
        with pytest.raises(StageError, match="too unlike for whole numbers"):
            to_integer(qann, 16)
        return
    integer = to_integer(qann, 16)
    wanted = qann(images).detach()
    assert float((integer(images) - wanted).norm() / (wanted - wanted.mean(0)).norm()) < 0.05
    assert verify(spike(integer), images).equal


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_matrix_on_the_left_fits_its_bits(bits):
    """It had a bit too many."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.mix = nn.Linear(6, 6), nn.Parameter(torch.randn(12, 5) / 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.mix @ torch.relu(self.first(x))).sum(1)

    torch.manual_seed(0)
    images = torch.randn(64, 5, 6)
    integer = to_integer(quantize(morph(capture(Mixed(), images[:1])), 8, images), bits)
    (mix,) = (v for k, v in integer.state_dict().items() if k.startswith("mix"))
    step = 2.0 ** -float(dyadic_exponent(mix[mix != 0]).max())
    most = float(mix.abs().max()) / step
    assert 2 ** (bits - 2) <= most <= 2 ** (bits - 1) - 1
    assert verify(spike(integer), images).equal


def test_what_is_small_by_chance_costs_no_digits():
    """Positions drawn from one distribution: float32 adds them up as before."""
    torch.manual_seed(0)
    places = torch.randn(1, 197, 192) * 0.02
    assert not unlike(places, 16) and not unlike(places * torch.rand(192), 16)
    assert unlike(places * torch.logspace(0, -6, 192), 16)


def test_answers_that_quantizing_or_rounding_has_lost_are_told():
    model, images = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)), torch.linspace(0, 1, 64)[:, None]
    with torch.no_grad():  # a small difference of two great values
        for layer, weight in ((model[0], [[30.0], [29.0]]), (model[2], [[1.0, -1.0]])):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.zero_()
    with pytest.warns(
        UserWarning, match=r"Quantizing changes the answers .* by \d+% of their spread. Give more levels"
    ) as told:
        convert(model, images[:1], images, levels=8, weight_bits=None, refit=False)  # refitted weights mend it
    assert told[0].filename == __file__  # it is said where the caller is

    model, images = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(64, 2)
    with torch.no_grad():  # the second answer is 0.4 h, and h - h with short weights; the first hides it
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 99.0]]))
        model[0].bias.copy_(torch.tensor([3.0, 3.0, 0.0]))
        model[2].weight.copy_(torch.tensor([[0.0, 0.0, 1.0], [1.0, -0.6, 0.0]]))
    with pytest.warns(
        UserWarning, match=r"Weights of 2 bits change the answers .* of the spread of one of them"
    ) as told:
        convert(model, images[:1], images, levels=64, weight_bits=2)
    assert told[0].filename == __file__


@pytest.mark.parametrize("stored", [False, True])
def test_the_least_number_of_float32_masks_and_makes_no_nan(stored):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
            least = torch.finfo(torch.float32).min
            self.register_buffer("hidden", (1 - torch.ones(6, 6).tril(-1)) * least)  # the first row throughout

        def forward(self, x: Tensor, m: Tensor) -> Tensor:
            if stored:
                return self.head(torch.softmax(self.first(x).unsqueeze(1) + self.hidden, -1)).sum(1)
            return self.head(torch.softmax(self.first(x) + (1 - m) * torch.finfo(x.dtype).min, -1))

    torch.manual_seed(0)
    x, m = torch.randn(64, 6), (torch.rand(64, 6) > 0.3).float()
    m[:, 0] = 1
    qann = quantize(morph(capture(Masked(), (x, m))), 64, (x, m))
    integer = to_integer(qann)
    wanted, found = qann(x, m).detach(), integer(x, m)
    assert float((found - wanted).norm() / (wanted - wanted.mean(0)).norm()) < 0.05
    assert verify(spike(integer), (x[:8], m[:8])).equal


def test_answers_that_rounding_makes_infinite_are_refused(monkeypatch):
    def broken(qann: fx.GraphModule, bits: int, **choices: Any) -> fx.GraphModule:
        new = to_integer(qann, bits, **choices)
        for values in new.parameters():
            values.data.fill_(torch.nan)
        return new

    monkeypatch.setattr("spikezip.pipeline.to_integer", broken)
    model, images = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(8, 2)
    with pytest.raises(StageError, match=r"no longer finite with integer weights.*Mask with -inf"):
        convert(model, images[:1], images)


def test_infinite_answers_count_as_they_are():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
            self.register_buffer("hidden", torch.tensor([0.0, 0.0, -torch.inf]))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + self.hidden

    torch.manual_seed(0)
    images = torch.randn(64, 4)
    assert verify(convert(Hidden(), images[:1], images, levels=64), images).equal  # not refused, nor warned of


class Answering(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.net, self.function = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.net(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda h: torch.exp(3 * h + 15.2),
        lambda h: torch.exp(3 * h + 40),
        lambda h: torch.sigmoid(5 * h - 18),
        lambda h: torch.exp(3 * h.expand(-1, 2) + 40).mean(1),
    ],
    ids=["great", "greater", "small", "an average"],
)
def test_answers_of_any_size_have_room(function):
    """The output's point is where the values on the calibration data want it; others may go much farther."""
    torch.manual_seed(0)
    model, images = Answering(function), torch.randn(256, 4)
    qann = quantize(morph(capture(model, images[:1])), 256, images)
    integer, more = to_integer(qann, 16), torch.cat([images, 1.5 * images])
    wanted, found = qann(more).detach().double(), integer(more).double()
    assert wanted.max() > 1.4 * wanted[:256].max()
    assert float((found - wanted).norm() / wanted.norm()) < 0.02
    assert verify(spike(integer), more).equal


def test_answers_that_no_point_goes_with_are_told():
    torch.manual_seed(0)
    model = Answering(lambda h: torch.cat([torch.exp(3 * h + 40), torch.sigmoid(h)], 1))
    images = torch.randn(64, 4)
    with pytest.warns(UserWarning, match=r"too great, or of too unlike size, for the fixed point in which an output"):
        convert(model, images[:1], images, levels=64, weight_bits=16)
