"""The event engine: increments on the wires, and in integers the reference's every step to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fast_ways import add_up_spike_by_spike
from random_networks import Drawn, networks, quantize_everywhere, shuffle_statistics
from spikezip import convert
from spikezip.errors import StageError
from spikezip.graph import capture, network
from spikezip.kernels import native
from spikezip.levels import Levels
from spikezip.morph import Morph, Residual, morph
from spikezip.quantize import quantize, to_integer
from spikezip.run import Engine, Outcome, Run, drift, event, execute, reference
from spikezip.run.rules import Rule, rules
from spikezip.spike import Constant, Encoding, Even, Pulse, SpikingNetwork, spike

HUGE = 1 << 20  #: more levels a step than any range


def images_for(shape: tuple[int, ...], count: int = 3) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def integer_qann(model: nn.Module, shape: tuple[int, ...], levels: int | Levels = 6, choice: Morph = Morph()):
    images = images_for(shape, 16)
    ann = morph(capture(shuffle_statistics(model).eval(), images[:1]), choice)
    return to_integer(quantize_everywhere(ann, levels, images))


def watched(snn: SpikingNetwork, images: Tensor, steps: int, engine: Engine) -> tuple[Run, dict[str, Tensor]]:
    """The run, and every layer's tracers at every step, ``[T, N, ...]``."""
    seen: dict[str, Tensor] = {}

    def observe(layer: str, t: int, which: Tensor, codes: Tensor) -> None:
        whole = seen.setdefault(layer, torch.full((steps, len(images), *codes.shape[2:]), torch.nan))
        whole[t - 1 : t - 1 + len(codes), which] = codes.float()

    return execute(snn, images, steps, engine=engine, stop=False, observe=observe), seen


def agree_at_every_step(snn: SpikingNetwork, images: Tensor, engines=(Engine.SWEEP, Engine.EVENT)) -> None:
    """The same tracers, spikes, outputs and T_eq at every step; and all settle on the QANN, within the bound."""
    steps = snn.t_off(4) + 5
    wanted, tracers = watched(snn, images, steps, Engine.REFERENCE)
    for engine in engines:
        run, seen = watched(snn, images, steps, engine)
        for name, expected in tracers.items():
            assert torch.equal(seen[name], expected), f"{engine}: {name}"
            assert torch.equal(run.spikes[name], wanted.spikes[name])
            assert torch.equal(run.negative[name], wanted.negative[name])
        for mine, theirs in zip(run.outputs, wanted.outputs, strict=True):
            assert torch.equal(mine, theirs), f"{engine}: outputs"
        assert torch.equal(run.settled_at, wanted.settled_at)
    if isinstance(snn.encoding, Constant):
        return
    outputs = snn.qann(images)
    for engine in (Engine.REFERENCE, *engines):
        run = execute(snn, images, engine=engine)
        assert run.outcome is Outcome.SETTLED
        assert int(run.settled_at.max()) <= run.t_off + snn.bound
        for mine, theirs in zip(run.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True):
            assert torch.equal(mine[-1], theirs), f"{engine}: settled outputs"


# -- random networks --------------------------------------------------------------------------------------------------

_quiet = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
encodings = st.sampled_from([Pulse(), Even(2), Even(3), Even(4), Constant()])
slews = st.sampled_from([1, 1, 2, HUGE])
level_choices = st.one_of(st.integers(2, 12), st.sampled_from([Levels(-3, 4), Levels(0, 7), Levels(-1, 6)]))


def any_network(model: Drawn, levels: int | Levels, residual: Residual, encoding: Encoding, slew: int) -> None:
    qann = integer_qann(model, model.input_shape, levels, Morph(residual=residual))
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("_WORTH_COMPILING", "_WORTH_A_PASS"):
            patch.setattr(native, limit, 0)  # small networks take the ways of large ones
        add_up_spike_by_spike(patch)
        for snn in (spike(qann, encoding, slew=slew), spike(qann)):  # capturing is what takes time
            agree_at_every_step(snn, images_for(model.input_shape))


@settings(_quiet, max_examples=4, derandomize=True)
@example(Drawn(["joins", "functions"], 2), Levels(-3, 4), Residual.VANILLA, Even(2), 1)
@given(networks(), level_choices, st.sampled_from(Residual), encodings, slews)
def test_random_integer_networks_agree_at_every_step(model, levels, residual, encoding, slew):
    any_network(model, levels, residual, encoding, slew)


@pytest.mark.deep
@pytest.mark.parametrize("shard", range(24))
def test_a_thousand_random_integer_networks_agree_at_every_step(shard):
    @seed(shard)
    @settings(_quiet, max_examples=50)
    @given(networks(max_blocks=4), level_choices, st.sampled_from(Residual), encodings, slews)
    def holds(model, levels, residual, encoding, slew):
        any_network(model, levels, residual, encoding, slew)

    holds()


# -- operations -------------------------------------------------------------------------------------------------------


class Operations(nn.Module):
    """Two streams of spikes, ``[B, 4, 4, 4]`` each; every operation on them, read by a linear layer of its own."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.conv = nn.Conv2d(2, 4, 3, padding=1)
            self.other = nn.Conv2d(2, 4, 1)
            self.up = nn.ConvTranspose2d(4, 4, 2, 2, groups=2)
            self.register_buffer("still", torch.randn(1, 4, 4, 4))
            self.register_buffer("where", torch.rand(4, 4) > 0.5)
            self.register_buffer("order", torch.tensor([3, 0, 0, 2]))
            self.heads = nn.ModuleList(nn.Linear(features, 3) for _, features, _ in OPERATIONS.values())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b = F.relu(self.conv(x)), F.relu(self.other(x))
        results = [operation(self, a, b) for operation, _, _ in OPERATIONS.values()]
        return tuple(head(result.flatten(1)) for head, result in zip(self.heads, results, strict=True))


#: name: (operation, features of its result, the ATen operation and the rule that it is to be run by)
OPERATIONS = {
    "product": (lambda m, a, b: a * b, 64, ("mul", Rule.BILINEAR)),
    "square": (lambda m, a, b: a * a, 64, ("mul", Rule.DIFFERENCE)),
    "matmul of two streams": (lambda m, a, b: a @ b, 64, ("matmul", Rule.BILINEAR)),
    "einsum": (lambda m, a, b: torch.einsum("bcij,bcjk->bcik", a, b), 64, None),
    "addition of a constant": (lambda m, a, b: a + m.still, 64, ("add", Rule.LINEAR)),
    "addition of a number": (lambda m, a, b: a + 0.7, 64, ("add", Rule.LINEAR)),
    "difference from a number": (lambda m, a, b: 1.0 - a, 64, None),
    "weighted difference from a number": (lambda m, a, b: torch.rsub(a, 1.0, alpha=0.7), 64, ("rsub", Rule.LINEAR)),
    "weighted sum": (lambda m, a, b: torch.add(a, b, alpha=0.5), 64, None),
    "scaling": (lambda m, a, b: a / 3 * m.still, 64, ("mul", Rule.LINEAR)),
    "joined constant": (lambda m, a, b: torch.cat([a, m.still.expand_as(a)], 1), 128, ("cat", Rule.LINEAR)),
    "stack": (lambda m, a, b: torch.stack([a, b, a], 2), 192, ("stack", Rule.LINEAR)),
    "split": (lambda m, a, b: torch.cat(a.split([1, 3], 1)[::-1], 1), 64, ("getitem", Rule.LINEAR)),
    "padding with a number": (lambda m, a, b: F.pad(a, (1, 1, 0, 1), value=0.4), 120, ("pad", Rule.DIFFERENCE)),
    "padding with zeros": (lambda m, a, b: F.pad(a, (1, 1, 0, 1)), 120, ("pad", Rule.LINEAR)),
    "masking": (lambda m, a, b: a.masked_fill(m.where, 0.5), 64, ("masked_fill", Rule.DIFFERENCE)),
    "choice": (lambda m, a, b: torch.where(a > b, a, -b), 64, ("where", Rule.DIFFERENCE)),
    "indexing": (lambda m, a, b: a[:, m.order], 64, ("index", Rule.LINEAR)),
    "roll": (lambda m, a, b: torch.roll(a, (1, -1), (2, 3)), 64, ("roll", Rule.LINEAR)),
    "transposed convolution": (lambda m, a, b: m.up(a), 256, ("conv_transpose2d", Rule.LINEAR)),
    "upsampling": (lambda m, a, b: F.interpolate(a, scale_factor=2, mode="bilinear"), 256, None),
    "average pool of stride 1": (lambda m, a, b: F.avg_pool2d(a, 3, 1, 1), 64, None),
    "average pool without padding's share": (
        lambda m, a, b: F.avg_pool2d(a, 3, 1, 1, count_include_pad=False), 64, None,
    ),
    "max pool": (lambda m, a, b: F.max_pool2d(a, 2), 16, ("max_pool2d", Rule.DIFFERENCE)),
    "mean": (lambda m, a, b: a.mean(2), 16, None),
    "cumulative sum": (lambda m, a, b: a.cumsum(3), 64, None),
    "softmax": (lambda m, a, b: a.softmax(1), 64, ("softmax", Rule.DIFFERENCE)),
    "division of two streams": (lambda m, a, b: a / (b + 1), 64, ("div", Rule.DIFFERENCE)),
    "greatest": (lambda m, a, b: torch.maximum(a, b), 64, ("maximum", Rule.DIFFERENCE)),
}  # fmt: skip


@pytest.fixture(scope="module")
def operations():
    return integer_qann(Operations(), (2, 4, 4))


@pytest.mark.parametrize("choice", [(Pulse(), Pulse(), 1), (Even(3), Even(3), 1), (Even(4), Pulse(), 2)])
def test_every_operation_agrees_at_every_step(operations, choice):
    encoding, bias_encoding, slew = choice
    snn = spike(operations, encoding, bias_encoding=bias_encoding, slew=slew)
    agree_at_every_step(snn, images_for((2, 4, 4)), engines=(Engine.EVENT,))


def test_every_operation_has_the_rule_it_should(operations):
    """Where an integer network rounds nothing, increments pass as the table of the module says."""
    chosen = {
        (network.op_name(n), rule) for n, rule in rules(spike(operations), 8).of.items() if n.op == "call_function"
    }
    for name, (_, _, expected) in OPERATIONS.items():
        if expected is not None:
            assert expected in chosen, name


# -- what is on the wires, and in the neurons -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def residual():
    return integer_qann(Drawn(["residual", "branches"], outputs=2, seed=3), Drawn.input_shape)


def test_wires_carry_ternary_spikes(residual):
    sent: dict[str, list[Tensor]] = {}
    images = images_for(Drawn.input_shape)
    run = event(spike(residual, Even(2)), (images,), 6, wires=lambda name, t, o: sent.setdefault(name, []).append(o))
    for name, spikes in sent.items():
        assert set(torch.stack(spikes).unique().tolist()) <= {-1.0, 0.0, 1.0}
        assert torch.equal(torch.stack(spikes).sum(0), run.codes[name])
    assert any((torch.stack(o) < 0).any() for o in sent.values())


def test_graded_spikes_are_at_most_slew_levels(residual):
    most = []
    images = images_for(Drawn.input_shape)
    event(spike(residual, slew=3), (images,), 4, wires=lambda name, t, o: most.append(int(o.abs().max())))
    assert max(most) == 3


def test_membranes_hold_what_was_received_and_not_sent(residual):
    """``v = theta/2 + U - theta*S``, with U from the reference."""
    snn, images, drives = spike(residual), images_for(Drawn.input_shape), {}
    reference(snn, (images,), 3, stop=False, probe=lambda name, t, drive: drives.update({name: drive.double()}))
    run = event(snn, (images,), 3, stop=False)
    checked = 0
    for name, neuron in snn.layers:
        if name + "(membrane)" in run.memory:
            checked += 1
            theta = neuron.threshold.double()
            assert torch.equal(
                run.memory[name + "(membrane)"], theta / 2 + drives[name] - theta * run.codes[name].double()
            )
    assert checked >= len(snn.layers) - 1


def test_only_what_is_off_the_grid_is_read_from_accumulated_values():
    plain = spike(integer_qann(Drawn(["residual", "concatenation", "pooling"], seed=2), Drawn.input_shape))
    assert rules(plain, 8).by_drive == ()
    assert rules(spike(plain.qann, Even(4)), 8).by_drive == ()
    # A third is no dyadic number: while the biases are released, drives are rounded.
    thirds = rules(spike(plain.qann, Even(3)), 8)
    assert thirds.by_drive == tuple(name for name, _ in plain.layers)
    assert Rule.RELEASED in thirds.of.values()


@pytest.mark.parametrize("keep_memory", [True, False])
def test_goes_on_from_a_state(residual, keep_memory):
    snn = spike(residual, Even(2))
    first, second = images_for(Drawn.input_shape, 6).split(3)
    wanted, start = (execute(snn, first, 3, engine=e) for e in (Engine.REFERENCE, Engine.EVENT))
    state = start.state if keep_memory else wanted.state
    assert bool(state.memory) == keep_memory
    ends = [
        execute(snn, second, 5, engine=engine, state=s, batch=2)
        for engine, s in ((Engine.REFERENCE, wanted.state), (Engine.EVENT, state))
    ]
    for name in wanted.codes:
        assert torch.equal(ends[0].codes[name], ends[1].codes[name])
        assert torch.equal(ends[0].spikes[name], ends[1].spikes[name])
    assert all(torch.equal(a, b) for a, b in zip(ends[0].outputs, ends[1].outputs, strict=True))


def test_drift_is_none_in_integers_and_reported_in_floats(residual):
    images = images_for(Drawn.input_shape, 5)
    assert drift(spike(residual), images, 6, batch=2).none
    plain = quantize(morph(capture(Drawn(["residual"] * 2), images[:1])), 8, images)
    found = drift(spike(plain), images, 8)
    assert not found.none  # sums of increments are rounded
    assert max(max(o) for o in found.outputs) < 1e-4
    assert all(len(layer.differ) == 8 and max(layer.levels) <= 1 for layer in found.layers.values())


@pytest.mark.parametrize("steps", [None, 2.5, 0, True])
def test_drift_is_over_so_many_steps(residual, steps):
    with pytest.raises(StageError, match=f"steps={steps}: give a whole number"):
        drift(spike(residual), images_for(Drawn.input_shape), steps)


def test_drift_sees_a_tie_that_falls_the_other_way():
    """0.1 + 0.2 is not 0.3: increments arrive at another sum than the whole, and a tie is decided by its last bit."""
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.ReLU(), nn.Linear(1, 1))
    model[0].weight.data.copy_(torch.tensor([[0.1, 0.2, 0.3]]))
    images = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).repeat(4, 1)
    qann = quantize(morph(capture(model, images[:1])), 4, images)
    away = []
    for share in range(3, 12):
        qann.get_submodule("1").scale.data.fill_(0.3 / 1.5)
        away.append(max(max(d.levels) for d in drift(spike(qann, Even(share)), images, share + 3).layers.values()))
    assert max(away) == 1


# -- slew -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def varied():
    blocks = ["residual", "attention", "squeeze and excitation"]
    return integer_qann(Drawn(blocks, outputs=2), Drawn.input_shape, Levels(-3, 4))


@pytest.mark.parametrize("engine", Engine)
def test_a_slew_of_the_whole_range_is_the_qann_in_one_step(varied, engine):
    qann, images = varied, images_for(Drawn.input_shape)
    for slew in (7, HUGE):
        snn = spike(qann, Pulse(), slew=slew)
        run = execute(snn, images, engine=engine)
        assert run.settled_at.tolist() == [1] * len(images)
        assert all(torch.equal(o[0], q) for o, q in zip(run.outputs, snn.qann(images), strict=True))
        assert snn.bound == 0
    assert max(execute(spike(qann, Pulse()), images, engine=engine).settled_at.tolist()) > 1


@pytest.mark.parametrize("slew", [2, 3])
def test_graded_spikes_agree_at_every_step(varied, slew):
    agree_at_every_step(spike(varied, Even(2), slew=slew), images_for(Drawn.input_shape))


class Quotient(nn.Module):
    """Something that is not finite until spikes arrive."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        spikes = torch.relu(self.a(x))
        return self.c(torch.relu(self.function(spikes) + self.b(spikes)))


@pytest.mark.parametrize("bits", [8, None])
def test_what_is_not_finite_before_spikes_arrive(bits):
    torch.manual_seed(2)
    images = torch.rand(8, 6) * 2
    for function in (lambda r: r / r.sum(-1, keepdim=True), lambda r: r * r.sum(-1, keepdim=True).rsqrt()):
        model = Quotient(function)
        nn.init.constant_(model.a.bias, 0.2)
        snn = convert(model, images[:1], images, weight_bits=bits, encoding=Even(16))
        stepwise, swept = (execute(snn, images, 40, engine=engine) for engine in (Engine.REFERENCE, Engine.SWEEP))
        assert torch.equal(stepwise.answer, snn.qann(images))
        assert torch.equal(stepwise.outputs[0], swept.outputs[0])
        with pytest.raises(StageError, match="was not finite at a step"):
            execute(snn, images, 40, engine=Engine.EVENT)


def test_a_masked_score_stays_infinite():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores = torch.relu(self.a(x)).masked_fill(torch.arange(6) > 3, -torch.inf)
            return self.b(torch.softmax(scores / 2, -1))

    torch.manual_seed(0)
    images = torch.randn(8, 6)
    snn = convert(Masked(), images[:1], images)
    agree_at_every_step(snn, images)
