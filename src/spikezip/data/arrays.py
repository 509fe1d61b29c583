"""Data sets in one ``.npz`` file of arrays."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikezip.data.archive import load_arrays
from spikezip.data.assemble import Wanted, assemble, check_labels, split_off_test
from spikezip.data.augment import Shift
from spikezip.data.images import ImageData
from spikezip.data.sources import InMemory
from spikezip.errors import DataError

_SPLIT = ("x_train", "y_train", "x_test", "y_test")
_WHOLE = ("images", "labels")


def arrays(path: Path, wanted: Wanted) -> ImageData:
    """A data set in an ``.npz`` file: ``x_train, y_train, x_test, y_test``, or ``images, labels``.

    Of ``images, labels`` a fixed fifth of every class is for testing.

    Images are uint8 (divided by 255) or floating point (taken as they are), ``[N, H, W]``, ``[N, H, W, C]`` or
    ``[N, C, H, W]``; the shortest side is the channels. Normalisation is mean 0, std 1 unless asked for. A
    ``classes`` array may name the classes.

    Raises:
        DataError: anything else, naming the array.
    """
    stored, there = load_arrays(path, (*_SPLIT, *_WHOLE, "classes"))
    if set(_SPLIT) <= stored.keys():
        pairs = [_SPLIT[:2], _SPLIT[2:]]
    elif set(_WHOLE) <= stored.keys():
        pairs = [_WHOLE]
    else:
        raise DataError(
            f"{path} holds {', '.join(sorted(there)) or 'nothing'}; it needs the arrays {', '.join(_SPLIT)}, or"
            f" {' and '.join(_WHOLE)}. Write them with numpy.savez."
        )
    names = _names(stored["classes"], path) if "classes" in stored else None
    sources, shape = [], None
    for images_name, labels_name in pairs:
        images = _images(stored[images_name], f"{path}: {images_name}")
        if shape is not None and images.shape[1:] != shape:
            raise DataError(
                f"{path}: {images_name} has images {list(images.shape[1:])}, {pairs[0][0]} {list(shape)} (C, H, W)."
            )
        shape = images.shape[1:]
        num_classes = None if names is None else len(names)
        labels = check_labels(stored[labels_name], len(images), num_classes, f"{path}: {labels_name}")
        if names is None:  # the first array, of training images, says how many classes there are
            if labels.max() >= len(labels):
                raise DataError(
                    f"{path}: {labels_name} goes up to {labels.max()} for {len(labels)} images; number them 0, 1, ..."
                )
            names = [str(i) for i in range(int(labels.max()) + 1)]
        sources.append(InMemory(partial(_same, images), labels))
    assert shape is not None
    assert names is not None
    train, test = sources if len(sources) == 2 else split_off_test(sources[0])
    channels, height, width = shape
    size = wanted.size((height, width))
    usual = ([0.0] * channels, [1.0] * channels)
    shift = Shift(padding=max(1, min(size) // 8), flip=False)  # mirrored, letters are other letters
    return assemble(str(path), names, (channels, *size), usual, shift, wanted, train, test)


def _names(array: np.ndarray, path: Path) -> list[str]:
    if array.ndim != 1:
        raise DataError(f"{path}: classes has shape {list(array.shape)}; store one name a class, [K].")
    return [str(name) for name in array]


def _images(array: np.ndarray, where: str) -> Tensor:
    if array.ndim not in (3, 4) or 0 in array.shape:
        what = "no images" if array.ndim in (3, 4) else f"shape {list(array.shape)}"
        raise DataError(f"{where} has {what}; store images as [N, H, W], [N, H, W, C] or [N, C, H, W].")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{where} is {array.dtype}; store uint8 (0..255) or floating-point images.")
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[3] < min(array.shape[1:3]):
        array = array.transpose(0, 3, 1, 2)
    elif array.shape[1] >= min(array.shape[2:]):
        raise DataError(f"{where} has shape {list(array.shape)}; no axis is the shortest, so none can be the channels.")
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array))
    with np.errstate(over="ignore"):  # doubles beyond float32 become infinite, and are told below
        array = np.ascontiguousarray(array, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(array).all(axis=(1, 2, 3)))
    if len(bad):
        raise DataError(f"{where} holds NaN or infinity in {len(bad)} images, first in image {bad[0]}. Remove them.")
    return torch.from_numpy(array)


def _same(images: Tensor) -> Tensor:
    return images
