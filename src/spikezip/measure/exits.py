"""Early exit measured: accuracy against the mean exit step, and a threshold chosen on validation data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spikezip.errors import InputError
from spikezip.run import Engine, Run, execute
from spikezip.run.engine import check_inputs, check_numbers
from spikezip.run.exit import CONFIDENCES, Confidence, EarlyExit, Settled, check_exit, check_logits, first_confident
from spikezip.run.result import join
from spikezip.run.step import pieces
from spikezip.spike.swap import SpikingNetwork

#: Thresholds of the curve that a record keeps for each rule with a threshold.
CURVE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)


@dataclass(frozen=True)
class ExitPoint:
    """What a rule gives on labelled images.

    Attributes:
        rule: the rule.
        mean_step: steps an image took, on average.
        accuracy: share of images whose answer, at their exit, is the label.
        spikes: of all layers up to the exit, mean per image.
    """

    rule: EarlyExit
    mean_step: float
    accuracy: float
    spikes: float


def exit_run(
    snn: SpikingNetwork,
    images: Tensor | Sequence[Tensor],
    steps: int,
    *,
    engine: Engine = Engine.SWEEP,
    batch: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> Run:
    """Run many images, and keep only what rules of early exit look at: logits, T_eq, and the spikes of all layers.

    Args:
        snn: the network.
        images: ``[N, ...]``, or several inputs.
        steps: of the run.
        engine: which engine.
        batch: images run together.
        on_batch: told how many images were done, batch by batch.

    Returns:
        A :class:`Run` without codes, whose spikes are of one layer named ``all``.
    """
    check_numbers(batch=batch)
    inputs = check_inputs(snn, images)
    parts = []
    for _, piece in pieces(inputs, batch):  # the tracers of all images at once need not fit into memory
        run = execute(snn, piece, steps, engine=engine, batch=batch)
        total = {"all": run.total_spikes}
        negative = {"all": torch.stack(list(run.negative.values())).sum(0)}
        parts.append(replace(run, outputs=run.outputs[:1], spikes=total, negative=negative, codes={}, memory={}))
        if on_batch:
            on_batch(len(piece[0]))
    return join(parts, steps)


def exit_steps(run: Run, rule: EarlyExit) -> Tensor:
    """The step at which each image of a run leaves by a rule; the last where it never does. ``[B]``.

    The run is one without early exit: its logits at every step are all that rules look at, so one run serves for any
    number of rules.

    Raises:
        InputError: images have left this run already.
        StageError: its outputs are no logits.
    """
    if run.exited_at is not None:
        raise InputError("Images left this run early, so it does not hold their later steps. Run without early_exit.")
    sure = first_confident(rule, run.logits)
    sure = torch.where(sure > 0, sure, run.steps)
    rest = torch.where(run.settled_at > 0, run.settled_at, run.steps)
    return torch.minimum(sure, rest)


def exit_point(run: Run, labels: Tensor, rule: EarlyExit) -> ExitPoint:
    """What a rule gives on the images of a run (one without early exit) with these labels ``[B]``."""
    check_exit(rule)
    _check(run, labels)
    return _point(run, labels, rule, exit_steps(run, rule))


def exit_curve(
    run: Run, labels: Tensor, kind: type[Confidence], thresholds: Sequence[float] | None = None
) -> list[ExitPoint]:
    """Accuracy against mean exit step, as the threshold goes from 0 to 1.

    Args:
        run: a run without early exit.
        labels: ``[B]``.
        kind: :class:`~spikezip.run.Margin`, :class:`~spikezip.run.Probability` or :class:`~spikezip.run.Entropy`.
        thresholds: which; if not given, 129 that let about equally many images go each (0 and 1 among them).

    Returns:
        A point per threshold, in rising order.

    Raises:
        InputError: the labels do not fit the run, ``kind`` is none of these, or logits are NaN.
        StageError: its outputs are no logits.
    """
    if kind not in CONFIDENCES.values():
        names = ", ".join(known.__name__ for known in CONFIDENCES.values())
        raise InputError(f"{kind!r} has no threshold to choose; give one of the classes {names}.")
    _check(run, labels)
    greatest = kind.confidence(run.logits).flatten()
    if bool(greatest.isnan().any()):
        raise InputError("The run's logits hold NaN or infinity, so no confidence can be told. Clean the data first.")
    if thresholds is None:
        steps = torch.linspace(0, 1, 129, dtype=greatest.dtype, device="cpu")
        places = (steps * (greatest.numel() - 1)).round().long()
        found = greatest.sort().values[places].tolist()
        thresholds = sorted({0.0, 1.0, *(math.floor(value * 1e6) / 1e6 for value in found)})
    return [exit_point(run, labels, kind(threshold)) for threshold in sorted(thresholds)]


def choose_threshold(
    run: Run, labels: Tensor, kind: type[Confidence], *, lost: float = 0.0, mean_step: float | None = None
) -> ExitPoint:
    """The threshold to use, found on a run of *validation* images: never of those it will be judged on.

    Args:
        run: a run without early exit, on validation images.
        labels: ``[B]``.
        kind: which confidence.
        lost: accuracy that may be lost against the end of the run; the threshold with the least mean exit step that
            keeps to it is chosen.
        mean_step: choose instead the most accurate threshold whose mean exit step is at most this.

    Returns:
        The :class:`ExitPoint`; its ``rule`` is what ``snn.run(..., early_exit=)`` takes.

    Raises:
        InputError: no threshold has so small a mean exit step or loses so little, both wishes are given, ``lost`` is
            no share, the labels do not fit the run, ``kind`` has no threshold, or logits are NaN.
    """
    if isinstance(lost, bool) or not isinstance(lost, int | float) or not 0 <= lost <= 1:
        raise InputError(f"lost={lost!r}: the accuracy that may be lost lies from 0 to 1.")
    if mean_step is not None and lost:
        raise InputError(f"lost={lost} and mean_step={mean_step}: give one of them.")
    curve = exit_curve(run, labels, kind)
    if mean_step is not None:
        within = [point for point in curve if point.mean_step <= mean_step]
        if not within:
            raise InputError(f"mean_step={mean_step}: no image can leave before step 1. Ask for 1 or more.")
        return max(within, key=lambda point: (point.accuracy, -point.mean_step))
    end = exit_point(run, labels, Settled()).accuracy
    within = [point for point in curve if point.accuracy >= end - lost - 1e-12]
    if not within:  # a softmax may come to 1 exactly while the answer is wrong
        least = end - max(point.accuracy for point in curve)
        raise InputError(
            f"lost={lost}: every threshold of {kind.__name__} loses {math.ceil(least * 1e4) / 1e4} of the accuracy or "
            "more. Allow so much, or use Settled(), which loses nothing."
        )
    return min(within, key=lambda point: (point.mean_step, -point.accuracy))


def _point(run: Run, labels: Tensor, rule: EarlyExit, steps: Tensor) -> ExitPoint:
    images = torch.arange(len(labels), device="cpu")
    answers = run.logits[(steps - 1).to(run.logits.device), images.to(run.logits.device)].argmax(-1)
    spent = run.total_spikes.cumsum(0)[steps - 1, images]
    return ExitPoint(
        rule,
        float(steps.double().mean()),
        float((answers == labels.to(answers.device)).double().mean()),
        float(spent.double().mean()),
    )


def check_labels(labels: Tensor, images: int, classes: int | None) -> None:
    """InputError unless labels are as many whole numbers as there are images, each one of the classes."""
    if not isinstance(labels, Tensor):
        raise InputError(f"labels are a {type(labels).__name__}; give a tensor of {images} whole numbers.")
    if tuple(labels.shape) != (images,) or labels.is_floating_point():
        raise InputError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; {images} images need {images} whole numbers."
        )
    if classes is not None and images and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        least, most = int(labels.min()), int(labels.max())
        raise InputError(f"labels go from {least} to {most}, and the network tells {classes} classes apart.")


def _check(run: Run, labels: Tensor) -> None:
    check_logits(run.logits)
    check_labels(labels, run.settled_at.shape[0], run.logits.shape[-1])
