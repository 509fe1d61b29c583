"""Early exit measured: against runs written by hand, and against the engines."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spikezip
from spikezip.errors import InputError
from spikezip.measure import choose_threshold, exit_curve, exit_point, exit_run, exit_steps
from spikezip.measure.exits import CURVE
from spikezip.run import Entropy, Margin, Outcome, Probability, Run, Settled


def by_hand(margins: list[list[float]], answers: list[list[int]], settled_at: list[int]) -> Run:
    """A run of 2 classes, ``[T][B]``: the answer at each step and the softmax margin it is given with."""
    gap = torch.atanh(torch.tensor(margins, dtype=torch.float64)) * 2  # softmax margin of two classes is tanh(gap / 2)
    sign = torch.tensor(answers, dtype=torch.float64) * 2 - 1
    logits = torch.stack([-sign * gap / 2, sign * gap / 2], -1)
    spikes = torch.arange(1, len(margins) + 1).unsqueeze(1).expand(len(margins), len(settled_at))
    rest = torch.tensor(settled_at)
    outcome = Outcome.SETTLED if bool((rest > 0).all()) else Outcome.STEP_LIMIT
    return Run((logits,), rest, outcome, {"all": spikes}, {}, {}, 1, "sweep")


RUN = by_hand(
    #  image 0 is sure and right at once; 1 is sure and wrong first; 2 is never sure; 3 becomes sure at step 3
    [[0.9, 0.7, 0.1, 0.1], [0.9, 0.3, 0.1, 0.2], [0.9, 0.6, 0.2, 0.8], [0.9, 0.6, 0.2, 0.8]],
    [[1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]],
    [1, 3, 3, 4],
)
LABELS = torch.tensor([1, 1, 1, 1])


def test_exit_steps_by_hand():
    assert exit_steps(RUN, Margin(0.65)).tolist() == [1, 1, 3, 3]
    assert exit_steps(RUN, Margin(0.75)).tolist() == [1, 3, 3, 3]
    assert exit_steps(RUN, Settled()).tolist() == [1, 3, 3, 4]
    assert exit_steps(RUN, Margin(0.0)).tolist() == [1, 1, 1, 1]
    # With two classes p = (1 + margin) / 2.
    assert exit_steps(RUN, Probability(0.825)).tolist() == [1, 1, 3, 3]
    assert exit_steps(RUN, Probability(0.875)).tolist() == [1, 3, 3, 3]


def test_an_image_that_never_ends_takes_all_steps():
    run = by_hand([[0.1], [0.1]], [[1], [1]], [-1])
    assert exit_steps(run, Margin(0.5)).tolist() == exit_steps(run, Settled()).tolist() == [2]


def test_exit_point_by_hand():
    point = exit_point(RUN, LABELS, Margin(0.65))
    assert (point.mean_step, point.accuracy) == (2.0, 0.75)
    assert point.spikes == (1 + 1 + 6 + 6) / 4  # t spikes at step t, up to the exit
    assert exit_point(RUN, LABELS, Settled()).accuracy == 1.0


def test_the_threshold_with_the_least_steps_that_loses_nothing():
    chosen = choose_threshold(RUN, LABELS, Margin)
    assert isinstance(chosen.rule, Margin) and 0.7 < chosen.rule.threshold <= 0.8
    assert (chosen.accuracy, chosen.mean_step) == (1.0, 2.5)
    cheaper = choose_threshold(RUN, LABELS, Margin, lost=0.25)
    assert (cheaper.accuracy, cheaper.mean_step) == (0.75, 2.0)


def test_a_softmax_of_1_may_be_wrong_and_no_threshold_keeps_the_accuracy():
    run = by_hand([[0.9, 0.5], [0.9, 0.5]], [[0, 1], [1, 1]], [2, 2])
    run.logits[0, 0] *= 1000
    assert exit_point(run, LABELS[:2], Settled()).accuracy == 1.0
    for kind in (Margin, Probability, Entropy):
        with pytest.raises(InputError, match=r"every threshold of \w+ loses 0\.5 of the accuracy.*Settled\(\)"):
            choose_threshold(run, LABELS[:2], kind, lost=0.1)
        assert choose_threshold(run, LABELS[:2], kind, lost=0.5).accuracy == 0.5


def test_the_most_accurate_threshold_within_a_mean_step():
    assert choose_threshold(RUN, LABELS, Margin, mean_step=2.5).accuracy == 1.0
    assert choose_threshold(RUN, LABELS, Margin, mean_step=2.0).accuracy == 0.75
    at_once = choose_threshold(RUN, LABELS, Margin, mean_step=1.0)
    assert (at_once.mean_step, at_once.accuracy) == (1.0, 0.5)


def test_a_curve_goes_from_at_once_to_settled():
    for kind in (Margin, Probability, Entropy):
        curve = exit_curve(RUN, LABELS, kind)
        assert curve[0].mean_step == 1.0
        assert curve[-1] == exit_point(RUN, LABELS, kind(1.0))
        assert curve[-1].mean_step == exit_point(RUN, LABELS, Settled()).mean_step
        steps = [point.mean_step for point in curve]
        assert steps == sorted(steps)


def test_wrong_calls_say_so():
    with pytest.raises(InputError, match="4 images need 4 whole numbers"):
        exit_point(RUN, LABELS[:2], Settled())
    with pytest.raises(InputError, match="is no rule"):
        exit_point(RUN, LABELS, Margin)
    with pytest.raises(InputError, match="labels are a list"):
        choose_threshold(RUN, LABELS.tolist(), Margin)
    with pytest.raises(InputError, match="labels go from 1 to 2, and the network tells 2 classes apart"):
        choose_threshold(RUN, torch.tensor([1, 1, 1, 2]), Margin)
    for kind in (Settled, Margin(0.3), "margin", None):
        with pytest.raises(InputError, match="no threshold to choose; give one of the classes Margin, "):
            choose_threshold(RUN, LABELS, kind)
    for lost in (float("nan"), -1, 1.5, "0", None):
        with pytest.raises(InputError, match="lies from 0 to 1"):
            choose_threshold(RUN, LABELS, Margin, lost=lost)
    with pytest.raises(InputError, match="give one of them"):
        choose_threshold(RUN, LABELS, Margin, lost=0.1, mean_step=3)
    with pytest.raises(InputError, match="Ask for 1 or more"):
        choose_threshold(RUN, LABELS, Margin, mean_step=0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_threshold_is_found_in_logits_that_are_no_numbers(value):
    run = by_hand([[0.9], [0.9]], [[1], [1]], [1])
    run.logits[0, 0] = value
    for kind in (Margin, Probability, Entropy):
        with pytest.raises(InputError, match="NaN or infinity"):
            choose_threshold(run, LABELS[:1], kind)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
    with torch.no_grad():
        model[-1].weight.mul_(30)
    images = torch.randn(40, 12) * torch.linspace(0.1, 3, 40).unsqueeze(1)
    return spikezip.convert(model, images[:1], images), images, model(images).argmax(-1)


def test_one_run_tells_what_the_engine_would_do(network):
    snn, images, labels = network
    full = snn.run(images)
    for rule in (Margin(0.6), Probability(0.8), Entropy(0.5), Settled()):
        run = snn.run(images, early_exit=rule)
        assert torch.equal(run.answered_at, exit_steps(full, rule))
        point = exit_point(full, labels, rule)
        assert point.accuracy == pytest.approx(float((run.answer.argmax(-1) == labels).double().mean()))
        assert point.spikes == pytest.approx(float(run.total_spikes.sum(0).double().mean()))
    small = exit_run(snn, images, full.steps, batch=7)
    assert torch.equal(small.logits, full.logits) and torch.equal(small.total_spikes, full.total_spikes)
    assert exit_point(small, labels, Margin(0.6)) == exit_point(full, labels, Margin(0.6))
    with pytest.raises(InputError, match="left this run early"):
        exit_steps(run, Settled())


def test_the_record_holds_each_rule(network):
    snn, images, labels = network
    rules = (Margin(0.6), Settled())
    record = spikezip.measure(snn, images, labels, energy=False, early_exit=rules, batch=16)
    full = snn.run(images, record["steps"])
    for entry, rule in zip(record["early_exit"], rules, strict=True):
        point = exit_point(full, labels, rule)
        assert entry == {
            "rule": rule.name,
            "threshold": getattr(rule, "threshold", None),
            "mean_step": pytest.approx(point.mean_step),
            "accuracy": pytest.approx(point.accuracy),
            "spikes": pytest.approx(point.spikes),
            "curve": entry["curve"],
        }
    margin, settled = record["early_exit"]
    assert settled["curve"] == []
    assert [p["threshold"] for p in margin["curve"]] == list(CURVE)
    for p in margin["curve"]:
        point = exit_point(full, labels, Margin(p["threshold"]))
        assert (p["mean_step"], p["accuracy"]) == (pytest.approx(point.mean_step), pytest.approx(point.accuracy))
    assert spikezip.measure(snn, images, labels, energy=False)["early_exit"] is None
    for wrong in (Margin(0.3), ["margin"], "margin", [Margin], None):
        with pytest.raises(InputError, match="early_exit="):
            spikezip.measure(snn, images, labels, energy=False, early_exit=wrong)
    unlabelled = spikezip.measure(snn, images, energy=False, early_exit=rules)
    assert unlabelled["early_exit"][0]["accuracy"] is None
