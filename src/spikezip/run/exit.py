"""Leaving early: when an image's answer is clear enough, and the rule that is exact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from spikezip.errors import InputError, StageError


@dataclass(frozen=True)
class Settled:
    """An image leaves when it has settled: no neuron will fire any more, so its answer is the QANN's, exactly."""

    name: ClassVar[str] = "settled"

    def confident(self, logits: Tensor) -> Tensor:
        """Never: the engines see for themselves what has settled."""
        return torch.zeros(logits.shape[:-1], dtype=torch.bool, device=logits.device)


@dataclass(frozen=True)
class Margin:
    """An image leaves at the first step at which the two greatest softmax probabilities differ enough (or settled).

    ``p_(1) - p_(2) >= threshold``, ``p = softmax(logits at step t)``, ``0 <= threshold <= 1``.

    >>> Margin(0.5).confident(torch.tensor([[2.0, 0.0], [0.5, 0.0]]))
    tensor([ True, False])

    Source: the margin as confidence is that of "best versus second best", Joshi et al., CVPR 2009. The exit is a
    heuristic: nothing says that the answer will not change.
    """

    threshold: float
    name: ClassVar[str] = "margin"

    def __post_init__(self):
        _check(self.threshold, "Margin")

    @staticmethod
    def confidence(logits: Tensor) -> Tensor:
        """``[..., C]`` to ``[...]``, 0 to 1."""
        best = logits.double().softmax(-1).topk(2, -1).values
        return best[..., 0] - best[..., 1]

    def confident(self, logits: Tensor) -> Tensor:
        """Which of ``[..., C]`` are clear enough, ``[...]`` bool."""
        return self.confidence(logits) >= self.threshold


@dataclass(frozen=True)
class Probability:
    """An image leaves at the first step at which its greatest softmax probability is large enough (or settled).

    ``p_(1) >= threshold``.

    Source: Li et al., "SEENN: Towards Temporal Spiking Early-Exit Neural Networks", NeurIPS 2023 (SEENN-I).
    """

    threshold: float
    name: ClassVar[str] = "probability"

    def __post_init__(self):
        _check(self.threshold, "Probability")

    @staticmethod
    def confidence(logits: Tensor) -> Tensor:
        """``[..., C]`` to ``[...]``, 1/C to 1."""
        return logits.double().softmax(-1).amax(-1)

    def confident(self, logits: Tensor) -> Tensor:
        """Which of ``[..., C]`` are clear enough, ``[...]`` bool."""
        return self.confidence(logits) >= self.threshold


@dataclass(frozen=True)
class Entropy:
    """An image leaves at the first step at which the entropy of its softmax is small enough (or settled).

    ``1 - H(p) / ln C >= threshold``, so that 0 is ignorance and 1 certainty, as in the other rules.

    Source: Li et al., "Input-Aware Dynamic Timestep Spiking Neural Networks", DAC 2023 (whose threshold is one minus
    this one); Teerapittayanon et al., "BranchyNet", ICPR 2016.
    """

    threshold: float
    name: ClassVar[str] = "entropy"

    def __post_init__(self):
        _check(self.threshold, "Entropy")

    @staticmethod
    def confidence(logits: Tensor) -> Tensor:
        """``[..., C]`` to ``[...]``, 0 to 1."""
        entropy = torch.special.entr(logits.double().softmax(-1)).sum(-1)
        return (1 - entropy / math.log(logits.shape[-1])).clamp(0, 1)

    def confident(self, logits: Tensor) -> Tensor:
        """Which of ``[..., C]`` are clear enough, ``[...]`` bool."""
        return self.confidence(logits) >= self.threshold


Confidence: TypeAlias = Margin | Probability | Entropy
EarlyExit: TypeAlias = Settled | Confidence

CONFIDENCES: dict[str, type[Confidence]] = {kind.name: kind for kind in (Margin, Probability, Entropy)}


def check_exit(rule: object) -> None:
    """InputError unless this is a rule of early exit."""
    if not isinstance(rule, EarlyExit):
        raise InputError(
            f"early_exit={rule!r} is no rule; give a value such as Settled() or Margin(0.6). parse_exit() reads text."
        )


def are_logits(logits: Tensor) -> bool:
    """Whether these are real ``[T, B, C]`` of 2 classes or more: the greatest of one value says nothing."""
    return logits.dim() == 3 and logits.shape[-1] >= 2 and not logits.is_complex() and logits.dtype is not torch.bool


def check_logits(logits: Tensor) -> None:
    """StageError unless these are logits ``[T, B, C]``."""
    if not are_logits(logits):
        raise StageError(
            f"An early exit needs real logits [B, C] of 2 classes or more; this network's first output is "
            f"{logits.dtype} {tuple(logits.shape[1:])} a step. Run it without early_exit."
        )


def first_confident(rule: EarlyExit, logits: Tensor) -> Tensor:
    """The first step, from 1, at which the rule lets each image go; 0 where none does.

    Args:
        rule: the rule.
        logits: ``[T, B, C]``.

    Returns:
        ``[B]`` int64.

    Raises:
        StageError: these are no logits.
    """
    check_logits(logits)
    clear = rule.confident(logits).cpu()
    return torch.where(clear.any(0), clear.to(torch.int8).argmax(0) + 1, 0)


def parse_exit(text: str) -> EarlyExit:
    """``settled``, ``margin:0.6``, ``probability:0.9`` or ``entropy:0.8`` as written on a command line.

    >>> parse_exit("margin:0.6")
    Margin(threshold=0.6)
    """
    name, _, value = text.partition(":")
    if name == Settled.name and not value:
        return Settled()
    try:
        return CONFIDENCES[name](float(value))
    except (KeyError, ValueError):
        raise InputError(
            f"There is no exit rule {text!r}. Use 'settled', or one of {', '.join(CONFIDENCES)} with a threshold from "
            "0 to 1, for example margin:0.6."
        ) from None


def _check(threshold: float, name: str) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise InputError(f"{name}({threshold!r}): a threshold lies from 0 to 1; choose_threshold() finds one.")
