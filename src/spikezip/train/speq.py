"""Stochastic precision ensemble (SPEQ), a rival of PET: a network taught by itself at random finer precisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.errors import RecipeError
from spikezip.levels import Levels
from spikezip.quantize.quantizer import Quantizer, widened
from spikezip.train.checks import GREATEST_CODE, check_kind, is_number, is_whole
from spikezip.train.ensemble import check_shared
from spikezip.train.folding import copy_of
from spikezip.train.loss import (
    CosineLabels,
    CrossEntropy,
    Numbers,
    TeacherLabels,
    accuracy,
    cosine_distance,
    divergence,
)
from spikezip.train.objective import check_logits


class RandomQuantizer(nn.Module):
    """A quantizer read at a precision that is drawn at random: ``k`` codes where the network has one.

    ``s/k * clip(floor(u k / s + 1/2), k lowest, k highest)``, ``k`` drawn from ``finer``, all alike: the same range in
    steps ``k`` times finer. Training draws once a step (:meth:`draw`); where nothing has, each call draws anew.

    Args:
        scale: the QANN's own scale parameter, shared.
        levels: the QANN's levels.
        finer: the ``k`` to draw from.

    Shape: any; the output has the input's shape. It is a teacher's: it has no gradient.
    """

    def __init__(self, scale: nn.Parameter, levels: Levels, finer: Sequence[int]):
        super().__init__()
        self.scale = scale
        self.levels = levels
        self.finer = tuple(finer)
        self.drawn: Tensor | None = None

    def draw(self, generator: torch.Generator) -> None:
        """Draw the precision of all calls until the next draw."""
        self.drawn = torch.randint(len(self.finer), (), generator=generator, device="cpu")

    def forward(self, drive: Tensor) -> Tensor:
        k = self.finer[int(torch.randint(len(self.finer), (), device="cpu") if self.drawn is None else self.drawn)]
        scale = self.scale / k
        levels = Levels(k * self.levels.lowest, k * self.levels.highest)
        return (levels.codes(widened(drive, scale), scale) * scale).to(drive.dtype)

    def extra_repr(self) -> str:
        return f"{self.levels.lowest}..{self.levels.highest}, finer by {', '.join(map(str, self.finer))}"


def random_precision(qann: fx.GraphModule, finer: Sequence[int]) -> fx.GraphModule:
    """The network with :class:`RandomQuantizer` in the place of every quantizer. It shares all parameters of ``qann``.

    Raises:
        StageError: ``qann`` is no graph, has no quantizer, or a live BatchNorm.
    """
    check_shared(qann)
    graph, kept = copy_of(qann)
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(kept[str(node.target)], Quantizer):
            quantizer = kept[str(node.target)]
            kept[str(node.target)] = RandomQuantizer(quantizer.scale, quantizer.levels, finer)
    return fx.GraphModule(kept, graph)


class SelfTaught(nn.Module):
    """The network, and in training beside it its own answer at random precisions."""

    def __init__(self, student: nn.Module, teacher: nn.Module):
        super().__init__()
        self.student = student
        self.teacher = teacher

    def forward(self, images: Tensor) -> tuple[Any, Any]:
        answer = self.student(images)  # first: autocast keeps the weights it cast, and the teacher's have no gradient
        if not self.training:
            return answer, None
        with torch.no_grad():
            return answer, self.teacher(images)


@dataclass(frozen=True, eq=False)
class SPEQ:
    """Stochastic precision ensemble: the QANN learns from itself, each layer read at a precision drawn at random.

    ``L = CE(z, y) + weight * D(z, z_teacher)``. The teacher has the student's weights and scales; before every batch
    each of its quantizers draws how many times finer than the student's its steps are. No gradient reaches the
    teacher's pass. It is there in training alone: validation is ``CE(z, y)``.

    Args:
        finer: what the teacher's layers draw from, all alike; 1 is the student's own precision.
        weight: of the soft labels.
        soft: what the soft labels ask for: ``CosineLabels``, or ``TeacherLabels`` (KL divergence).
        smoothing: label smoothing of the cross-entropy.

    Source: Boo, Shin, Choi & Sung, "Stochastic Precision Ensemble: Self-Knowledge Distillation for Quantized Deep
    Neural Networks", AAAI 2021. Departs: precisions are whole multiples of the student's levels over the same range,
    drawn uniformly, and weights are not quantized in training; the paper quantizes both, to bits.
    """

    finer: tuple[int, ...] = (1, 2, 4, 8)
    weight: float = 1.0
    soft: CosineLabels | TeacherLabels = field(default_factory=CosineLabels)
    smoothing: float = 0.0

    def __post_init__(self):
        finer = self.finer if isinstance(self.finer, tuple | list) else ()
        if not finer or not all(is_whole(k) and 1 <= k <= GREATEST_CODE for k in finer):
            raise RecipeError(
                f"finer={self.finer!r}: give how many times finer the teacher's steps may be, whole numbers from 1 "
                f"to {GREATEST_CODE}, for example (1, 2, 4, 8)."
            )
        if max(self.finer) == 1:
            raise RecipeError("finer=(1,): the teacher would always be the student. Add a finer precision, such as 2.")
        if not (is_number(self.weight) and self.weight > 0):
            raise RecipeError(f"weight={self.weight!r}: give a number above 0; without soft labels this is QAT.")
        check_kind("soft", self.soft, CosineLabels | TeacherLabels, "CosineLabels() or TeacherLabels()")
        CrossEntropy(self.smoothing)

    def module(self, network: nn.Module) -> nn.Module:
        """The network beside its own graph at random precisions."""
        return SelfTaught(network, random_precision(network, self.finer))  # type: ignore[arg-type]

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Numbers]:
        """``L``, and the teacher's accuracy where there is one."""
        logits, teacher = module(images)
        check_logits(logits, 2, labels)
        loss, numbers = CrossEntropy(self.smoothing)(logits, labels)
        if teacher is not None:
            measured = cosine_distance if isinstance(self.soft, CosineLabels) else divergence
            apart = measured(logits, teacher, self.soft.temperature)
            numbers |= {"soft": apart.detach(), "accuracy/teacher": accuracy(teacher, labels)}
            loss = loss + self.weight * apart
        return loss, numbers
