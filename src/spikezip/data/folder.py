"""Data sets that are folders of image files, one folder a class."""

from __future__ import annotations

import re
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
_FORMATS = ", ".join(sorted(_SUFFIXES))
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_BESIDE = {"image", "images", "img", "imgs", "set", "data", "dataset"}  # train_images/ is a split, not a class
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GREY = ("1", "L", "LA", "I", "F")  # Pillow's modes, beside those of 16 bits
_LOOKED_AT = 1000  # reading a header takes 0.1 to 0.3 ms
_SMALL = 64  # pixels: such images are shifted, larger ones cut out at random


def folder(root: Path, wanted: Wanted) -> ImageData:
    """Images in ``root/train/CLASS/`` and ``root/test/CLASS/``, or in ``root/CLASS/`` (a fifth is then for testing).

    ``root/val/`` is for testing if there is no ``root/test/``, as on ImageNet, and for validation otherwise. The splits
    may be called ``training``, ``valid``, ``validation`` or ``testing`` too, in any case, and ``train_images``,
    ``test-set`` or the like; other folders beside them are passed over, as is all whose name begins with a dot.

    Files of a split come in a mixed but fixed order. Images have one channel if the first 1,000 training images in that
    order (a sample of all classes) are all grey, and three otherwise. Colour images are normalised with ImageNet's
    statistics and mirrored at random by the augmentation; grey ones, which may be letters, have mean 0, std 1, and are
    never mirrored. Another normalisation may be asked for. Without an image size all images must have one size.

    Raises:
        DataError: fewer than two classes, a class without training images or only in the test images, folders of splits
            that are not all there, or files that cannot be read.
    """
    splits = _splits(root)
    if splits:
        names = _classes(splits["train"])
        found = {split: _list(path, names, split) for split, path in splits.items()}
    else:
        names = _classes(root)
        found = {"train": _list(root, names, "train")}
    channels, size = _look_at(found["train"][0])
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
    flip = channels == 3  # mirrored, letters are other letters
    augmentation = Shift(max(1, min(shape[1:]) // 8), flip) if small else ResizedCrop(flip=flip)
    return assemble(str(root), names, shape, usual, augmentation, wanted, train, test, val)


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _splits(root: Path) -> dict[str, Path]:
    """The folders of the splits, or none if those in ``root`` are of classes."""
    found = [(split, path) for path in _folders(root) if (split := _split(path.name))]
    splits = dict(found)
    if found and (len(splits) < len(found) or "train" not in splits or len(splits) == 1):
        raise DataError(
            f"{root} has {' and '.join(f'{path.name}/' for _, path in found)}; it needs one train/, and val/ or test/"
            " or one of each, with a folder for each class in them. Mend or rename them."
        )
    return splits


def _split(name: str) -> str | None:
    """The split that a folder of this name holds; None for one of a class, such as ``freight_train``."""
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word not in _BESIDE]
    return _SPLITS.get(words[0]) if len(words) == 1 else None


def _classes(root: Path) -> list[str]:
    names = [path.name for path in _folders(root)]
    if len(names) < 2:
        raise DataError(
            f"{root} holds {f'one folder, {names[0]}/' if names else 'no folders'}, and 2 classes or more are needed."
            " Give the folder that holds one folder of images a class, or folders train/ and test/ that do."
        )
    return names


def _list(root: Path, names: Sequence[str], split: str) -> tuple[list[Path], torch.Tensor]:
    strange = sorted({path.name for path in _folders(root)} - set(names))
    if strange:
        raise DataError(
            f"{root} has the class {strange[0]!r}, which the training images lack. Remove it, or train on it."
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        own = sorted(p for p in (root / name).rglob("*") if _is_image(p.relative_to(root)) and p.is_file())
        if split == "train" and not own:
            raise DataError(f"{root / name} holds no images ({_FORMATS}) to train on. Add some, or remove the folder.")
        paths += own
        labels += [label] * len(own)
    if not paths:
        raise DataError(f"{root} holds no images ({_FORMATS}) in the folders of its classes.")
    # Mixed, as files sorted by class would make "the first hundred images" a hundred of one class.
    mixed = order(len(paths), 0)
    return [paths[i] for i in mixed], torch.from_numpy(np.asarray(labels, dtype=np.int64)[mixed])


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _look_at(paths: Sequence[Path]) -> tuple[int, tuple[int, int]]:
    """Channels of some files, and the size that decoding gives the first."""
    grey = all(_is_grey(path) for path in paths[:_LOOKED_AT])
    height, width = decode(paths[0], "L" if grey else "RGB").shape[-2:]
    return 1 if grey else 3, (height, width)


def _is_grey(path: Path) -> bool:
    with opened(path) as image:
        return image.mode in _GREY or image.mode.startswith("I;16")
