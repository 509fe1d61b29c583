"""Where the pixels of one split are: in memory, in files, or in a part of another split."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spikezip.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


class Source(Protocol):
    """Images and labels of one split; pixels are uint8, or float32 as the file gives them."""

    labels: Tensor  # int64 [N]

    def read(self, indices: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
        """The images ``[n, C, H, W]``, float32, bytes divided by 255, at the size asked for."""
        ...

    def pixels(self, indices: Tensor, device: torch.device) -> Tensor | None:
        """The images as they are stored, ``[n, C, H, W]``, or None where each has its own size."""
        ...

    def picture(self, index: int) -> Tensor:
        """One image, ``[C, h, w]``, in its own size."""
        ...


def as_float(pixels: Tensor) -> Tensor:
    """Bytes to ``[0, 1]``; floating-point pixels stay as they are."""
    if pixels.dtype != torch.uint8:
        return pixels
    # Divided by a tensor on the device: CUDA multiplies by the rounded inverse of a plain number, one bit off the CPU.
    return pixels.float() / torch.full((), 255.0, device=pixels.device)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Float images ``[n, C, H, W]`` at another size, bilinear with antialiasing."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


class InMemory:
    """A split that fits in memory; it is decoded when first used, and copied once to each device that asks.

    Args:
        load: gives the images, uint8 or float32 ``[N, C, H, W]``.
        labels: int64 ``[N]``.
    """

    def __init__(self, load: Callable[[], Tensor], labels: Tensor):
        self.labels = labels
        self._load = load
        self._images: dict[torch.device, Tensor] = {}

    def images(self, device: torch.device) -> Tensor:
        """All images, on a device."""
        cpu = torch.device("cpu")
        if cpu not in self._images:
            self._images[cpu] = self._load().contiguous()
        if device not in self._images:
            self._images[device] = self._images[cpu].to(device)
        return self._images[device]

    def pixels(self, indices: Tensor, device: torch.device) -> Tensor:
        return self.images(device)[indices.to(device)]

    def read(self, indices: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
        return resize(as_float(self.pixels(indices, device)), size)

    def picture(self, index: int) -> Tensor:
        return self.images(torch.device("cpu"))[index]


class Part:
    """Some images of another split, in a given order."""

    def __init__(self, whole: Source, indices: Sequence[int] | np.ndarray):
        self._whole = whole
        self._indices = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        self.labels = whole.labels[self._indices]

    def pixels(self, indices: Tensor, device: torch.device) -> Tensor | None:
        return self._whole.pixels(self._indices[indices], device)

    def read(self, indices: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
        return self._whole.read(self._indices[indices], size, device)

    def picture(self, index: int) -> Tensor:
        return self._whole.picture(int(self._indices[index]))


class Files:
    """A split of image files, decoded when they are read, several at a time.

    Args:
        paths: one file an image.
        labels: int64 ``[N]``.
        channels: 1 or 3; pictures are converted.
        resized: whether pictures of other sizes are scaled (shorter side to ``8/7`` of the size, then the centre is cut
            out, as is usual on ImageNet) or refused.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, channels: int, resized: bool):
        self.labels = labels
        self._paths = list(paths)
        self._mode = "L" if channels == 1 else "RGB"
        self._resized = resized

    def picture(self, index: int) -> Tensor:
        return decode(self._paths[index], self._mode)

    def pixels(self, indices: Tensor, device: torch.device) -> None:
        return None

    def read(self, indices: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
        images = parallel(lambda index: self._fitted(index, size), indices.tolist())
        return torch.stack(images).to(device) if images else torch.empty(0, len(self._mode), *size, device=device)

    def _fitted(self, index: int, size: tuple[int, int]) -> Tensor:
        picture = as_float(self.picture(index))
        height, width = picture.shape[-2:]
        if (height, width) == size:
            return picture
        if not self._resized:
            raise DataError(
                f"{self._paths[index]} has {height}x{width} pixels, other images {size[0]}x{size[1]}. Give"
                " image_size= (on the command line --image-size) to scale all images to one size."
            )
        scale = max(size[0] / height, size[1] / width) * 8 / 7
        scaled = resize(picture[None], (max(round(height * scale), size[0]), max(round(width * scale), size[1])))[0]
        top, left = (scaled.shape[-2] - size[0]) // 2, (scaled.shape[-1] - size[1]) // 2
        return scaled[:, top : top + size[0], left : left + size[1]]


def decode(path: Path, mode: str) -> Tensor:
    """One image file as uint8 ``[C, H, W]``, 16-bit grey scaled to 8 bits; ``mode`` is Pillow's: L or RGB."""
    from PIL import Image

    with opened(path) as image:
        if image.mode in ("I", "F"):
            raise DataError(
                f"{path} has grey values of 32 bits, whose black and white are not known. Store images of 8 or 16 bits,"
                " or floating-point images in an .npz file."
            )
        # Pillow would cut off what is above 255.
        deep = image.mode.startswith("I;16")
        shown = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8)) if deep else image
        array = np.array(shown.convert(mode))
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


@contextmanager
def opened(path: Path) -> Iterator[Image]:
    """An image file whose header is read and whose pixels are not, or a DataError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            yield image
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}. Remove or replace the file.") from error


def parallel(function: Callable[[int], Tensor], indices: Sequence[int]) -> list[Tensor]:
    """Apply a function to indices on several threads (Pillow decodes without holding the interpreter)."""
    workers = min(8, os.cpu_count() or 1, len(indices))
    if workers < 2:
        return [function(index) for index in indices]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, indices))
