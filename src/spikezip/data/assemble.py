"""What every kind of data set has in common when it is opened: splits, checks, normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikezip.data.augment import Augmentation
from spikezip.data.draws import carve
from spikezip.data.images import ImageData
from spikezip.data.sources import Part, Source
from spikezip.errors import DataError

_VALIDATION_SHARE = 0.1
_SPLIT_SEED = 20  # fixed for good: who compares results has to hold out the same images


@dataclass(frozen=True)
class Wanted:
    """What the caller of ``open_data`` asked for in place of a data set's own; None is the data set's own.

    ``mean`` and ``std`` of one number are for all channels.
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    image_size: int | tuple[int, int] | None = None

    def size(self, own: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the images."""
        size = own if self.image_size is None else self.image_size
        size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if min(size) < 1:
            raise DataError(f"image_size={self.image_size} is no size; give the pixels of a side, or (height, width).")
        return size


def assemble(
    name: str,
    class_names: Sequence[str],
    image_shape: tuple[int, int, int],
    normalisation: tuple[Sequence[float], Sequence[float]],
    augmentation: Augmentation,
    wanted: Wanted,
    train: Source,
    test: Source,
    val: Source | None = None,
) -> ImageData:
    """Put a data set together; validation images are held out of ``train`` if there are none."""
    sources = {"train": train, "trainval": train, "test": test}
    if val is None:
        kept, held = carve(train.labels.numpy(), _VALIDATION_SHARE, _SPLIT_SEED)
        sources |= {"train": Part(train, kept), "val": Part(train, held)}
    else:
        sources |= {"val": val}
    for split, source in sources.items():
        if len(source.labels) == 0:
            raise DataError(
                f"{name} has no images for {split!r}; it needs images to train on, to test, and to hold out."
            )
    channels = image_shape[0]
    mean = _per_channel(name, "mean", normalisation[0] if wanted.mean is None else wanted.mean, channels)
    std = _per_channel(name, "std", normalisation[1] if wanted.std is None else wanted.std, channels)
    if min(std) <= 0:
        raise DataError(f"std={std} for {name} divides by zero or less; give positive numbers.")
    return ImageData(name, tuple(class_names), image_shape, mean, std, augmentation, sources)


def split_off_test(whole: Source, share: float = 0.2) -> tuple[Source, Source]:
    """Training and test images of a data set that comes in one piece, class by class, always the same."""
    kept, held = carve(whole.labels.numpy(), share, _SPLIT_SEED + 1)
    return Part(whole, kept), Part(whole, held)


def check_labels(labels: np.ndarray, count: int, num_classes: int | None, where: str) -> Tensor:
    """Labels as int64 ``[N]``, or a DataError that names the file and the first bad one."""
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{where}: labels are {labels.dtype} {list(labels.shape)}; store one whole number an image, shape [N],"
            " counted from 0 (argmax of one-hot rows)."
        )
    if len(labels) != count:
        raise DataError(f"{where}: {len(labels)} labels for {count} images; store one label an image.")
    numbers = labels.astype(np.int64)  # first: unsigned numbers beyond it turn negative
    bad = np.flatnonzero((numbers < 0) | (numbers >= (num_classes if num_classes is not None else np.inf)))
    if len(bad):
        top = "0 or more" if num_classes is None else f"0..{num_classes - 1}"
        raise DataError(f"{where}: label {labels[bad[0]]} of image {bad[0]} is not in {top}. Mend the labels.")
    return torch.from_numpy(numbers)


def _per_channel(name: str, what: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    values = tuple(float(v) for v in values)
    if len(values) == 1:
        values *= channels
    if len(values) != channels or not all(math.isfinite(v) for v in values):
        raise DataError(
            f"{what}={values} for {name}: give one finite number for each of its {channels} channels, or one for all."
        )
    return values
