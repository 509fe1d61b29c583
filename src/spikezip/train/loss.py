"""The losses of fine-tuning: cross-entropy, distillation from a teacher, and paths-ensemble training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor

from spikezip.errors import RecipeError
from spikezip.train.checks import check_flag, check_kind, is_number

Numbers: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class HardLabels:
    """Sub-paths learn the labels of the data: ``CE(z_p, y)``."""


@dataclass(frozen=True)
class MainLabels:
    """Sub-paths learn the main path's answer: ``T^2 KL(softmax(z_0 / T) || softmax(z_p / T))``, ``z_0`` held fixed.

    Source: in-place distillation, Yu & Huang, "Universally Slimmable Networks", ICCV 2019, section 3.4.
    """

    temperature: float = 1.0

    def __post_init__(self):
        _check_temperature(self.temperature)


@dataclass(frozen=True)
class TeacherLabels:
    """Sub-paths learn a teacher's answer (usually the ANN's): ``T^2 KL(softmax(z_ANN / T) || softmax(z_p / T))``."""

    temperature: float = 1.0

    def __post_init__(self):
        _check_temperature(self.temperature)


@dataclass(frozen=True)
class CosineLabels:
    """A student learns a teacher's answer by direction: ``1 - cos(softmax(z / T), softmax(z_teacher / T))``.

    Source: Boo et al., AAAI 2021 (SPEQ), which takes the cosine similarity in place of the KL divergence.
    """

    temperature: float = 1.0

    def __post_init__(self):
        _check_temperature(self.temperature)


@dataclass(frozen=True)
class Distil:
    """Adds ``weight * T^2 KL(softmax(z_ANN / T) || softmax(z / T))`` to the loss of the (main) network.

    Args:
        weight: of the logits' divergence.
        temperature: ``T``.
        features: weight of ``mean over layers and images of ||y - y_ANN||^2 / ||y_ANN||^2``, with ``y`` what a layer
            of neurons holds (at the last step trained for, in a trajectory) and ``y_ANN`` the ANN's activation there;
            the teacher is then to be the morphed ANN that was quantized.
        mixed: in training student and teacher both see ``s x_i + (1 - s) x_j``, of two images of a batch, with ``s``
            drawn for each from 1/2 to 1. Only the teacher says what such a picture is, so its answer stands *in place
            of* the labels, and the accuracy in training is that of ``y_i``. For a teacher that knows its training
            images by heart, and tells little on them that the labels do not.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2; features as in Romero et
    al., "FitNets", ICLR 2015, without their regressor, as both have the same shape here; mixtures as in Zhang et al.,
    "mixup", ICLR 2018, and without labels as in Beyer et al., "Knowledge distillation: a good teacher is patient and
    consistent", CVPR 2022.
    """

    weight: float = 1.0
    temperature: float = 1.0
    features: float = 0.0
    mixed: bool = False

    def __post_init__(self):
        check_flag("mixed", self.mixed)
        if self.mixed and not self.weight:
            raise RecipeError("Of mixed images only the teacher's answer is learned: give its weight above 0.")
        _check_temperature(self.temperature)
        _check_weight("distillation", self.weight)
        _check_weight("features", self.features)


@dataclass(frozen=True)
class CrossEntropy:
    """``CE(z, y)``, with label smoothing, and a teacher if there is one (in place of ``y``, if images are mixed).

    Args:
        smoothing: share of the target given to all classes alike, 0 <= smoothing < 1.
        distil: learn from a teacher's logits as well.
    """

    smoothing: float = 0.0
    distil: Distil | None = None

    def __post_init__(self):
        _check_smoothing(self.smoothing)
        check_kind("distil", self.distil, Distil | None, "Distil(), or None")
        if self.smoothing and mixes(self):
            raise RecipeError(f"smoothing={self.smoothing}: of mixed images no labels are learned. Leave one out.")

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher's logits must be given."""
        return self.distil is not None

    def __call__(self, logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> tuple[Tensor, Numbers]:
        """The loss, and the numbers worth logging (means over the batch).

        Args:
            logits: ``[B, C]``.
            labels: ``[B]`` class numbers.
            teacher: ``[B, C]``, if :attr:`needs_teacher`.
        """
        numbers = {"accuracy": accuracy(logits, labels)}
        if self.distil is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.smoothing), numbers
        answer = divergence(logits, _given(teacher), self.distil.temperature)
        numbers["distil"] = answer.detach()
        loss = self.distil.weight * answer
        if not self.distil.mixed:
            loss = loss + F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        return loss, numbers


@dataclass(frozen=True)
class PETLoss:
    """The loss of paths-ensemble training.

    ``L = CE(z_0, y) + alpha * sum_p L_p + beta * CE(mean_p z_p, y) [+ distillation of z_0]``, where ``z_0`` are the
    main path's logits, ``z_1 ... z_{P-1}`` the sub-paths', the mean runs over all ``P`` paths, and ``L_p`` is what
    ``sub_labels`` says.

    Args:
        alpha: weight of each sub-path's loss.
        beta: weight of the ensemble loss; 0 leaves it out.
        sub_labels: what sub-paths learn.
        smoothing: label smoothing of every cross-entropy, 0 <= smoothing < 1.
        distil: let the main path learn from a teacher's logits as well.

    >>> import torch
    >>> z = torch.zeros(3, 2, 10)  # 3 paths, 2 images, 10 classes
    >>> loss, numbers = PETLoss(alpha=0.5, beta=1.0)(z, torch.tensor([1, 2]), ["main", "capped1", "capped2"])
    >>> round(float(loss) / 2.302585, 4)  # 1 + 0.5 * 2 + 1 times ln 10
    3.0

    Source: SpikeZIP (ICLR 2025 submission): main cross-entropy plus alpha times the sub-paths'; the sum over widths is
    that of slimmable networks, Yu et al., ICLR 2019, algorithm 1. Departs: the paper's alpha and labels are not
    published; the defaults here are ours.
    """

    alpha: float = 1.0
    beta: float = 0.0
    sub_labels: HardLabels | MainLabels | TeacherLabels = field(default_factory=HardLabels)
    smoothing: float = 0.0
    distil: Distil | None = None

    def __post_init__(self):
        CrossEntropy(self.smoothing, self.distil)  # says what is wrong with these
        _check_weight("alpha", self.alpha)
        _check_weight("beta", self.beta)
        known = HardLabels | MainLabels | TeacherLabels
        check_kind("sub_labels", self.sub_labels, known, "HardLabels(), MainLabels() or TeacherLabels()")
        if mixes(self) and (self.beta or isinstance(self.sub_labels, HardLabels)):
            raise RecipeError(
                "Of mixed images no labels are learned: sub_labels must be MainLabels() or TeacherLabels(), and beta 0."
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher's logits must be given."""
        return self.distil is not None or isinstance(self.sub_labels, TeacherLabels)

    def __call__(
        self, logits: Tensor, labels: Tensor, names: list[str], teacher: Tensor | None = None
    ) -> tuple[Tensor, Numbers]:
        """The loss, and the numbers worth logging (means over the batch).

        Args:
            logits: ``[P, B, C]``, main path first.
            labels: ``[B]`` class numbers.
            names: of the ``P`` paths, for the log.
            teacher: ``[B, C]``, if :attr:`needs_teacher`.
        """
        loss, numbers = CrossEntropy(self.smoothing, self.distil)(logits[0], labels, teacher)
        for name, sub in zip(names[1:], logits[1:], strict=True):
            match self.sub_labels:
                case HardLabels():
                    part = F.cross_entropy(sub, labels, label_smoothing=self.smoothing)
                case MainLabels(temperature):
                    part = divergence(sub, logits[0], temperature)
                case TeacherLabels(temperature):
                    part = divergence(sub, _given(teacher), temperature)
            loss = loss + self.alpha * part
            numbers[f"loss/{name}"] = part.detach()
            numbers[f"accuracy/{name}"] = accuracy(sub, labels)
        if self.beta:
            joint = logits.mean(0)
            part = F.cross_entropy(joint, labels, label_smoothing=self.smoothing)
            loss = loss + self.beta * part
            numbers["loss/ensemble"] = part.detach()
            numbers["accuracy/ensemble"] = accuracy(joint, labels)
        return loss, numbers


def mixes(criterion: CrossEntropy | PETLoss) -> bool:
    """Whether the images of a batch are to be mixed in training."""
    return criterion.distil is not None and criterion.distil.mixed


def divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(target / T) || softmax(logits / T))``, mean over the batch; no gradient reaches ``target``."""
    wanted = F.log_softmax(target.detach() / temperature, dim=-1)
    given = F.log_softmax(logits / temperature, dim=-1)
    return F.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2


def cosine_distance(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """``1 - cos(softmax(logits / T), softmax(target / T))``, mean over the batch; no gradient reaches ``target``."""
    given, wanted = (F.softmax(z / temperature, dim=-1) for z in (logits, target.detach()))
    return 1 - F.cosine_similarity(given, wanted, dim=-1).mean()


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the batch whose greatest logit is the label's."""
    return (logits.detach().argmax(-1) == labels).float().mean()


def _given(teacher: Tensor | None) -> Tensor:
    if teacher is None:
        raise RecipeError("This loss learns from a teacher's logits, and no teacher was given. Pass teacher=ann.")
    return teacher


def _check_temperature(value: float) -> None:
    if not (is_number(value) and value > 0):
        raise RecipeError(f"temperature={value!r}: give a number above 0; 1 leaves the logits as they are.")


def _check_weight(name: str, value: float) -> None:
    if not (is_number(value) and value >= 0):
        raise RecipeError(f"{name}={value!r}: a loss's weight is a number, 0 or more.")


def _check_smoothing(value: float) -> None:
    if not (is_number(value) and 0 <= value < 1):
        raise RecipeError(f"smoothing={value!r}: label smoothing lies in 0 <= smoothing < 1, for example 0.1.")
