"""How a network is trained: one frozen plan."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import inspect
import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.errors import RecipeError
from spikezip.graph.network import get_tensor
from spikezip.graph.ops import Kind, is_constant, kind
from spikezip.graph.weights_hash import weights_sha256
from spikezip.quantize.quantizer import Quantizer
from spikezip.train.checks import GREATEST_COUNT, check_flag, check_kind, is_number, is_whole
from spikezip.train.objective import QAT, Objective


class Precision(enum.Enum):
    """Number format of the forward pass; weights and scales stay float32."""

    NO = "no"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum.

    Args:
        rate: learning rate at its height.
        momentum: share of the last step that is kept.
        weight_decay: pull of weights (tensors of 2 or more dimensions) towards 0; biases and scales have none, nor has
            what a graph only adds to signals or multiplies them by (a BatchNorm that could not be folded into a layer).
        scale_rate: learning rate of quantizer scales, as a multiple of ``rate``.
        nesterov: look ahead; needs momentum.

    Raises:
        RecipeError: ``momentum`` is no share, or ``nesterov`` without momentum.
    """

    rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    scale_rate: float = 0.1
    nesterov: bool = False

    def __post_init__(self):
        check_flag("nesterov", self.nesterov)
        if not (is_number(self.momentum) and 0 <= self.momentum < 1):
            raise RecipeError(f"momentum={self.momentum!r}: give a share from 0 to below 1, for example 0.9.")
        if self.nesterov and self.momentum <= 0:
            raise RecipeError("nesterov looks ahead along the momentum, which is 0. Use momentum=0.9, or no nesterov.")

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch's optimizer for parameter groups."""
        return torch.optim.SGD(groups, lr=self.rate, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019); arguments as for :class:`SGD`."""

    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    scale_rate: float = 1.0

    def __post_init__(self):
        if (
            not isinstance(self.betas, tuple | list)
            or len(self.betas) != 2
            or not all(is_number(beta) and 0 <= beta < 1 for beta in self.betas)
        ):
            raise RecipeError(f"betas={self.betas!r}: give two shares from 0 to below 1, for example (0.9, 0.999).")

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch's optimizer for parameter groups."""
        return torch.optim.AdamW(groups, lr=self.rate, betas=self.betas)


@dataclass(frozen=True)
class Cooldown:
    """An early end: from where the rate stands after ``after`` epochs it falls linearly to ``final_rate``.

    Args:
        after: epochs of the plan that are kept as they are.
        epochs: epochs of the fall; training ends with them.

    Source: Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", NeurIPS 2024.
    """

    after: int
    epochs: int = 1


_COUNTS = ("train_images", "validation_images", "checkpoint_every")
_OPTIONAL = {"clip", "ema", *_COUNTS}  #: numbers of a plan that may be None


@dataclass(frozen=True)
class Plan:
    """Everything that decides how training goes, but for the network and the data.

    Args:
        objective: what is trained for: :class:`QAT`, :class:`PET`, or another :class:`Objective`.
        epochs: passes over the training split.
        batch: images of one optimizer step, over all processes and accumulation steps together. A last, smaller batch
            is left out.
        accumulate: backward passes that one optimizer step is cut into. Memory, and on a CPU time, but no results, to
            rounding; only BatchNorm, an ANN's or a live one, then takes its statistics from less, an ANN's dropout
            draws otherwise, and ``Distil(mixed=True)`` mixes images of one part alone.
        optimizer: SGD or AdamW.
        warmup: epochs (may be a fraction) over which the learning rate rises linearly; it then falls along a cosine.
        final_rate: where the cosine ends, as a share of the height.
        cooldown: end early. A training that is under way can be resumed with one, up to the epoch at which it begins.
        clip: greatest norm of the gradient; None for no clipping.
        precision: number format of the forward pass.
        compile: compile the network with torch.compile: a minute at the start, then fewer and larger kernels. For long
            trainings on a GPU, where small networks are otherwise held up by launching kernels.
        ema: decay of the averaged weights that are evaluated and returned; None returns the last weights.
        seed: of data order, augmentation and dropout.
        augment: let the data augment training images.
        train_split: the split trained on.
        validation_split: the split evaluated after every epoch, which shares no image with ``train_split``; None for
            none.
        train_images: end an epoch after so many images (quick runs), of which whole batches are taken, one at least;
            None for all.
        validation_images: evaluate on exactly the first so many, or all there are; None for all.
        checkpoint_every: optimizer steps between checkpoints within an epoch; None for epoch ends only.
        log_every: optimizer steps between reports.

    Raises:
        RecipeError: a value is of another type or out of range, or images trained on would be validated on.
    """

    objective: Objective = field(default_factory=QAT)
    epochs: int = 1
    batch: int = 128
    accumulate: int = 1
    optimizer: SGD | AdamW = field(default_factory=SGD)
    warmup: float = 0.0
    final_rate: float = 0.0
    cooldown: Cooldown | None = None
    clip: float | None = None
    precision: Precision = Precision.NO
    compile: bool = False
    ema: float | None = None
    seed: int = 0
    augment: bool = True
    train_split: str = "train"
    validation_split: str | None = "val"
    train_images: int | None = None
    validation_images: int | None = None
    checkpoint_every: int | None = None
    log_every: int = 10

    def __post_init__(self):
        for name, wanted, example in (
            ("optimizer", SGD | AdamW, "SGD(0.01) or AdamW(0.001)"),
            ("cooldown", Cooldown | None, "Cooldown(after=2), or None"),
            ("precision", Precision, "Precision.NO, BF16 or FP16"),
            ("train_split", str, "the name of a split, such as 'train'"),
            ("validation_split", str | None, "the name of a split, such as 'val', or None"),
        ):
            check_kind(name, getattr(self, name), wanted, example)
        check_flag("compile", self.compile)
        check_flag("augment", self.augment)
        if isinstance(self.objective, type) or not hasattr(self.objective, "loss"):
            raise RecipeError(
                f"objective={self.objective!r}: give a value such as QAT() or PET((Capped(1), Capped(2)))."
            )
        for owner, names in ((self, "warmup final_rate clip ema"), (self.optimizer, "rate scale_rate weight_decay")):
            for name in names.split():
                value = getattr(owner, name)
                if not (is_number(value) or (value is None and name in _OPTIONAL)):
                    raise RecipeError(f"{name}={value!r}: give a finite number.")
        if not is_whole(self.seed) or self.seed < 0:
            raise RecipeError(f"seed={self.seed!r}: give a whole number, 0 or more.")
        for name in ("epochs", "batch", "accumulate", "log_every", *_COUNTS):
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not is_whole(value) or not 1 <= value <= GREATEST_COUNT:
                raise RecipeError(f"{name}={value!r}: give 1 or more, a whole number up to {GREATEST_COUNT}.")
        check_splits(self.train_split, self.validation_split)
        if self.batch % self.accumulate:
            raise RecipeError(
                f"batch={self.batch} cannot be cut into accumulate={self.accumulate} equal parts. "
                f"Use batch={math.ceil(self.batch / self.accumulate) * self.accumulate}."
            )
        if self.optimizer.rate <= 0 or self.optimizer.scale_rate < 0 or self.optimizer.weight_decay < 0:
            raise RecipeError("The learning rate must be above 0; scale_rate and weight_decay 0 or more.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise RecipeError(f"ema={self.ema}: a decay lies between 0 and 1, for example 0.999.")
        if self.clip is not None and self.clip <= 0:
            raise RecipeError(f"clip={self.clip}: give a norm above 0, or None for no clipping.")
        if not 0 <= self.warmup <= self.epochs or not 0 <= self.final_rate <= 1:
            raise RecipeError(
                f"warmup={self.warmup}, final_rate={self.final_rate}: give 0 <= warmup <= epochs ({self.epochs}) and "
                "0 <= final_rate <= 1."
            )
        if (c := self.cooldown) is not None and not (
            is_whole(c.after) and is_whole(c.epochs) and min(c.after, c.epochs) >= 1 and self.last_epoch <= self.epochs
        ):
            raise RecipeError(
                f"cooldown={self.cooldown}: both are whole numbers, 1 or more, and together no more than "
                f"epochs={self.epochs}."
            )

    @property
    def last_epoch(self) -> int:
        """The epoch that training ends with, counted from 1."""
        return self.epochs if self.cooldown is None else self.cooldown.after + self.cooldown.epochs

    def rate_at(self, epochs_done: float) -> float:
        """The learning rate's share of its height: linear warm-up, a cosine, a cooldown. A pure function of progress.

        >>> [round(Plan(epochs=5, warmup=1).rate_at(e), 3) for e in (0.5, 1, 3, 5)]
        [0.5, 1.0, 0.5, 0.0]

        >>> [round(Plan(epochs=5, cooldown=Cooldown(2, 2)).rate_at(e), 3) for e in (0, 2, 3, 4)]
        [1.0, 0.655, 0.327, 0.0]

        Source: Loshchilov & Hutter, "SGDR", ICLR 2017, eq. 5 (one cycle).
        """
        if self.cooldown is not None and epochs_done > self.cooldown.after:
            left = max(self.last_epoch - epochs_done, 0.0) / self.cooldown.epochs
            return self.final_rate + (self.rate_at(self.cooldown.after) - self.final_rate) * left
        if epochs_done < self.warmup:
            return epochs_done / self.warmup
        share = (epochs_done - self.warmup) / max(self.epochs - self.warmup, 1e-12)
        return self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * min(share, 1.0))) / 2

    def groups(self, *networks: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups: weights (decayed), biases and norms (not), quantizer scales (own rate, not decayed)."""
        scales = {id(scale) for scale in scales_of(*networks)}
        trained = [p for p in dict.fromkeys(p for n in networks for p in n.parameters()) if p.requires_grad]
        undecayed = {id(p) for p in trained if p.dim() < 2} | {id(p) for n in networks for p in _elementwise(n)}
        rows = [
            ([p for p in trained if id(p) not in scales | undecayed], 1.0, self.optimizer.weight_decay),
            ([p for p in trained if id(p) in undecayed - scales], 1.0, 0.0),
            ([p for p in trained if id(p) in scales], self.optimizer.scale_rate, 0.0),
        ]
        return [
            {
                "params": params,
                "lr": self.optimizer.rate * rate,
                "height": self.optimizer.rate * rate,
                "weight_decay": decay,
            }
            for params, rate, decay in rows
            if params
        ]


def check_splits(train: str, validation: str | None) -> None:
    """Refuse to validate on images that are trained on: ``trainval`` holds those of ``train`` and ``val``."""
    splits = {train, validation}
    if len(splits) == 1 or ("trainval" in splits and splits & {"train", "val"}):
        raise RecipeError(
            f"train_split={train} and validation_split={validation} share images, whose accuracy would say nothing of "
            "new ones. Use validation_split: null (None in Python), or train_split: train."
        )


def scales_of(*networks: nn.Module) -> list[nn.Parameter]:
    """The trained quantizer scales of networks, each once."""
    found = (m.scale for n in networks for m in n.modules() if isinstance(m, Quantizer))
    return [scale for scale in dict.fromkeys(found) if scale.requires_grad]


def _elementwise(network: nn.Module) -> list[Tensor]:
    """What a graph only adds to signals, or multiplies them by."""
    only: dict[Tensor, bool] = {}
    for node in network.graph.nodes if isinstance(network, fx.GraphModule) else ():
        if node.op == "get_attr":
            tensor = get_tensor(network, node.target)
            only[tensor] = only.get(tensor, True) and all(
                user.op == "call_function" and kind(user) in (Kind.SUM, Kind.SCALE) and not is_constant(user)
                for user in node.users
            )
    return [tensor for tensor, so in only.items() if so]


def describe(choice: Any) -> Any:
    """A choice as JSON data, with the name of each type: what a checkpoint keeps to know its plan again. A network is
    its type and a fingerprint of its weights; an object of a class of one's own, what it was made with, as far as it
    keeps that under the same names.

    >>> describe(SGD(rate=0.5))["rate"], describe(Precision.BF16)
    (0.5, 'bf16')
    """
    if isinstance(choice, nn.Module):
        return {"type": type(choice).__name__, "weights": weights_sha256(choice)[:16]}
    if isinstance(choice, enum.Enum):
        return choice.value
    if dataclasses.is_dataclass(choice):
        return {"type": type(choice).__name__} | {
            f.name: describe(getattr(choice, f.name)) for f in dataclasses.fields(choice)
        }
    if isinstance(choice, list | tuple):
        return [describe(c) for c in choice]
    if choice is None or isinstance(choice, bool | int | float | str):
        return choice
    if type(choice).__repr__ is object.__repr__:
        with contextlib.suppress(ValueError):  # a class that Python cannot see into
            made_with = [name for name in inspect.signature(type(choice)).parameters if hasattr(choice, name)]
            return {"type": type(choice).__name__} | {name: describe(getattr(choice, name)) for name in made_with}
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(choice))  # the same in every process
