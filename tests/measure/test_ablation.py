"""The comparison of neurons: with ST-BIF it is the SNN itself, and its accumulates are those of the count."""

from __future__ import annotations

import pytest
import torch
from hand_networks import Copies, image, spiking
from torch import nn

from random_networks import Drawn, shuffle_statistics
from spikezip.errors import StageError
from spikezip.graph import capture
from spikezip.levels import Levels
from spikezip.measure import ablate, count
from spikezip.morph import morph
from spikezip.quantize import quantize, to_integer
from spikezip.run import Engine, execute
from spikezip.spike import Even, Pulse, spike
from spikezip.spike.neurons import NEURONS, IntegrateAndFire, Radix, SpikeTracking


@pytest.fixture(scope="module")
def network():
    """Integer weights, residuals, a chain; codes 0..3 where values are not negative."""
    images = torch.randn(6, *Drawn.input_shape, generator=torch.Generator().manual_seed(0))
    model = shuffle_statistics(Drawn(["residual", "chain", "residual"], seed=2)).eval()
    return to_integer(quantize(morph(capture(model, images[:1])), Levels(0, 3), images), 8), images


@pytest.mark.parametrize("encoding", [Pulse(), Even(5)])
def test_spike_tracking_is_the_network_itself(network, encoding):
    qann, images = network
    snn = spike(qann, encoding)
    steps = snn.t_off(1) + snn.bound
    run = execute(snn, images, steps, engine=Engine.REFERENCE, stop=False)
    found = ablate(snn, SpikeTracking(), images, steps, batch=4)
    torch.testing.assert_close(found.logits, run.logits, rtol=1e-5, atol=1e-5)
    assert found.spikes.tolist() == pytest.approx(run.total_spikes.double().mean(1).tolist())
    assert found.differ[-1] == 0 < found.differ[0]
    counted = count(snn, images, steps)
    assert found.synops.tolist() == pytest.approx(counted.snn("ac").tolist())


def test_what_is_refused(network):
    qann, images = network
    snn = spike(qann)
    for steps in (0, -1, None, 2.5):
        with pytest.raises(StageError, match=f"steps={steps}"):
            ablate(snn, SpikeTracking(), images, steps)
    with pytest.raises(StageError, match="batch=0"):
        ablate(snn, SpikeTracking(), images, 4, batch=0)
    for neuron in ("IF", IntegrateAndFire, None):
        with pytest.raises(StageError, match=r"is no neuron; give a value such as IntegrateAndFire\(\)"):
            ablate(snn, neuron, images, 4)
    with pytest.raises(StageError, match=r"have up to 3 levels\. Call spike\(qann, \.\.\., slew=1\)"):
        ablate(spike(qann, slew=3), SpikeTracking(), images, 4)


def test_accumulates_by_hand():
    """One spike in the corner of 3x3 reaches 4 synapses of a padded 3x3 convolution."""
    snn = spiking(Copies(1, nn.Conv2d(1, 1, 3, padding=1, bias=False)), (1, 3, 3))
    found = ablate(snn, IntegrateAndFire(), image((1, 3, 3), {(0, 0, 0): 2.0}), 4)
    assert found.spikes.tolist() == [1, 1, 0, 0]
    assert found.synops.tolist() == [4, 4, 0, 0]


def test_radix_after_its_windows_is_the_qann(network):
    qann, images = network
    snn = spike(qann)
    depth = 2 * len(snn.layers)
    found = ablate(snn, Radix(waits=True), images, depth)
    assert found.differ[-1] == 0
    torch.testing.assert_close(found.logits[-1], qann(images), rtol=1e-5, atol=1e-5)


def test_radix_waits_for_layers_of_more_bits_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    images = torch.randn(16, 16)
    qann = quantize(morph(capture(model, images[:1])), Levels(0, 1), images, signed_levels=Levels(0, 7))
    assert ablate(spike(qann), Radix(waits=True), images, 6).differ[-1] == 0


def test_the_others_do_not_end_at_the_qann():
    """Else the comparison would show nothing: only what takes back, within the levels, or waits, ends at the codes."""
    torch.manual_seed(1)
    layers = [m for _ in range(4) for m in (nn.Linear(32, 32), nn.ReLU())]
    images = torch.randn(16, 32)
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight.mul_(3)
    qann = quantize(morph(capture(nn.Sequential(*layers, nn.Linear(32, 4)), images[:1])), Levels(0, 7), images)
    snn = spike(to_integer(qann, 8))
    ends = {name: float(ablate(snn, neuron, images, 40).differ[-1]) for name, neuron in NEURONS.items()}
    exact = {"ST-BIF", "radix-weighted, layer after layer"}
    assert {name for name, share in ends.items() if share == 0} == exact, ends


@pytest.mark.parametrize("name", NEURONS)
def test_what_is_at_rest_stays_so(name, monkeypatch):
    """Passing over steps that a neuron calls silent changes nothing."""
    torch.manual_seed(2)
    images = torch.randn(4, 6) * torch.tensor([0.0, 0.3, 1.0, 3.0]).unsqueeze(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    snn = spike(to_integer(quantize(morph(capture(model, images[:1])), Levels(0, 7), images), 8), Even(3))
    neuron = NEURONS[name]
    found = ablate(snn, neuron, images, 48, batch=2)
    monkeypatch.setattr(type(neuron), "rest", lambda *_: 1000)
    whole = ablate(snn, neuron, images, 48, batch=2)
    for part in ("logits", "differ", "spikes", "synops"):
        assert torch.equal(getattr(found, part), getattr(whole, part)), part
