"""What is trained for: one objective is one way from a network, images and labels to a loss."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spikezip.errors import RecipeError, StageError
from spikezip.train.ensemble import Folded, InTurn, ensemble
from spikezip.train.loss import CrossEntropy, Numbers, PETLoss
from spikezip.train.paths import Main, Path, PathScale


class Objective(Protocol):
    """What :func:`spikezip.train.finetune` asks of an objective. A new way of training is a new class of this form."""

    def module(self, network: nn.Module) -> nn.Module:
        """The module that is called on images every step. Its trained parameters are those of ``network``.

        Called once, before the module is handed to the processes.
        """
        ...

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Numbers]:
        """The loss of one batch, a mean over its samples, and numbers to log; ``accuracy`` is among them."""
        ...


@dataclass(frozen=True, eq=False)
class QAT:
    """Plain training of the network as it is: an ANN, or a QANN (quantization-aware training).

    Args:
        criterion: the loss.
        teacher: a network whose logits the criterion learns from (it is copied, and never changed).
    """

    criterion: CrossEntropy = field(default_factory=CrossEntropy)
    teacher: nn.Module | None = None

    def module(self, network: nn.Module) -> nn.Module:
        """The network itself, or the network beside its teacher."""
        return beside(network, self.teacher, self.criterion.needs_teacher)

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Numbers]:
        """``criterion(network(images), labels)``."""
        logits, teacher = answers(module(images), self.criterion.needs_teacher)
        check_logits(logits, 2, labels)
        return self.criterion(logits, labels, teacher)


@dataclass(frozen=True, eq=False)
class PET:
    """Paths-ensemble training: the QANN learns together with sub-paths of fewer levels that share all its parameters.

    Args:
        paths: the sub-paths; :func:`spikezip.train.paths_for` derives them from the encoding.
        criterion: the loss.
        execution: all paths in one batch, or one after the other.
        teacher: a network whose logits the criterion learns from (it is copied, and never changed).
        scale: whether sub-paths share the main path's scales, or have their own while training lasts.

    Source: SpikeZIP (ICLR 2025 submission). See :func:`ensemble` and :class:`PETLoss` for where it departs.
    """

    paths: tuple[Path, ...]
    criterion: PETLoss = field(default_factory=PETLoss)
    execution: Folded | InTurn = field(default_factory=Folded)
    teacher: nn.Module | None = None
    scale: PathScale = PathScale.SHARED

    def module(self, network: nn.Module) -> nn.Module:
        """The ensemble of all paths, beside the teacher if there is one."""
        return beside(
            ensemble(network, self.paths, self.execution, self.scale),  # type: ignore[arg-type]  # ensemble refuses what is no graph
            self.teacher,
            self.criterion.needs_teacher,
        )

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Numbers]:
        """``criterion(ensemble(images), labels)``."""
        logits, teacher = answers(module(images), self.criterion.needs_teacher)
        check_logits(logits, 3, labels)
        return self.criterion(logits, labels, [str(path) for path in (Main(), *self.paths)], teacher)


class _Taught(nn.Module):
    """A student beside a frozen copy of its teacher, which stays in evaluation mode."""

    def __init__(self, student: nn.Module, teacher: nn.Module):
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(teacher).requires_grad_(False)

    def train(self, mode: bool = True) -> _Taught:
        super().train(mode)
        self.teacher.train(False)
        return self

    def forward(self, images: Tensor) -> tuple[Any, Any]:
        with torch.no_grad():
            answer = self.teacher(images)
        return self.student(images), answer


def beside(student: nn.Module, teacher: nn.Module | None, needed: bool) -> nn.Module:
    """The student, or the student beside a frozen teacher if one is needed."""
    if not needed:
        return student
    if teacher is None:
        raise RecipeError("This loss learns from a teacher's logits, and no teacher was given. Pass teacher=ann.")
    return _Taught(student, teacher)


def answers(answer: Any, taught: bool) -> tuple[Any, Any]:
    """What :func:`beside`'s module answered: the student's logits, and the teacher's or None."""
    return answer if taught else (answer, None)


def check_logits(logits: Any, dims: int, labels: Tensor) -> None:
    """Refuse what is not one tensor of logits ``[..., B, classes]`` of ``dims`` dimensions."""
    if not isinstance(logits, Tensor) or logits.dim() != dims or logits.shape[-2] != labels.shape[0]:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise StageError(
            f"Training with labels needs one output of logits [B, classes] for {labels.shape[0]} images; the "
            f"network gave {shape}. Write an objective of your own for other outputs (see spikezip.train.Objective)."
        )
