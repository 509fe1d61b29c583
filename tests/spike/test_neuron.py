"""The ST-BIF neuron: its rule, value by value, and its cumulative form, which is the same neuron."""

from __future__ import annotations

import pytest
import torch

from spikezip.errors import StageError
from spikezip.levels import Levels
from spikezip.quantize import Quantizer
from spikezip.spike import STBIF, membrane_step
from spikezip.spike.neuron import spikes_of


@pytest.mark.parametrize(
    ("membrane", "tracer", "spike"),
    [
        (2.0, 0, 1),  # the threshold itself fires
        (1.75, 0, 0),
        (9.0, 0, 1),  # one spike a step, however far above
        (2.0, 3, 0),  # at the highest code
        (2.0, 2, 1),
        (0.0, 1, 0),  # nothing is owed yet
        (-0.25, 1, -1),
        (-9.0, 1, -1),
        (-0.25, -1, -1),
        (-0.25, -2, 0),  # at the lowest code
        (1.0, -2, 0),
    ],
)
def test_when_a_neuron_fires(membrane, tracer, spike):
    levels, theta = Levels(-2, 3), 2.0
    v, s = torch.tensor([membrane]), torch.tensor([float(tracer)])
    assert spikes_of(v, s, theta, levels).tolist() == [spike]
    after, traced, sent = membrane_step(v - 0.5, s, torch.tensor([0.5]), theta, levels)
    assert sent.tolist() == [spike]
    assert traced.tolist() == [tracer + spike]
    assert after.tolist() == [membrane - theta * spike]
    assert spikes_of(v, s, theta, levels).dtype is s.dtype


@pytest.mark.parametrize("levels", [Levels(0, 3), Levels(-2, 2), Levels(0, 1), Levels(-3, 0)])
def test_the_cumulative_form_is_the_published_neuron(levels):
    """Quarters of a threshold, ties among them: tracer, membrane and target at every step."""
    theta, generator = torch.tensor(0.5), torch.Generator().manual_seed(0)
    neuron = STBIF(levels, theta)
    v, s = torch.full((200,), 0.25), torch.zeros(200)
    u, tracer = torch.zeros(200), torch.zeros(200)
    for _ in range(30):
        current = torch.randint(-8, 9, (200,), generator=generator) / 8
        u = u + current
        v, s, spikes = membrane_step(v, s, current, theta, levels)
        before, tracer = tracer, neuron(u, tracer)
        assert torch.equal(tracer, s)
        assert torch.equal(spikes, tracer - before)
        assert torch.equal(v, theta / 2 + u - theta * tracer)
    assert torch.equal(neuron.target(u), levels.codes(u, 0.5))
    for _ in range(neuron.settling_steps()):
        tracer = neuron(u, tracer)
    assert torch.equal(tracer, neuron.target(u))


def test_ties_go_up_as_in_the_quantizer():
    levels, theta = Levels(0, 7), torch.tensor(0.5)
    drive = torch.arange(-8, 40) * 0.125
    tracer = torch.zeros_like(drive)
    neuron = STBIF(levels, theta)
    for _ in range(levels.range):
        tracer = neuron(drive, tracer)
    assert torch.equal(tracer * theta, Quantizer(levels, 0.5)(drive).detach())


def test_slew_limits_a_step_both_ways():
    neuron = STBIF(Levels(-4, 7), torch.tensor(1.0), slew=3)
    assert neuron(torch.tensor([9.0, -9.0, 2.0, 1.0]), torch.tensor([0.0, 7.0, 0.0, 1.0])).tolist() == [3, 4, 2, 1]


def test_a_slew_beyond_all_levels_limits_nothing():
    neuron = STBIF(Levels(-4, 7), torch.tensor(1.0), slew=2**70)
    assert neuron(torch.tensor([9.0, -9.0]), torch.tensor([-4.0, 7.0])).tolist() == [7, -4]


@pytest.mark.parametrize(
    ("levels", "slew", "steps"),
    [(Levels(0, 7), 1, 7), (Levels(0, 7), 2, 4), (Levels(-4, 3), 7, 1), (Levels(0, 7), 99, 1)],
)
def test_settling_steps(levels, slew, steps):
    assert STBIF(levels, torch.tensor(1.0), slew).settling_steps() == steps


@pytest.mark.parametrize("slew", [0, -1, 1.5, True])
def test_a_neuron_moves_a_whole_number_of_levels(slew):
    with pytest.raises(StageError, match="whole number of levels a step, at least 1"):
        STBIF(Levels(0, 7), torch.tensor(1.0), slew)


def test_what_a_layer_holds():
    theta = torch.nn.Parameter(torch.tensor(0.25))
    neuron = STBIF(Levels(-4, 3), theta)
    with torch.no_grad():
        theta.fill_(1.0)
    assert neuron.slew == 1
    assert not neuron.threshold.requires_grad
    assert neuron.state_dict() == {"threshold": torch.tensor(0.25)}
    assert "-4..3, theta=0.25, slew=1" in repr(neuron)
