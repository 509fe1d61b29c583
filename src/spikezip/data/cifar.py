"""CIFAR-10 and CIFAR-100, from packed files or as torchvision downloads them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikezip.data.archive import load_arrays
from spikezip.data.assemble import Wanted, assemble, check_labels
from spikezip.data.augment import Shift
from spikezip.data.images import ImageData
from spikezip.data.root import cache_root
from spikezip.data.sources import InMemory, Source
from spikezip.errors import DataError

_STATISTICS = {  # of the training images; the usual figures
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_SIDE = 32


def cifar(num_classes: int, root: Path | None, wanted: Wanted) -> ImageData:
    """CIFAR-10 or CIFAR-100: 50,000 training and 10,000 test images, 3 channels, 32x32.

    Args:
        num_classes: 10 or 100.
        root: the folder with ``cifar10_train_*.npz`` and ``cifar10_test.npz``, or with torchvision's files; where there
            are neither, they are downloaded there (None: to the cache folder).
        wanted: normalisation and size in place of the data set's own.

    Raises:
        DataError: the files are not there and cannot be downloaded, or are corrupt.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    name = f"cifar{num_classes}"
    if root is not None and not root.is_dir():
        raise DataError(f"There is no folder {root} to read {name} from. Mend SPIKEZIP_DATA or root=.")
    parts = sorted(root.glob(f"{name}_train_*.npz")) if root else []
    last = root / f"{name}_test.npz" if root else None
    if last is not None and last.is_file() != bool(parts):
        raise DataError(f"{root} has only some of {name}_train_*.npz and {name}_test.npz; put the others beside them.")
    if parts and last is not None:
        train, names = _packed(parts, num_classes)
        test, _ = _packed([last], num_classes)
    else:
        train, test, names = _torchvision(num_classes, root or cache_root())
    shape = (3, *wanted.size((_SIDE, _SIDE)))
    return assemble(name, names, shape, _STATISTICS[num_classes], Shift(4, flip=True), wanted, train, test)


def _packed(paths: Sequence[Path], num_classes: int) -> tuple[Source, Sequence[str]]:
    labels, names = [], []
    for path in paths:
        stored = _load(path, ("count", "labels"), ("classes",))
        labels.append(check_labels(stored["labels"], int(stored["count"]), num_classes, str(path)))
        names = [str(name) for name in stored.get("classes", [])]
    names = names if len(names) == num_classes else [str(i) for i in range(num_classes)]
    return InMemory(partial(_unpack, tuple(paths)), torch.cat(labels)), names


def _load(path: Path, needed: tuple[str, ...], welcome: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    stored, there = load_arrays(path, needed + welcome)
    if missing := set(needed) - set(there):
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}; it is no packed CIFAR file. Copy it again.")
    return stored


def _unpack(paths: Sequence[Path]) -> Tensor:
    return torch.cat([_sprites(path) for path in paths])


def _sprites(path: Path) -> Tensor:
    """The images of one file, uint8 ``[N, 3, 32, 32]``: lossless WebP pictures of ``grid x grid`` images each."""
    from PIL import Image

    stored = _load(path, ("count", "grid", "webp", "offsets"))
    count, grid, raw = int(stored["count"]), int(stored["grid"]), stored["webp"].tobytes()
    images = []
    try:
        for start, stop in pairwise(stored["offsets"]):
            with Image.open(io.BytesIO(raw[start:stop])) as picture:
                sprite = np.asarray(picture.convert("RGB"))
            tiles = sprite.reshape(grid, _SIDE, grid, _SIDE, 3).transpose(0, 2, 4, 1, 3)
            images.append(tiles.reshape(grid * grid, 3, _SIDE, _SIDE))
        stacked = np.concatenate(images)[:count]
        if len(stacked) != count:
            raise ValueError(f"{count} images are announced, {len(stacked)} are there")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}. Copy it again.") from error
    return torch.from_numpy(stacked)


def _torchvision(num_classes: int, folder: Path) -> tuple[Source, Source, Sequence[str]]:
    from spikezip.models.torchvision_ops import import_torchvision

    datasets = import_torchvision("datasets")
    kind = datasets.CIFAR10 if num_classes == 10 else datasets.CIFAR100
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # torchvision checks the files against known MD5 sums before it unpickles them.
        train, test = (kind(str(folder), train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError, EOFError) as error:
        raise DataError(
            f"cifar{num_classes} is not in {folder} and could not be downloaded: {type(error).__name__}: {error}. Set"
            f" SPIKEZIP_DATA (or root=) to one with cifar{num_classes}_train_*.npz and cifar{num_classes}_test.npz"
            f" or unpack {kind.url} there."
        ) from error
    sources = []
    for part in (train, test):
        labels = check_labels(np.asarray(part.targets), len(part.data), num_classes, str(folder))
        sources.append(InMemory(partial(_channels_first, part.data), labels))
    return sources[0], sources[1], list(train.classes)


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)
