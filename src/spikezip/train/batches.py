"""What training asks of data, and tensors in memory as the simplest answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from spikezip.errors import DataError, InputError, UnknownNameError
from spikezip.measure.exits import check_labels


class Data(Protocol):
    """Labelled images whose batches are a function of the arguments alone (``spikezip.data.ImageData`` is one).

    The union over ranks of batch ``k`` is batch ``k`` of one process; ``start`` passes over batches.
    """

    def count(self, split: str) -> int:
        """How many images a split has."""
        ...

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        augment: bool,
        shuffle: bool,
        drop_last: bool,
        rank: int,
        world_size: int,
        start: int,
        device: torch.device | str,
    ) -> Iterator[tuple[Any, Tensor]]:
        """Batches of images and labels; ``batch_size`` counts those of all processes together."""
        ...


@dataclass(frozen=True, eq=False)
class TensorBatches:
    """Images and labels in memory, as data to train on.

    Args:
        images: ``[N, ...]``.
        labels: ``[N]`` class numbers, whole and 0 or more.
        held_out: how many images are kept from training as the split ``val``; drawn at random, the same every time.

    Raises:
        DataError: there are no images, their number is not the labels', or nothing is left to train on; or a label is
            below 0, or an image not finite.
        InputError: images or labels are no tensor, or labels no whole numbers ``[N]``.

    >>> data = TensorBatches(torch.arange(10.0)[:, None], torch.arange(10), held_out=4)
    >>> data.count("train"), data.count("val")
    (6, 4)
    >>> [len(labels) for _, labels in data.batches("train", 4)]
    [4, 2]
    """

    images: Tensor
    labels: Tensor
    held_out: int = 0

    def __post_init__(self):
        if not isinstance(self.images, Tensor):
            raise InputError(f"images are a {type(self.images).__name__}; give a tensor [N, ...].")
        count = len(self.labels)
        if count == 0 or len(self.images) != count:
            raise DataError(
                f"{len(self.images)} images and {count} labels: training needs as many of both, 1 at least."
            )
        if not 0 <= self.held_out < count:
            raise DataError(f"held_out={self.held_out} of {count} images leaves none to train on. Hold out fewer.")
        check_labels(self.labels, count, None)
        object.__setattr__(self, "labels", self.labels.long())
        if int(self.labels.min()) < 0:
            raise DataError(f"There is a label {int(self.labels.min())}; classes are counted from 0. Leave it out.")
        if not all(bool(part.isfinite().all()) for part in self.images.split(1024)):
            raise DataError("images have NaN or infinite values. Mend those images, or leave them out.")

    def count(self, split: str) -> int:
        """How many images ``train`` or ``val`` has."""
        return len(self._indices(split))

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        augment: bool = False,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in an order drawn from (seed, epoch); ``augment`` has nothing to do for plain tensors."""
        indices = self._indices(split)
        if shuffle:
            indices = indices[torch.randperm(len(indices), generator=_generator(seed, epoch))]
        stop = len(indices) // batch_size * batch_size if drop_last else len(indices)
        for i in range(start * batch_size, stop, batch_size):
            mine = indices[i : i + batch_size][rank::world_size]
            yield self.images[mine].to(device), self.labels[mine].to(device)

    def _indices(self, split: str) -> Tensor:
        if split not in ("train", "val"):
            raise UnknownNameError("split of tensors", split, ("train", "val"))
        mixed = torch.randperm(len(self.labels), generator=_generator(0, 0))
        part = mixed[self.held_out :] if split == "train" else mixed[: self.held_out]
        return part.sort().values


def stream(*numbers: int) -> int:
    """One seed from several numbers: streams of neighbouring numbers have nothing to do with each other.

    >>> stream(0, 1) != stream(1, 0)
    True
    """
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(stream(*numbers))
