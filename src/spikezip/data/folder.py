"""Data sets that are folders of image files, one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from spikezip.data.assemble import Wanted, assemble, split_off_test
from spikezip.data.augment import ResizedCrop, Shift
from spikezip.data.draws import order
from spikezip.data.images import ImageData
from spikezip.data.sources import Files, decode, opened
from spikezip.errors import DataError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".gif", ".tif", ".tiff"}
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GREY = ("1", "L", "LA", "I", "F")  # Pillow's modes, beside those of 16 bits
_SMALL = 64  # pixels: such images are shifted, larger ones cut out at random


def folder(root: Path, wanted: Wanted) -> ImageData:
    """Images in ``root/train/CLASS/`` and ``root/test/CLASS/``, or in ``root/CLASS/`` (a fifth is then for testing).

    ``root/val/`` is for testing if there is no ``root/test/``, as on ImageNet, and for validation otherwise.
    Files of a split come in a mixed but fixed order. Colour images are normalised with ImageNet's statistics,
    grey ones with mean 0, std 1, unless asked otherwise. Without an image size all images must have one size.

    Raises:
        DataError: no images, a class that is only in the test images, or files that cannot be read.
    """
    splits = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if "train" in splits:
        if len(splits) == 1:
            raise DataError(
                f"{root} has train/ but neither val/ nor test/. Add one of them, with a folder for each class."
            )
        names = _classes(splits["train"])
        found = {split: _list(path, names) for split, path in splits.items()}
    else:
        names = _classes(root)
        found = {"train": _list(root, names)}
    first = found["train"][0][0]
    channels, size = _look_at(first)
    shape = (channels, *wanted.size(size))
    sources = {
        split: Files(paths, labels, channels, wanted.image_size is not None) for split, (paths, labels) in found.items()
    }
    val = None
    if len(sources) == 1:
        train, test = split_off_test(sources["train"])
    else:
        train, test = sources["train"], sources.get("test") or sources["val"]
        val = sources["val"] if len(sources) == 3 else None
    usual = _IMAGENET if channels == 3 else ((0.0,), (1.0,))
    small = min(shape[1:]) <= _SMALL
    augmentation = Shift(padding=max(1, min(shape[1:]) // 8), flip=True) if small else ResizedCrop()
    return assemble(str(root), names, shape, usual, augmentation, wanted, train, test, val)


def _classes(root: Path) -> list[str]:
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(f"{root} holds no folders. Put the images of each class into a folder of its name.")
    return names


def _list(root: Path, names: Sequence[str]) -> tuple[list[Path], torch.Tensor]:
    strange = sorted({p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")} - set(names))
    if strange:
        raise DataError(
            f"{root} has the class {strange[0]!r}, which the training images lack. Remove it, or train on it."
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        own = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        paths += own
        labels += [label] * len(own)
    if not paths:
        raise DataError(f"{root} holds no images ({', '.join(sorted(_SUFFIXES))}) in the folders of its classes.")
    # Mixed, as files sorted by class would make "the first hundred images" a hundred of one class.
    mixed = order(len(paths), 0)
    return [paths[i] for i in mixed], torch.from_numpy(np.asarray(labels, dtype=np.int64)[mixed])


def _look_at(path: Path) -> tuple[int, tuple[int, int]]:
    """Channels and size of a file; the size that decoding gives."""
    with opened(path) as image:
        grey = image.mode in _GREY or image.mode.startswith("I;16")
    height, width = decode(path, "L" if grey else "RGB").shape[-2:]
    return 1 if grey else 3, (height, width)
