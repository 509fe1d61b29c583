"""What is trained for: one objective is one way from a network, images and labels to a loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from spikezip.errors import RecipeError, StageError
from spikezip.graph.network import copied
from spikezip.quantize.quantizer import Quantizer
from spikezip.train.checks import check_kind
from spikezip.train.ensemble import Folded, InTurn, ensemble
from spikezip.train.features import distance, features_of
from spikezip.train.loss import CrossEntropy, Numbers, PETLoss, mixes
from spikezip.train.paths import Main, Path, PathScale, PathStatistics, names_of


class Objective(Protocol):
    """What :func:`spikezip.train.finetune` asks of an objective. A new way of training is a new class of this form."""

    def module(self, network: nn.Module) -> nn.Module:
        """The module that is called on images every step. Its trained parameters are those of ``network``.

        Called once, before the module is handed to the processes.
        """
        ...

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Numbers]:
        """The loss of one batch, a mean over its samples, and numbers to log; ``accuracy`` is among them.

        ``loss`` and ``images`` are names that training gives itself.
        """
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

    def __post_init__(self):
        check_kind("criterion", self.criterion, CrossEntropy, "CrossEntropy()")
        check_teacher(self.teacher)

    def module(self, network: nn.Module) -> nn.Module:
        """The network itself, or the network beside its teacher."""
        return beside(network, self.teacher, self.criterion)

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Numbers]:
        """``criterion(network(images), labels)``."""
        logits, teacher, features = answers(module, images, labels, self.criterion)
        check_logits(logits, 2, labels, teacher)
        return with_features(self.criterion(logits, labels, teacher), self.criterion, features)


@dataclass(frozen=True, eq=False)
class PET:
    """Paths-ensemble training: the QANN learns together with sub-paths of fewer levels that share all its parameters.

    Args:
        paths: the sub-paths; :func:`spikezip.train.paths_for` derives them from the encoding.
        criterion: the loss.
        execution: all paths in one batch, or one after the other.
        teacher: a network whose logits the criterion learns from (it is copied, and never changed).
        scale: whether sub-paths share the main path's scales, or have their own while training lasts.
        statistics: whether a live BatchNorm normalises each path by its own samples, or by those of all.

    Raises:
        RecipeError: ``paths`` are none.

    Source: SpikeZIP (ICLR 2025 submission). See :func:`ensemble` and :class:`PETLoss` for where it departs.
    """

    paths: tuple[Path, ...]
    criterion: PETLoss = field(default_factory=PETLoss)
    execution: Folded | InTurn = field(default_factory=Folded)
    teacher: nn.Module | None = None
    scale: PathScale = PathScale.SHARED
    statistics: PathStatistics = PathStatistics.PRIVATE

    def __post_init__(self):
        if not isinstance(self.paths, tuple | list) or not all(isinstance(p, Path) for p in self.paths):
            raise RecipeError(
                f"paths={self.paths!r}: give a tuple of paths, such as (Capped(1), Capped(2)); paths_for() finds them."
            )
        check_kind("criterion", self.criterion, PETLoss, "PETLoss()")
        check_kind("execution", self.execution, Folded | InTurn, "Folded() or InTurn()")
        check_kind("scale", self.scale, PathScale, "PathScale.SHARED or FREE")
        check_kind("statistics", self.statistics, PathStatistics, "PathStatistics.PRIVATE or SHARED")
        check_teacher(self.teacher)

    def module(self, network: nn.Module) -> nn.Module:
        """The ensemble of all paths, beside the teacher if there is one. StageError if one is the main path again."""
        levels = {m.levels for m in network.modules() if isinstance(m, Quantizer)}
        for path in self.paths:
            if levels and all(path.reading(own) == Main().reading(own) for own in levels):
                raise StageError(f"The path {path!r} is the main path again, as no level is above it. Remove it.")
        how = self.execution, self.scale, self.statistics
        joint = ensemble(network, self.paths, *how)  # type: ignore[arg-type]  # it refuses what is no graph
        return beside(joint, self.teacher, self.criterion, readings=1 + len(self.paths))

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Numbers]:
        """``criterion(ensemble(images), labels)``."""
        logits, teacher, features = answers(module, images, labels, self.criterion)
        check_logits(logits, 3, labels, teacher)
        found = self.criterion(logits, labels, names_of((Main(), *self.paths)), teacher)
        return with_features(found, self.criterion, features)


class Taught(nn.Module):
    """A student beside a frozen teacher, which stays in evaluation mode; both give features too, or neither does."""

    def __init__(self, student: nn.Module, teacher: nn.Module):
        super().__init__()
        self.student = student
        self.teacher = teacher.requires_grad_(False)

    def train(self, mode: bool = True) -> Taught:
        super().train(mode)
        self.teacher.train(False)
        return self

    def forward(self, images: Tensor) -> tuple[Any, Any]:
        with torch.no_grad():
            answer = self.teacher(images)
        return self.student(images), answer


def check_teacher(teacher: Any) -> None:
    """Raise RecipeError unless this is a network, or None."""
    check_kind("teacher", teacher, nn.Module | None, "a network, such as the ANN, or None")


def beside(
    student: nn.Module,
    teacher: nn.Module | None,
    criterion: CrossEntropy | PETLoss,
    *,
    readings: int = 1,
    index: int = 0,
) -> nn.Module:
    """The student, or the student beside a frozen copy of the teacher that the criterion needs.

    Args:
        student: the module to train.
        teacher: whose logits, and features, are learned from.
        criterion: says whether they are.
        readings: paths or steps in the student's batch.
        index: the one whose features are compared.
    """
    if not criterion.needs_teacher:
        return student
    if teacher is None:
        raise RecipeError("This loss learns from a teacher's logits, and no teacher was given. Pass teacher=ann.")
    teacher = copied(teacher)
    if not _features(criterion):
        return Taught(student, teacher)
    if not isinstance(student, fx.GraphModule):
        raise StageError(f"Features are learned by a QANN's graph; this is a {type(student).__name__}.")
    return Taught(*features_of(student, teacher, readings, index))


def answers(
    module: nn.Module, images: Any, labels: Tensor, criterion: CrossEntropy | PETLoss
) -> tuple[Any, Any, Tensor | None]:
    """What :func:`beside`'s module answers: the student's answer, the teacher's or None, their features' distance or
    None. In training of images that are mixed, if the criterion says so."""
    if mixes(criterion) and module.training:
        images = mixture(images, len(labels))
    answer = module(images)
    if not criterion.needs_teacher:
        return answer, None, None
    student, teacher = answer
    if not _features(criterion):
        return student, teacher, None
    return student[0], teacher[0], distance(student[1], teacher[1])


def mixture(images: Any, count: int) -> Tensor:
    """``s x_i + (1 - s) x_j`` for each of ``count`` images ``x_i`` ``[B, ...]``, ``x_j`` being the i-th from the end,
    with ``s`` drawn for each from 1/2 to 1."""
    if not isinstance(images, Tensor) or not images.is_floating_point() or len(images) != count:
        what = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise StageError(f"Only images [B, ...] of floating-point numbers can be mixed; these are {what}.")
    share = torch.rand(count, *[1] * (images.dim() - 1), device=images.device, dtype=images.dtype) / 2 + 0.5
    return share * images + (1 - share) * images.flip(0)


def with_features(
    found: tuple[Tensor, Numbers], criterion: CrossEntropy | PETLoss, features: Tensor | None
) -> tuple[Tensor, Numbers]:
    """Loss and numbers, with the distance of features added if there is one."""
    loss, numbers = found
    if features is None:
        return found
    return loss + _features(criterion) * features, {**numbers, "features": features.detach()}


def _features(criterion: CrossEntropy | PETLoss) -> float:
    return criterion.distil.features if criterion.distil is not None else 0.0


def check_logits(logits: Any, dims: int, labels: Tensor, teacher: Any = None) -> None:
    """Refuse what is not one tensor of logits ``[..., B, classes]`` of ``dims`` dimensions, with a class per label; and
    a teacher that answers otherwise."""
    if not isinstance(logits, Tensor) or logits.dim() != dims or logits.shape[-2] != labels.shape[0]:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise StageError(
            f"Training with labels needs one output of logits [B, classes] for {labels.shape[0]} images; the "
            f"network gave {shape}. Write an objective of your own for other outputs (see spikezip.train.Objective)."
        )
    if teacher is not None and not (isinstance(teacher, Tensor) and teacher.shape == logits.shape[-2:]):
        shape = tuple(teacher.shape) if isinstance(teacher, Tensor) else type(teacher).__name__
        raise StageError(
            f"The teacher gave {shape} where the network gives {tuple(logits.shape[-2:])}. Take a teacher of the same "
            "classes."
        )
    # On a GPU to look would be to wait, every step.
    if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() < logits.shape[-1]:
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise StageError(
            f"The data has the label {wrong}, and the network {logits.shape[-1]} outputs, for labels 0 to "
            f"{logits.shape[-1] - 1}. Give the network as many outputs as the data has classes."
        )
