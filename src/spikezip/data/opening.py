"""Finding a data set by name or path."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from spikezip.data.arrays import arrays
from spikezip.data.assemble import Wanted
from spikezip.data.cifar import cifar
from spikezip.data.digits import digits
from spikezip.data.folder import folder
from spikezip.data.images import ImageData
from spikezip.data.root import data_root
from spikezip.errors import DataError, UnknownNameError

DATA_SETS = ("cifar10", "cifar100", "digits")


def open_data(
    spec: str | PathLike[str],
    root: str | PathLike[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> ImageData:
    """Open a data set of labelled images.

    Args:
        spec: ``digits``, ``cifar10``, ``cifar100``, a folder with one folder of images a class, or an ``.npz`` file.
        root: the folder that holds CIFAR; by default ``SPIKEZIP_DATA``, else a cache folder that it is downloaded to.
        mean: per channel, or one for all: subtracted from pixels in ``[0, 1]``; by default the data set's usual.
        std: per channel, or one for all: divides them; by default the data set's usual.
        image_size: scale images to so many pixels a side, or (height, width); by default their own size.

    Returns:
        The data set; pixels are read when they are first used.

    Raises:
        UnknownNameError: no such data set; near matches are told.
        DataError: it cannot be found or read, or is malformed; the file and what to do are told.

    >>> data = open_data("digits")
    >>> data.image_shape, data.num_classes, [data.count(split) for split in ("train", "val", "test")]
    ((1, 8, 8), 10, [1295, 143, 359])
    """
    name, path = str(spec), Path(spec).expanduser()
    if not name:  # as a path it would be the current folder
        raise UnknownNameError("data set (or folder or .npz file)", name, DATA_SETS)
    wanted = Wanted(mean, std, image_size)
    if name == "digits":
        return digits(wanted)
    if name in ("cifar10", "cifar100"):
        return cifar(int(name.removeprefix("cifar")), data_root(root), wanted)
    if path.is_dir():
        return folder(path, wanted)
    if path.is_file():
        if path.suffix.lower() != ".npz":
            raise DataError(
                f"{path} is not a data set. Give an .npz file, or a folder with one folder of images a class."
            )
        return arrays(path, wanted)
    if path.suffix or len(path.parts) > 1:
        raise DataError(f"There is no file or folder {path}. Check the path of the data set.")
    raise UnknownNameError("data set (or folder or .npz file)", name, DATA_SETS)
