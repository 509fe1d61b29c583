"""The 8x8 handwritten digits that scikit-learn carries with it."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from spikezip.data.assemble import Wanted, assemble, split_off_test
from spikezip.data.augment import Shift
from spikezip.data.images import ImageData
from spikezip.data.sources import InMemory


def digits(wanted: Wanted) -> ImageData:
    """1,797 digits, 1 channel, 8x8, pixels in ``[0, 1]``; a fixed fifth of every class is for testing.

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI 1998 (its test part).
    """
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy((np.asarray(pixels) / 16).astype(np.float32)).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(np.asarray(classes).astype(np.int64))
    train, test = split_off_test(InMemory(partial(_same, images), labels))
    names = [str(i) for i in range(10)]
    shape = (1, *wanted.size((8, 8)))
    return assemble("digits", names, shape, ([0.0], [1.0]), Shift(padding=1, flip=False), wanted, train, test)


def _same(images: Tensor) -> Tensor:
    return images
