"""Leaving early: every engine lets the same images go at the same step, with the very logits of that step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from spikezip.errors import InputError, StageError
from spikezip.graph import capture
from spikezip.levels import Levels
from spikezip.morph import morph
from spikezip.quantize import quantize, to_integer
from spikezip.run import Engine, Entropy, Margin, Outcome, Probability, Run, Settled, execute, parse_exit, sweep
from spikezip.spike import Even, Pulse, spike

RULES = [Margin(0.4), Probability(0.6), Entropy(0.2), Settled()]


@pytest.fixture(scope="module")
def network():
    """An integer network in which images leave at different steps, some never before they settle."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 25, 24), nn.ReLU(), nn.Linear(24, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[-1].weight.mul_(60)
    images = torch.randn(23, 1, 5, 5) * torch.linspace(0.05, 4, 23).reshape(-1, 1, 1, 1)
    qann = to_integer(quantize(morph(capture(model, images[:1])), Levels(0, 7), images), 8)
    return qann, images


def whole(snn, images: Tensor, steps: int) -> Run:
    return execute(snn, images, steps, engine=Engine.REFERENCE, stop=False)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("encoding", [Pulse(), Even(4)])
@pytest.mark.parametrize("engine", list(Engine))
def test_an_image_leaves_with_the_logits_of_its_exit_step(network, rule, encoding, engine):
    qann, images = network
    snn = spike(qann, encoding)
    full = whole(snn, images, 24)
    run = execute(snn, images, 24, engine=engine, early_exit=rule, batch=9)
    assert run.exited_at is not None
    left = {}
    for i in range(len(images)):  # by hand: step by step, image by image
        for t in range(1, 25):
            sure = bool(rule.confident(full.logits[t - 1, i]))
            if sure or (full.settled_at[i] > 0 and t >= full.settled_at[i]):
                left[i] = t
                break
    assert run.exited_at.tolist() == [left[i] for i in range(len(images))]
    assert len(set(left.values())) > 2  # not all at once, or this shows little
    assert torch.equal(run.answered_at, run.exited_at)
    for i, t in left.items():
        torch.testing.assert_close(run.answer[i], full.logits[t - 1, i], rtol=0, atol=0)
        torch.testing.assert_close(run.logits[: t - 1, i], full.logits[: t - 1, i], rtol=0, atol=0)
        for name, _ in snn.layers:
            assert torch.equal(run.spikes[name][:t, i], full.spikes[name][:t, i])
            assert torch.equal(run.negative[name][:t, i], full.negative[name][:t, i])
            assert not run.spikes[name][t:, i].any()
        settled = int(full.settled_at[i])
        assert int(run.settled_at[i]) == (settled if settled == t else -1)
    early = any(left[i] < int(full.settled_at[i]) for i in left)
    assert run.outcome is (Outcome.CONFIDENT if early else Outcome.SETTLED)
    assert early != isinstance(rule, Settled)


@pytest.mark.parametrize("block", [1, 2, 5, 32])
def test_blocks_decide_what_is_computed_and_not_what_comes_out(network, block):
    qann, images = network
    snn = spike(qann)
    expected = execute(snn, images, engine=Engine.REFERENCE, early_exit=RULES[0])
    found = sweep(snn, (images,), 40, early_exit=RULES[0], block=block, chunk=5)
    assert found.exited_at is not None and expected.exited_at is not None
    assert torch.equal(found.exited_at, expected.exited_at)
    assert torch.equal(found.settled_at, expected.settled_at)
    assert found.steps == expected.steps
    assert torch.equal(found.logits, expected.logits)
    for name in expected.codes:
        assert torch.equal(found.codes[name], expected.codes[name]), name
        assert torch.equal(found.spikes[name], expected.spikes[name]), name


def test_images_that_left_are_not_computed_any_further(network):
    """The observer of the sweep is told of the images still running: after their block, none that has left."""
    qann, images = network
    snn = spike(qann)
    told: dict[int, set[int]] = {}
    run = sweep(
        snn,
        (images,),
        40,
        early_exit=RULES[0],
        block=2,
        observe=lambda layer, t, which, codes: told.setdefault(t, set()).update(which.tolist()),
    )
    assert run.exited_at is not None
    for t, which in told.items():
        assert which == {i for i, left in enumerate(run.exited_at.tolist()) if left >= t}


def test_without_enough_steps_an_unsure_image_says_so(network):
    qann, images = network
    run = execute(spike(qann), images, 2, early_exit=Margin(0.4))
    assert run.exited_at is not None and run.outcome is Outcome.STEP_LIMIT
    assert {-1} < set(run.exited_at.tolist())
    assert torch.equal(run.answered_at, torch.where(run.exited_at > 0, run.exited_at, 2))


def test_a_threshold_of_0_lets_all_go_at_once_and_without_a_rule_nothing_is_said(network):
    qann, images = network
    run = execute(spike(qann), images, early_exit=Margin(0.0))
    assert (run.steps, run.outcome) == (1, Outcome.CONFIDENT)
    assert run.exited_at is not None and set(run.exited_at.tolist()) == {1}
    plain = execute(spike(qann), images)
    assert plain.exited_at is None and torch.equal(plain.answered_at, plain.settled_at)


def test_confidences_by_hand():
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    assert float(Margin.confidence(p.log())) == pytest.approx(0.5)
    assert float(Probability.confidence(p.log())) == pytest.approx(0.7)
    entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    assert float(Entropy.confidence(p.log())) == pytest.approx(1 - entropy / math.log(3))
    certain, ignorant = torch.tensor([200.0, 0.0, 0.0]), torch.zeros(3)
    masked = torch.tensor([50.0, 0.0, -math.inf])  # a class that cannot be
    for kind in (Margin, Probability, Entropy):
        assert float(kind.confidence(masked)) == pytest.approx(1)
    for kind in (Margin, Entropy):
        assert float(kind.confidence(certain)) == pytest.approx(1)
        assert float(kind.confidence(ignorant)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 5, 13, 1000])
def test_a_threshold_of_0_asks_for_nothing_however_many_classes(classes):
    for kind in (Margin, Probability, Entropy):
        assert bool(kind(0.0).confident(torch.zeros(classes))), "equal logits: the entropy may round to above ln C"


def test_what_is_written_on_a_command_line():
    assert parse_exit("settled") == Settled()
    assert parse_exit("entropy:0.8") == Entropy(0.8)
    for text in ("margin", "margin:x", "settled:1", "sure:0.5"):
        with pytest.raises(InputError, match=r"for example margin:0\.6"):
            parse_exit(text)
    with pytest.raises(InputError, match="from 0 to 1"):
        parse_exit("margin:1.5")


@pytest.mark.parametrize("rule", ["margin", "margin:0.6", Margin, Settled, 0.5, ""])
def test_what_is_no_rule_is_refused(network, rule):
    qann, images = network
    with pytest.raises(InputError, match=r"is no rule; give a value such as Settled\(\).*parse_exit\(\)"):
        execute(spike(qann), images[:2], 4, early_exit=rule)


def test_a_network_without_classes_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    images = torch.rand(8, 4)
    snn = spike(quantize(morph(capture(model, images[:1])), 4, images))
    for engine in Engine:
        with pytest.raises(StageError, match="2 classes or more"):
            execute(snn, images, engine=engine, early_exit=Margin(0.5))
