"""Each neuron of the comparison against a sequence worked out by hand: theta = 1, codes 0..3, v_0 = 1/2."""

from __future__ import annotations

import pytest
import torch

from spikezip.errors import StageError
from spikezip.levels import Levels
from spikezip.spike.neuron import membrane_step
from spikezip.spike.neurons import (
    NEURONS,
    Bipolar,
    CappedIF,
    Group,
    IntegrateAndFire,
    Leaky,
    Neuron,
    Radix,
    SignedIF,
    SpikeTracking,
    When,
)

LEVELS = Levels(0, 3)


def follow(neuron: Neuron, currents: list[float], levels: Levels = LEVELS, depth: int = 0) -> list[int]:
    """What the neuron sends, step by step."""
    theta = torch.ones((), dtype=torch.float64)
    membrane, sent = torch.full((1,), 0.5, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    out = []
    for t, current in enumerate(currents, 1):
        membrane = neuron.decay * membrane + current
        fired = neuron.fire(membrane, sent, theta, levels, When(t, 1, depth))
        membrane, sent = membrane - theta * fired, sent + fired
        out.append(int(fired))
    return out


# A drive that overshoots: 2.6 at once, then 1.6 taken back, then nothing. U = 2.6, 1.0, 1.0, ...; Q(1.0) = 1.
OVERSHOOT = [2.6, 0.0, -1.6, 0.0, 0.0]
# More than the highest code: U = 5 at once; Q(5) = 3.
TOO_MUCH = [5.0, 0.0, 0.0, 0.0, 0.0]
# Below zero for a while: U = -1.2, -1.2, 0.9, ...; Q(0.9) = 1.
BELOW = [-1.2, 0.0, 2.1, 0.0, 0.0]


@pytest.mark.parametrize(
    ("neuron", "overshoot", "too_much", "below"),
    [
        # v before firing, overshoot: 3.1, 2.1, -0.5, 0.5 | too much: 5.5, 4.5, 3.5, 2.5 | below: -0.7, -0.7, 1.4, 0.4
        (SpikeTracking(), [1, 1, -1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 1, 0, 0]),
        # v: 3.1, 2.1, -0.5, -0.5: the second spike stays sent
        (IntegrateAndFire(), [1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]),
        (CappedIF(), [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 1, 0, 0]),
        # takes back, but goes on past the highest code
        (SignedIF(), [1, 1, -1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]),
        # below: v = -0.7 -> -1, 0.3 -> 0, 2.4 -> 1, 1.4 -> 1, 0.4 -> 0: its total was -1 after one step
        (Bipolar(), [1, 1, -1, 0, 0], [1, 1, 1, 1, 1], [-1, 0, 1, 1, 0]),
        # floor(3.1) = 3 at once; v: 0.1, 0.1, -1.5, -1.5 | floor(5.5) = 5, at most 4; then 1.5 -> 1, 0.5 -> 0
        (Group(4), [3, 0, 0, 0, 0], [4, 1, 0, 0, 0], [0, 0, 1, 0, 0]),
        (Group(2), [2, 1, 0, 0, 0], [2, 2, 1, 0, 0], [0, 0, 1, 0, 0]),
        # weights 2, 1, 2, 1, 2; v: 3.1 -> 2, 1.1 -> 1, -1.5, -1.5, -1.5 | 5.5 -> 2, 3.5 -> 1, 2.5 -> 2, 0.5, 0.5
        # below: -0.7, -0.7, 1.4 < 2, 1.4 >= 1 -> 1, 0.4
        (Radix(), [2, 1, 0, 0, 0], [2, 1, 2, 0, 0], [0, 0, 0, 1, 0]),
    ],
    ids=lambda value: str(value) if not isinstance(value, list) else "",
)
def test_by_hand(neuron, overshoot, too_much, below):
    assert follow(neuron, OVERSHOOT) == overshoot
    assert follow(neuron, TOO_MUCH) == too_much
    assert follow(neuron, BELOW) == below


def test_a_leak_forgets_what_waited():
    # keep = 1/2, a current of 0.5 a step: v = 0.75, 0.875, 0.9375, ... never reaches 1; IF fires every other step.
    assert follow(Leaky(0.5), [0.5] * 6) == [0] * 6
    assert follow(IntegrateAndFire(), [0.5] * 6) == [1, 0, 1, 0, 1, 0]
    # v = 0.25 + 2.0 = 2.25 -> 1; 0.625; 0.3125: of a drive of 2, one spike.
    assert follow(Leaky(0.5), [2.0, 0.0, 0.0]) == [1, 0, 0]
    assert follow(Leaky(1.0), OVERSHOOT) == follow(IntegrateAndFire(), OVERSHOOT)


def test_radix_waits_for_the_layers_before_and_is_then_the_quantizer():
    # Depth 1, 2 bits: its window is steps 3 and 4, whatever came before.
    assert follow(Radix(waits=True), [2.6, 0.0, -1.6, 0.0, 0.0], depth=1) == [0, 0, 0, 1, 0]
    for drive in (-3.0, 0.49, 0.5, 1.2, 1.5, 2.5, 2.6, 9.0):
        sent = sum(follow(Radix(waits=True), [drive, 0, 0, 0]))
        assert sent == int(LEVELS.codes(torch.tensor(drive), 1.0))
    # Before the input is complete (t_off = 3) it waits too.
    fired = Radix(waits=True).fire(torch.tensor([3.5]), torch.zeros(1), torch.tensor(1.0), LEVELS, When(2, 3, 0))
    assert fired.tolist() == [0.0]


def test_spike_tracking_is_the_published_recursion():
    generator = torch.Generator().manual_seed(0)
    currents = torch.randn(30, 200, generator=generator, dtype=torch.float64) * 1.5
    theta, levels = torch.tensor(0.7, dtype=torch.float64), Levels(-2, 5)
    membrane = torch.full((200,), 0.35, dtype=torch.float64)
    sent = torch.zeros(200, dtype=torch.float64)
    v, s = membrane, sent
    for t, current in enumerate(currents, 1):
        v, s, spikes = membrane_step(v, s, current, theta, levels)
        fired = SpikeTracking().fire(membrane + current, sent, theta, levels, When(t))
        membrane, sent = membrane + current - theta * fired, sent + fired
        assert torch.equal(fired, spikes)
        assert torch.equal(sent, s)


def test_spikes_are_counted_one_by_one_and_weighted_ones_once():
    assert Group(4).spikes(torch.tensor([3.0, 0.0])).tolist() == [3.0, 0.0]
    assert Radix().spikes(torch.tensor([4.0, 0.0])).tolist() == [1.0, 0.0]
    assert SignedIF().spikes(torch.tensor([-1.0, 1.0])).tolist() == [1.0, 1.0]


def test_each_says_where_it_is_from_and_refuses_nonsense():
    assert len(NEURONS) == 9
    assert all(neuron.source and neuron.alphabet for neuron in NEURONS.values())
    with pytest.raises(StageError, match="at least 1"):
        Group(0)
    for keep in (0.0, "a", None, True):
        with pytest.raises(StageError, match="keeps more than nothing"):
            Leaky(keep)
