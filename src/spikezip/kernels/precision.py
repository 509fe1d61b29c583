"""How floats are multiplied while a network runs: float32 as it is, and shorter only where that is proven exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_CUDNN: Any = torch.backends.cudnn  # these modules make their attributes as they are asked for
_MKLDNN: Any = torch.backends.mkldnn
_CONVOLUTION, _MATMUL = _CUDNN.conv, torch.backends.cuda.matmul
_EVERY = (_CONVOLUTION, _CUDNN.rnn, _MATMUL, _MKLDNN.conv, _MKLDNN.rnn, _MKLDNN.matmul)
#: Whole numbers up to here are operands that TF32 (11 binary digits) keeps as they are.
TF32_WHOLE = 2**11


@contextmanager
def full_precision() -> Iterator[None]:
    """Within: float32 is multiplied as float32, whatever was allowed (torch allows TF32 in convolutions by default),
    and algorithms are not chosen by trial, which may choose another one in the next run. Also a decorator."""
    with _set(_EVERY, "ieee"):
        benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = benchmark


@contextmanager
def tf32() -> Iterator[None]:
    """Within: GPUs may multiply with operands of 11 binary digits and add in float32.

    Exact for whole operands up to :data:`TF32_WHOLE` while their sums of magnitudes stay below 2^24, and for nothing
    else; who calls this has checked both.
    """
    with _set((_CONVOLUTION, _MATMUL), "tf32"):
        yield


@contextmanager
def _set(places: tuple, precision: str) -> Iterator[None]:
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = precision
        yield
    finally:
        for place, old in zip(places, before, strict=True):
            place.fp32_precision = old
