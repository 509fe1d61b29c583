"""A state to go on from is this network's, of these images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spikezip
from spikezip.errors import InputError, StageError
from spikezip.run import Engine, Outcome, State, execute


@pytest.fixture(scope="module")
def snn():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    return spikezip.convert(model, torch.zeros(1, 6), torch.rand(32, 6))


@pytest.mark.parametrize("engine", list(Engine))
def test_going_on_from_a_state_is_the_run_gone_through(snn, engine):
    images = torch.rand(4, 6)
    whole = execute(snn, images, 6, engine=engine, stop=False)
    first = execute(snn, images, 2, engine=engine, stop=False)
    then = execute(snn, images, 4, engine=engine, stop=False, state=first.state)
    assert torch.equal(then.logits, whole.logits[2:])


@pytest.mark.parametrize("engine", list(Engine))
def test_a_state_of_other_images_is_refused(snn, engine):
    state = execute(snn, torch.rand(2, 6), 4, engine=engine).state
    with pytest.raises(InputError, match=r"'1'; those of 4 images have shape \(4, 12\)\. Go on with the images"):
        execute(snn, torch.rand(4, 6), 1, engine=engine, state=state)


def test_a_state_of_another_network_is_refused(snn):
    with pytest.raises(InputError, match=r"no tracers of layer '1'.*another network"):
        execute(snn, torch.rand(4, 6), 1, state=State({"other": torch.zeros(4, 12)}))


@pytest.mark.parametrize("engine", list(Engine))
def test_the_state_of_a_network_of_other_weights_ends_at_the_right_answer(snn, engine):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    images = torch.rand(32, 6)
    other = spikezip.convert(model, images[:1], images)
    run = execute(other, images, engine=engine, state=execute(snn, images, engine=engine).state)
    assert run.outcome is Outcome.SETTLED
    assert torch.equal(run.answer, other.qann(images))


@pytest.mark.parametrize("engine", list(Engine))
def test_a_state_that_does_not_belong_is_refused(snn, engine):
    images = torch.rand(4, 6)
    run = execute(snn, images, engine=engine)
    more = State({**run.codes, "other": run.codes["1"]})
    with pytest.raises(InputError, match="tracers of 'other', which this network has not"):
        execute(snn, images, engine=engine, state=more)
    with pytest.raises(InputError, match="no tracers of layer '1'"):
        execute(snn, images, engine=engine, state=State({name: codes > 0 for name, codes in run.codes.items()}))
    memory = execute(snn, torch.rand(9, 6), engine=Engine.EVENT).memory
    with pytest.raises(InputError, match="memory is not of 4 images"):
        execute(snn, images, engine=engine, state=State(run.codes, memory))


def test_what_is_no_state_is_refused(snn):
    images = torch.rand(4, 6)
    run = execute(snn, images, 2)
    for wrong, what in ((run, "Run"), ({}, "dict"), (dict(run.codes), "dict")):
        with pytest.raises(InputError, match=f"The state is a {what}; give the .state of a run"):
            snn.run(images, 2, state=wrong)
        with pytest.raises(InputError, match=f"The state is a {what}"):
            snn.stream(images.unsqueeze(0), 2, state=wrong)
    turned = State({name: codes.T.reshape(4, 2, -1) for name, codes in run.codes.items()})
    with pytest.raises(InputError, match=r"shape \(4, 2, 6\) for layer '1'"):
        snn.run(images, 2, state=turned)
    with pytest.raises(InputError, match="no tracers of layer '1'"):
        snn.run(images, 2, state=State({name: codes.tolist() for name, codes in run.codes.items()}))


@pytest.mark.parametrize("batch", [0, -1, 2.0, True])
def test_a_batch_that_is_no_count_is_refused(snn, batch):
    with pytest.raises(StageError, match="at least 1"):
        execute(snn, torch.rand(4, 6), 1, batch=batch)


def test_a_run_from_a_state_goes_on_until_all_have_settled():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    images = torch.randn(40, 6)
    snn = spikezip.convert(model, images[:1], images, levels=3, initial_code=1)
    before = execute(snn, images[:8])
    after = execute(snn, images[8:16], state=before.state)
    assert after.outcome is Outcome.SETTLED
    assert torch.equal(after.logits[-1], snn.qann(images[8:16]))


@pytest.mark.parametrize("change", [lambda t: t + 300, lambda t: t + 0.5, lambda t: t * float("nan")])
def test_tracers_that_no_run_has_are_refused(snn, change):
    images = torch.rand(4, 6)
    state = execute(snn, images, 2).state
    with pytest.raises(InputError, match=r"not all whole numbers in 0\.\.7"):
        execute(snn, images, 2, state=State({name: change(t.float()) for name, t in state.tracers.items()}))
