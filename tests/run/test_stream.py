"""Frames that replace each other: state is kept, settled frames are the QANN's answers, only changes cost spikes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from random_networks import Drawn, shuffle_statistics
from spikezip.errors import InputError, StageError
from spikezip.graph import capture
from spikezip.morph import morph
from spikezip.pipeline import spike as spike_for_users
from spikezip.quantize import quantize, to_integer
from spikezip.run import Engine, execute, stream
from spikezip.spike import Constant, Even, Pulse, Shares, spike

STEPS = 24


def frames(count: int, batch: int = 2) -> Tensor:
    return torch.randn(count, batch, *Drawn.input_shape, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def qann():
    model = shuffle_statistics(Drawn(["residual", "squeeze and excitation"], outputs=2, seed=1)).eval()
    images = frames(8).flatten(0, 1)
    return to_integer(quantize(morph(capture(model, images[:1])), 8, images))


@pytest.mark.parametrize("engine", Engine)
@pytest.mark.parametrize("encoding", [Pulse(), Even(3), Even(4), Constant()])
def test_every_settled_frame_is_the_qanns_answer(qann, engine, encoding):
    snn, film = spike(qann, encoding), frames(4)
    what = stream(snn, film, STEPS, engine=engine)
    assert what.engine == engine.value
    assert [o.shape[:3] for o in what.outputs] == [(4, STEPS, 2)] * 2
    if not isinstance(encoding, Constant):  # which completes a frame at its very last step
        assert bool(what.settled.all())
    for f in range(4):
        wanted = snn.qann(film[f])
        for output, expected in zip(what.outputs, wanted, strict=True):
            for image in torch.nonzero(what.settled[f]).flatten().tolist():
                assert torch.equal(output[f, -1, image], expected[image])


@pytest.mark.parametrize("engine", Engine)
@pytest.mark.parametrize("encoding", [Pulse(), Even(3)])
def test_an_identical_frame_costs_nothing_and_a_small_change_little(qann, engine, encoding):
    film = frames(3)
    film[1] = film[0]
    film[2] = film[1]
    film[2, :, 0, 0, 0] += 0.5
    spikes = stream(spike(qann, encoding), film, STEPS, engine=engine).total_spikes
    alone = stream(spike(qann, encoding), film[2:], STEPS, engine=engine).total_spikes[0]
    assert spikes[1].tolist() == [0, 0]
    assert bool((spikes[2] > 0).any())
    assert bool((2 * spikes[2] < alone).all())


def test_engines_tell_the_same_story(qann):
    film = frames(3)
    stories = [stream(spike(qann, Even(2)), film, 7, engine=e) for e in Engine]
    for other in stories[1:]:
        assert torch.equal(stories[0].settled_at, other.settled_at)
        assert all(torch.equal(a, b) for a, b in zip(stories[0].outputs, other.outputs, strict=True))
        assert all(torch.equal(stories[0].spikes[k], other.spikes[k]) for k in stories[0].spikes)


def test_a_frame_too_short_says_so(qann):
    what = stream(spike(qann), frames(2), 2)
    assert not bool(what.settled.any())
    late = stream(spike(qann, Even(8)), frames(2), 4)
    assert not bool(late.settled.any())
    assert late.outputs[0].shape[:2] == (2, 4)


def test_a_stream_goes_on(qann):
    film = frames(4)
    whole = stream(spike(qann), film, STEPS)
    first = stream(spike(qann), film[:2], STEPS)
    second = stream(spike(qann), film[2:], STEPS, state=first.state)
    assert torch.equal(torch.cat([first.total_spikes, second.total_spikes]), whole.total_spikes)
    assert torch.equal(torch.cat([first.logits, second.logits]), whole.logits)


@pytest.mark.parametrize("engine", Engine)
def test_a_share_of_1_on_the_way_is_not_the_end_of_it(qann, engine):
    dips, film = spike(qann, Shares((4, 1, 4)), bias_encoding=Pulse()), frames(2)
    what = stream(dips, film, STEPS, engine=engine)
    state = execute(dips, film[0], STEPS, engine=engine).state
    at_once = replace(dips, encoding=Pulse())
    for t, x in enumerate((film[1], torch.lerp(film[0], film[1], 0.25), film[1])):
        shown = execute(at_once, x, 1, engine=engine, state=state)
        assert torch.equal(what.outputs[0][1, t], shown.logits[0])
        state = shown.state
    assert int(what.settled_at[1].min()) >= 3
    cut = stream(dips, torch.stack([film[0]] * 2), 2, engine=engine)
    assert not bool(cut.settled.any())


def test_first_frame_is_an_ordinary_run(qann):
    film = frames(1)
    run = execute(spike(qann, Even(2)), film[0], STEPS)
    what = stream(spike(qann, Even(2)), film, STEPS)
    assert torch.equal(what.outputs[0][0], run.logits)
    assert torch.equal(what.settled_at[0], run.settled_at)


def test_method_of_the_network(qann):
    what = spike_for_users(qann).stream(frames(2), STEPS)
    assert bool(what.settled.all())


def test_what_is_refused(qann):
    snn = spike(qann)
    with pytest.raises(StageError, match="steps_per_frame=0"):
        stream(snn, frames(2), 0)
    with pytest.raises(InputError, match=r"\[F, B, \.\.\.\]"):
        stream(snn, torch.zeros(3), 4)
    with pytest.raises(InputError, match=r"\[B, 2, 5, 5\]"):
        stream(snn, frames(2)[:, 0], 4)
    with pytest.raises(InputError, match=r"\[F, B"):
        stream(snn, frames(2)[:0], 4)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b, self.out = nn.Linear(3, 8), nn.Linear(2, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(torch.relu(self.a(x)) * torch.sigmoid(self.b(y)))


def test_several_inputs():
    generator = torch.Generator().manual_seed(2)
    film = (torch.randn(4, 3, 3, generator=generator), torch.randn(4, 3, 2, generator=generator))
    images = tuple(x.flatten(0, 1) for x in film)
    ann = morph(capture(TwoInputs(), tuple(x[:1] for x in images)))
    snn = spike(to_integer(quantize(ann, 8, [images])))
    what = stream(snn, film, STEPS)
    for f in range(4):
        assert torch.equal(what.logits[f], snn.qann(*(x[f] for x in film)))
    with pytest.raises(InputError, match="numbers of frames"):
        stream(snn, (film[0], film[1][:2]), STEPS)
