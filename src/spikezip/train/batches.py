"""What training asks of data, tensors in memory as the simplest answer, and datasets of one's own."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spikezip.errors import DataError, InputError, UnknownNameError
from spikezip.graph.modes import default_device
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
        order = _order(self.count(split), seed, epoch) if shuffle else slice(None)
        for mine in _parts(self._indices(split)[order], batch_size, drop_last, rank, world_size, start):
            yield self.images[mine].to(device), self.labels[mine].to(device)

    def _indices(self, split: str) -> Tensor:
        if split not in ("train", "val"):
            raise UnknownNameError("split of tensors", split, ("train", "val"))
        mixed = _order(len(self.labels), 0, 0)
        part = mixed[self.held_out :] if split == "train" else mixed[: self.held_out]
        return part.sort().values


@dataclass(frozen=True, eq=False)
class DatasetBatches:
    """Datasets of ``(image, label)``, with transforms of one's own, as data to train on.

    What a transform draws, from torch's, Python's or NumPy's generator, follows from seed, epoch and the image's place
    in the dataset, so that a training that is resumed goes on with the same images. Whether there are transforms is the
    dataset's own affair: ``augment`` changes nothing.

    Args:
        train: with a length; its transforms end in a tensor.
        val: the split ``val``, if there is one.
        workers: processes that read images.

    Raises:
        InputError: a dataset cannot be read by index, or gives something else than a tensor and a class number.
        DataError: a dataset is empty.

    >>> points = torch.utils.data.TensorDataset(torch.arange(10.0)[:, None], torch.arange(10))
    >>> data = DatasetBatches(points)
    >>> [len(labels) for _, labels in data.batches("train", 4)]
    [4, 4, 2]
    """

    train: Dataset
    val: Dataset | None = None
    workers: int = 0

    def __post_init__(self):
        given: dict[str, Any] = {"train": self.train} | ({} if self.val is None else {"val": self.val})
        for name, dataset in given.items():
            if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
                raise InputError(
                    f"{name} is a {type(dataset).__name__}, which cannot be read by index. Give a Dataset with a "
                    "length: of a DataLoader its .dataset."
                )
            if not len(dataset):
                raise DataError(f"{name} has no images.")
            with _drawing(0):
                first = dataset[0]
            image, label = first if isinstance(first, tuple | list) and len(first) == 2 else (first, None)
            if not isinstance(image, Tensor) or not isinstance(label, int | np.integer | Tensor):
                what = f"({type(image).__name__}, {type(label).__name__})"
                raise InputError(
                    f"{name}[0] is {what}; give a tensor and a class number. transforms.ToTensor() makes tensors of "
                    "images."
                )

    def count(self, split: str) -> int:
        """How many images ``train`` or ``val`` has."""
        return len(self._dataset(split))

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
        """Batches in an order drawn from (seed, epoch)."""
        count = self.count(split)
        indices = _order(count, seed, epoch) if shuffle else torch.arange(count, device="cpu")
        mine = [part.tolist() for part in _parts(indices, batch_size, drop_last, rank, world_size, start)]
        drawn = _Drawn(self._dataset(split), seed, epoch)
        own = torch.Generator()  # of its workers' seeds; the usual one is the user's
        loader = DataLoader(drawn, batch_sampler=mine, num_workers=self.workers, generator=own)
        for images, labels in _loaded(loader):
            yield images.to(device), labels.to(device)

    def _dataset(self, split: str) -> Any:
        if split not in ("train", "val"):
            raise UnknownNameError("split of datasets", split, ("train", "val"))
        return self.train if split == "train" else self.val or ()


def _loaded(loader: DataLoader) -> Iterator[Any]:
    """What a loader gives. It draws from its generator, and makes tensors, on the CPU, as its workers do."""
    with default_device():
        batches = iter(loader)
    while True:
        with default_device():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


class _Drawn(Dataset):
    """A dataset whose transforms draw what follows from an image's place, wherever it is read."""

    def __init__(self, dataset: Dataset, seed: int, epoch: int):
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with _drawing(stream(self.seed, self.epoch, index)):
            image, label = self.dataset[index]
        return image, int(label)


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Within: the CPU's generators of random numbers begin at a seed; then they go on from where they were."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def _order(count: int, seed: int, epoch: int) -> Tensor:
    """The places of so many images, mixed."""
    return torch.randperm(count, generator=_generator(seed, epoch), device="cpu")


def _parts(
    indices: Tensor, batch_size: int, drop_last: bool, rank: int, world_size: int, start: int
) -> Iterator[Tensor]:
    """What one of several processes takes of each batch."""
    stop = len(indices) // batch_size * batch_size if drop_last else len(indices)
    for i in range(start * batch_size, stop, batch_size):
        yield indices[i : i + batch_size][rank::world_size]


def stream(*numbers: int) -> int:
    """One seed from several numbers: streams of neighbouring numbers have nothing to do with each other.

    >>> stream(0, 1) != stream(1, 0)
    True
    """
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(stream(*numbers))
