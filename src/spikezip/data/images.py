"""A data set of labelled images: splits, tensors, deterministic batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spikezip.data.augment import Augmentation
from spikezip.data.draws import draw, order
from spikezip.data.sources import Source, as_float, resize
from spikezip.errors import DataError, InputError, UnknownNameError

_CHUNK = 1024  # images read at a time where all of a split is wanted


@dataclass(frozen=True)
class ImageData:
    """A data set of labelled images.

    Args:
        name: what it was opened as.
        class_names: one per class.
        image_shape: ``(C, H, W)`` of every image.
        mean: per channel, subtracted from pixels in ``[0, 1]`` ...
        std: ... and divided by this: images come out as ``(pixel - mean) / std``.
        augmentation: what ``augment=True`` does.
        sources: the splits: ``train``; ``val``, held out of the training images unless the data set has its own;
            ``trainval``, all training images, held out or not; ``test``.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    sources: Mapping[str, Source] = field(repr=False)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def count(self, split: str) -> int:
        """How many images a split has."""
        return len(self._source(split).labels)

    def labels(self, split: str) -> Tensor:
        """The labels of a split, int64 ``[N]``."""
        return self._source(split).labels

    def normalise(self, images: Tensor) -> Tensor:
        """``(images - mean) / std`` of float images ``[..., C, H, W]``."""
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (self.mean, self.std))
        return (images - mean) / std

    def tensors(self, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """The first ``limit`` images of a split, or all.

        Args:
            split: ``train``, ``val``, ``trainval`` or ``test``.
            limit: at most that many; they are those that the data set has first.

        Returns:
            Images, float32 ``[N, C, H, W]``, normalised, and labels, int64 ``[N]``.

        Raises:
            UnknownNameError: no such split.
            InputError: ``limit`` is below 1.
        """
        source = self._source(split)
        if limit is not None and limit < 1:
            raise InputError(f"limit={limit} leaves no images; give 1 or more, or None for all.")
        count = min(len(source.labels), limit if limit is not None else len(source.labels))
        return self._read(source, torch.arange(count, device="cpu")), source.labels[:count]

    def calibration(self, count: int, seed: int = 0) -> Tensor:
        """``count`` different training images drawn at random, float32 ``[count, C, H, W]``, normalised.

        Raises:
            DataError: there are not so many.
        """
        source = self._source("train")
        if not 1 <= count <= len(source.labels):
            raise DataError(
                f"{count} calibration images were asked for; {self.name} has 1 to {len(source.labels)} to give."
            )
        return self._read(source, torch.from_numpy(order(len(source.labels), seed, 2)[:count]))

    def dataset(self, split: str, augment: bool = False) -> ImageDataset:
        """A ``torch.utils.data.Dataset`` of ``(image, label)``; augmentation draws from torch's generator."""
        transform = self.augmentation.transform(self.image_shape[1:]) if augment else None
        return ImageDataset(self, self._source(split), transform)

    def num_batches(self, split: str, batch_size: int, drop_last: bool = False) -> int:
        """How many batches :meth:`batches` gives."""
        return (math.floor if drop_last else math.ceil)(self.count(split) / batch_size)

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
        """Batches that depend on the arguments alone, so that a run can be resumed or spread over processes exactly.

        Args:
            split: ``train``, ``val``, ``trainval`` or ``test``.
            batch_size: images of one step over all processes together.
            seed: which order and augmentation, together with ``epoch``.
            epoch: counted by the caller.
            augment: apply the data set's augmentation; what an image gets depends on (seed, epoch, image) alone.
            shuffle: mix the order.
            drop_last: leave out a last batch that is smaller.
            rank: which process this is, of ``world_size``; it gets images ``rank, rank + world_size, ...`` of a batch.
            world_size: how many processes there are. Each gets equally many batches; in a last, smaller one a process
                may get no image at all, unless ``drop_last``.
            start: batches to pass over, at no cost, when an epoch is resumed.
            device: where images in memory are kept (as bytes), augmented and given out.

        Yields:
            Images, float32 ``[n, C, H, W]``, normalised, and labels, int64 ``[n]``.

        Invariant:
            The union over ranks of a batch is the batch of one process.

        Raises:
            InputError: sizes that do not fit.
            UnknownNameError: no such split.
        """
        source = self._source(split)
        if world_size < 1 or not 0 <= rank < world_size or batch_size < world_size or start < 0:
            raise InputError(
                f"batches(batch_size={batch_size}, rank={rank}, world_size={world_size}, start={start}): give 0 <= rank"
                " < world_size <= batch_size, as each process needs an image of every batch, and start >= 0."
            )
        return self._batches(
            source,
            [
                range(i, min(i + batch_size, len(source.labels)))[rank::world_size]
                for i in range(0, self.num_batches(split, batch_size, drop_last) * batch_size, batch_size)
            ][start:],
            (seed, epoch),
            augment,
            shuffle,
            torch.device(device),
        )

    def _batches(
        self,
        source: Source,
        places: list[range],
        stream: tuple[int, int],
        augment: bool,
        shuffle: bool,
        device: torch.device,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(source.labels)
        sequence = order(count, *stream, 0) if shuffle else np.arange(count)
        for place in places:
            chosen = sequence[place.start : place.stop : place.step]
            indices = torch.from_numpy(np.ascontiguousarray(chosen))
            if augment and len(chosen):
                keys = draw(chosen.astype(np.uint64), *stream, 1)
                images = self.augmentation.batch(source, indices, keys, self.image_shape[1:], device)
            else:
                images = source.read(indices, self.image_shape[1:], device)
            yield self.normalise(images), source.labels[indices].to(device)

    def _read(self, source: Source, indices: Tensor) -> Tensor:
        images = torch.empty(len(indices), *self.image_shape, device="cpu")
        for i in range(0, len(indices), _CHUNK):
            part = indices[i : i + _CHUNK]
            images[i : i + len(part)] = self.normalise(source.read(part, self.image_shape[1:], torch.device("cpu")))
        return images

    def _source(self, split: str) -> Source:
        if split not in self.sources:
            raise UnknownNameError(f"split of {self.name}", split, self.sources)
        return self.sources[split]


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """One split of :class:`ImageData`, image by image, for ``torch.utils.data.DataLoader``."""

    def __init__(self, data: ImageData, source: Source, transform: Callable[[Tensor], Tensor] | None):
        self._data, self._source, self._transform = data, source, transform

    def __len__(self) -> int:
        return len(self._source.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")  # ends iteration by index, as the protocol wants
        index %= len(self)
        size = self._data.image_shape[1:]
        if self._transform is None:
            image = self._source.read(torch.tensor([index], device="cpu"), size, torch.device("cpu"))[0]
        else:
            image = resize(self._transform(as_float(self._source.picture(index)))[None], size)[0]
        return self._data.normalise(image), int(self._source.labels[index])
