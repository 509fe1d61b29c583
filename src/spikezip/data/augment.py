"""Augmentations, each in two forms: batched and keyed by image, and as a torchvision transform of one image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spikezip.data.draws import Keys, integers, uniforms
from spikezip.data.sources import Source, as_float, parallel, resize


@dataclass(frozen=True)
class Shift:
    """Pad with black, cut out at random, and mirror every second image: the usual augmentation of CIFAR.

    Args:
        padding: pixels on each side; an image moves by up to that much.
        flip: mirror left and right with probability 1/2.

    Source: He et al., CVPR 2016, sec. 4.2.
    """

    padding: int
    flip: bool

    def batch(self, source: Source, indices: Tensor, keys: Keys, size: tuple[int, int], device: torch.device) -> Tensor:
        """Augmented images, float32 ``[n, C, H, W]`` before normalisation; image i depends on ``keys[i]`` alone."""
        pixels = source.pixels(indices, device)
        if pixels is None or tuple(pixels.shape[-2:]) != size:
            pixels = source.read(indices, size, device)
        count, (height, width) = len(indices), size
        rows = integers(keys, 2 * self.padding + 1, 1)[:, None] + np.arange(height)
        columns = integers(keys, 2 * self.padding + 1, 2)[:, None] + np.arange(width)
        if self.flip:
            mirrored = integers(keys, 2, 3) == 1
            columns[mirrored] = columns[mirrored, ::-1]
        padded = F.pad(pixels, (self.padding,) * 4)
        at_row = torch.from_numpy(rows).to(device)[:, None, :, None]
        at_column = torch.from_numpy(columns).to(device)[:, None, None, :]
        image = torch.arange(count, device=device)[:, None, None, None]
        channel = torch.arange(pixels.shape[1], device=device)[None, :, None, None]
        return as_float(padded[image, channel, at_row, at_column])

    def transform(self, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        """The same as a ``torchvision.transforms.v2`` transform, which draws from torch's generator."""
        from spikezip.models.torchvision_ops import import_torchvision

        v2 = import_torchvision("transforms.v2")
        steps = [v2.Resize(size, antialias=True), v2.RandomCrop(size, padding=self.padding)]
        return v2.Compose(steps + ([v2.RandomHorizontalFlip()] if self.flip else []))


@dataclass(frozen=True)
class ResizedCrop:
    """Cut out a rectangle of random area and shape, scale it, and mirror every second image: for photographs.

    Args:
        least_area: the least share of the picture that is kept.
        flip: mirror left and right with probability 1/2.

    Source: Szegedy et al., "Going deeper with convolutions", CVPR 2015, sec. 6.
    """

    least_area: float = 0.08
    flip: bool = True

    def batch(self, source: Source, indices: Tensor, keys: Keys, size: tuple[int, int], device: torch.device) -> Tensor:
        """Augmented images, float32 ``[n, C, H, W]`` before normalisation; image i depends on ``keys[i]`` alone."""
        draws = np.stack([uniforms(keys, stream) for stream in range(1, 6)], axis=1)
        places = indices.tolist()

        def one(i: int) -> Tensor:
            picture = as_float(source.picture(places[i]))
            area, ratio, y, x, mirror = draws[i]
            height, width = picture.shape[-2:]
            kept = height * width * (self.least_area + area * (1 - self.least_area))
            shape = np.exp((2 * ratio - 1) * np.log(4 / 3))
            h = min(height, max(1, round(float(np.sqrt(kept / shape)))))
            w = min(width, max(1, round(float(np.sqrt(kept * shape)))))
            top, left = int(y * (height - h + 1)), int(x * (width - w + 1))
            cut = resize(picture[None, :, top : top + h, left : left + w], size)[0]
            return cut.flip(-1) if self.flip and mirror < 0.5 else cut

        return torch.stack(parallel(one, range(len(places)))).to(device)

    def transform(self, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        """The same as a ``torchvision.transforms.v2`` transform, which draws from torch's generator."""
        from spikezip.models.torchvision_ops import import_torchvision

        v2 = import_torchvision("transforms.v2")
        crop = v2.RandomResizedCrop(size, scale=(self.least_area, 1.0), antialias=True)
        return v2.Compose([crop] + ([v2.RandomHorizontalFlip()] if self.flip else []))


Augmentation = Shift | ResizedCrop
