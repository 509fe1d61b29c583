"""The theorem spikezip stands on: an SNN of ST-BIF neurons settles on exactly what its QANN computes.

First one neuron, in exact rational arithmetic, with the library's own membrane code; the same tests must fail for
neurons that are wrong in one place. Then random networks, and a published one, along the road a user takes.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from mutants import MUTANTS, PUBLISHED, Neuron, code
from random_networks import BLOCKS, Drawn, networks, shuffle_statistics
from spikezip.data import open_data
from spikezip.graph import capture
from spikezip.levels import Levels
from spikezip.models import resolve
from spikezip.morph import Morph, Residual, morph
from spikezip.quantize import quantize
from spikezip.run import Engine, Outcome, execute
from spikezip.spike import STBIF, Constant, Even, Pulse, spike

# -- one neuron, exactly ----------------------------------------------------------------------------------------------

thetas = st.fractions(Fraction(1, 4), 4, max_denominator=8)
level_ranges = st.tuples(st.integers(-6, 0), st.integers(0, 9)).filter(lambda p: p[0] < p[1]).map(lambda p: Levels(*p))


@st.composite
def drives(draw, max_size: int = 10):
    """``(currents, theta, levels)``: whole multiples of theta/2 among the currents, so that ties do occur."""
    theta = draw(thetas)
    ties = st.integers(-8, 12).map(lambda n: n * theta / 2)
    anything = st.fractions(-8, 12, max_denominator=16)
    currents = draw(st.lists(st.one_of(ties, anything), min_size=1, max_size=max_size))
    return currents, theta, draw(level_ranges)


def settles_on_the_quantizer(neuron: Neuron, currents: list[Fraction], theta: Fraction, levels: Levels) -> None:
    """Once its input stays constant, the tracer is at ``Q(U)`` within ``highest - lowest`` steps, and stays."""
    history = neuron.run([*currents, *[Fraction(0)] * (levels.range + 3)], theta, levels)
    wanted = code(sum(currents, Fraction(0)), theta, levels)
    # The step of the last current is the first of the range's steps.
    settled = history[len(currents) + levels.range - 2 :]
    assert [s for _, s, _ in settled] == [wanted] * len(settled)


@given(drives())
def test_settles_on_the_quantizer_within_its_range(drive):
    settles_on_the_quantizer(PUBLISHED, *drive)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_neuron_does_not_settle(name):
    """The test above can fail: it tells the published neuron from each that is wrong in one place."""

    @settings(max_examples=300, derandomize=True, database=None, phases=[Phase.generate], report_multiple_bugs=False)
    @given(drives())
    def holds(drive):
        settles_on_the_quantizer(MUTANTS[name], *drive)

    with pytest.raises(AssertionError):
        holds()


@given(drives())
def test_published_recursion_is_the_cumulative_form(drive):
    """``S_t = median(Q(U_t), S_{t-1} - 1, S_{t-1} + 1)``, at every step."""
    currents, theta, levels = drive
    before = 0
    for total, (_, tracer, fired) in zip(accumulate(currents), PUBLISHED.run(currents, theta, levels), strict=True):
        assert tracer == sorted([code(total, theta, levels), before - 1, before + 1])[1]
        assert fired == tracer - before
        assert levels.lowest <= tracer <= levels.highest
        before = tracer


@given(drives())
def test_charge_is_conserved(drive):
    """``v = theta/2 + U - theta*S``: nothing leaks, nothing is thrown away."""
    currents, theta, levels = drive
    for total, (v, tracer, _) in zip(accumulate(currents), PUBLISHED.run(currents, theta, levels), strict=True):
        assert v == theta / 2 + total - theta * tracer


@given(drives(), st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter(drive, random):
    currents, theta, levels = drive
    shuffled = random.sample(currents, len(currents))
    rest = [Fraction(0)] * levels.range
    ends = [PUBLISHED.run([*c, *rest], theta, levels)[-1][:2] for c in (currents, shuffled)]
    assert ends[0] == ends[1]


@given(drives())
def test_a_silent_step_is_equilibrium(drive):
    """Input over: after one step without a spike there is none ever again."""
    currents, theta, levels = drive
    history = PUBLISHED.run([*currents, *[Fraction(0)] * (2 * levels.range + 2)], theta, levels)
    spikes = [o for _, _, o in history[len(currents) :]]
    assert not any(spikes[spikes.index(0) :])


@given(drives(), st.integers(1, 20))
def test_slew_bounds_the_way_to_the_target(drive, slew):
    """The library's neuron moves at most ``slew`` levels a step, and is there after ``ceil(range / slew)`` steps."""
    currents, theta, levels = drive
    # On a grid of 1/64 and a threshold that is a power of two float64 is exact.
    theta = Fraction(2) ** (theta.numerator % 4 - 2)
    drive_sums = [Fraction(round(64 * u), 64) for u in accumulate(currents)]
    neuron = STBIF(levels, torch.tensor(float(theta), dtype=torch.float64), slew)
    tracer, last = torch.zeros(1, dtype=torch.float64), 0
    for total in [*drive_sums, *[drive_sums[-1]] * (neuron.settling_steps() - 1)]:
        tracer = neuron(torch.tensor([float(total)], dtype=torch.float64), tracer)
        goal = code(total, theta, levels)
        assert tracer.item() == last + min(max(goal - last, -slew), slew)
        last = int(tracer.item())
    assert last == code(drive_sums[-1], theta, levels)
    assert neuron.settling_steps() == -(-levels.range // slew)


@given(drives())
def test_graded_tracker_of_slew_one_is_the_published_neuron(drive):
    currents, theta, levels = drive
    theta = Fraction(2) ** (theta.numerator % 4 - 2)
    currents = [Fraction(round(64 * i), 64) for i in currents]
    neuron = STBIF(levels, torch.tensor(float(theta), dtype=torch.float64))
    tracer = torch.zeros(1, dtype=torch.float64)
    for total, (_, expected, _) in zip(accumulate(currents), PUBLISHED.run(currents, theta, levels), strict=True):
        tracer = neuron(torch.tensor([float(total)], dtype=torch.float64), tracer)
        assert tracer.item() == expected


@pytest.mark.parametrize("encoding", [Pulse(), Even(2)])
def test_from_the_middle_of_three_codes_all_is_settled_when_the_input_is_there(encoding):
    """Codes 0..2 are one spike from 1, -1..1 from 0: with a pulse the SNN is its QANN at t = 1; the bound says so."""
    images = torch.randn(5, *Drawn.input_shape, generator=torch.Generator().manual_seed(0))
    model = shuffle_statistics(Drawn(["residual", "pooling", "branches"], outputs=2, seed=1))
    qann = quantize(morph(capture(model, images[:1])), 3, images)
    assert {neuron.levels for _, neuron in spike(qann).layers} == {Levels(0, 2), Levels(-1, 1)}
    snn = spike(qann, encoding, initial_code=1)
    if encoding == Pulse():
        assert snn.bound == 0
        assert execute(snn, images, engine=Engine.REFERENCE).settled_at.tolist() == [1] * len(images)
        assert spike(qann, encoding).bound > 0
    else:
        assert snn.bound > 0, "at t = 1 half of the input may have led a tracer away"


def test_the_two_neurons_of_the_documentation():
    """docs/theorem.md, "By hand": every column of its table, from the published neuron."""
    theta, levels = Fraction(1), Levels(0, 3)
    first = PUBLISHED.run([Fraction(26, 10), *[Fraction(0)] * 3], theta, levels)
    spikes = [o for _, _, o in first]
    currents = [Fraction(2) - Fraction(spikes[0], 2), *(-Fraction(o, 2) for o in spikes[1:])]
    second = PUBLISHED.run(currents, theta, levels)
    assert [s for _, s, _ in first] == [1, 2, 3, 3]
    assert list(accumulate(currents)) == [Fraction(3, 2), 1, Fraction(1, 2), Fraction(1, 2)]
    assert [code(u, theta, levels) for u in accumulate(currents)] == [2, 1, 1, 1]
    assert [s for _, s, _ in second] == [1, 1, 1, 1]
    assert (spikes, [o for _, _, o in second]) == ([1, 1, 1, 0], [1, 0, 0, 0])


# -- networks, along the road a user takes ----------------------------------------------------------------------------

_HUGE = 1 << 20  #: more levels a step than any range: the QANN in one step


def settles_on_the_qann(qann, images) -> None:
    """For every release, slew and initial code: the settled SNN's outputs are the QANN's, bit for bit."""
    for encoding in (Pulse(), Even(3)):
        for slew, initial in ((1, 0), (1, 1), (2, 0), (_HUGE, 0)):
            snn = spike(qann, encoding, slew=slew, initial_code=initial)
            expected = snn.qann(images)
            expected = expected if isinstance(expected, tuple) else (expected,)
            run = execute(snn, images, engine=Engine.REFERENCE)
            assert run.outcome is Outcome.SETTLED
            assert run.t_off <= int(run.settled_at.min())
            assert int(run.settled_at.max()) <= run.t_off + snn.bound
            if slew == _HUGE:
                assert run.settled_at.tolist() == [run.t_off] * len(images)
            for output, wanted in zip(run.outputs, expected, strict=True):
                assert torch.equal(output[-1], wanted)
    # A constant current is complete at the run's last step only: what then remains settles without further input.
    short = execute(spike(qann, Constant()), images, 5, engine=Engine.REFERENCE)
    rest = execute(spike(qann, Pulse()), images, engine=Engine.REFERENCE, state=short.state)
    assert rest.outcome is Outcome.SETTLED
    assert all(torch.equal(a[-1], b) for a, b in zip(rest.outputs, expected, strict=True))
    # Trackers without lag are complete with it.
    full = execute(spike(qann, Constant(), slew=_HUGE), images, 5, engine=Engine.REFERENCE)
    assert full.settled_at.tolist() == [5] * len(images)
    assert all(torch.equal(a[-1], b) for a, b in zip(full.outputs, expected, strict=True))


def convert_and_settle(model: Drawn, levels: int | Levels) -> None:
    images = torch.randn(3, *model.input_shape, generator=torch.Generator().manual_seed(0))
    ann = capture(shuffle_statistics(model), images[:1])
    for residual in (Residual.VANILLA, Residual.RCR):
        settles_on_the_qann(quantize(morph(ann, Morph(residual=residual)), levels, images), images)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_kind_of_block_settles_on_its_qann(block):
    convert_and_settle(Drawn([block], outputs=2, seed=1), 4)


_networks = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


@settings(_networks, max_examples=4)
@given(networks(), st.one_of(st.integers(2, 9), level_ranges.filter(lambda r: r.highest > 0)))
def test_random_networks_settle_on_their_qann(model, levels):
    assume(not isinstance(levels, Levels) or levels.range > 1)
    convert_and_settle(model, levels)


@pytest.mark.deep
@settings(_networks, max_examples=60)
@given(networks(max_blocks=5), st.integers(2, 16))
def test_many_random_networks_settle_on_their_qann(model, levels):
    convert_and_settle(model, levels)


@pytest.fixture(scope="module")
def resnet20(data_root):
    """The published CIFAR-10 ResNet-20 as captured, and images."""
    found = resolve("spikezip:resnet20", weights="pretrained", root=data_root)
    data = open_data("cifar10", root=data_root, mean=found.mean, std=found.std)
    return capture(found.module, found.example), data.tensors("test", 16)[0]


@pytest.mark.parametrize("residual", Residual)
def test_published_resnet20_settles_on_its_qann(resnet20, residual):
    ann, images = resnet20
    snn = spike(quantize(morph(ann, Morph(residual=residual)), 8, images))
    few = images[:3]
    run = execute(snn, few, engine=Engine.REFERENCE)
    assert len(snn.layers) == (28 if residual is Residual.IAND else 19)  # its differences have neurons of their own
    assert run.outcome is Outcome.SETTLED
    assert 1 < int(run.settled_at.max()) <= 1 + snn.bound
    assert torch.equal(run.logits[-1], snn.qann(few))
    assert not torch.equal(run.logits[0], run.logits[-1])
