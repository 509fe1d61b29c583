"""How floats are multiplied while a network runs: float32 as it is, and shorter only where that is proven exact."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from spikezip.graph import network

P = ParamSpec("P")
R = TypeVar("R")

_CUDNN: Any = torch.backends.cudnn  # these modules make their attributes as they are asked for
_MKLDNN: Any = torch.backends.mkldnn
_CONVOLUTION, _MATMUL = _CUDNN.conv, torch.backends.cuda.matmul
_EVERY = (_CONVOLUTION, _CUDNN.rnn, _MATMUL, _MKLDNN.conv, _MKLDNN.rnn, _MKLDNN.matmul)
#: Whole numbers up to here are operands that TF32 (11 binary digits) keeps as they are.
TF32_WHOLE = 2**11


@contextmanager
def full_precision(*, whole: bool = False) -> Iterator[None]:
    """Within: float32 is multiplied as float32, whatever was allowed (torch allows TF32 in convolutions by default),
    and algorithms are not chosen by trial, which may choose another one in the next run.

    Args:
        whole: sums of whole numbers are to be exact, so cuDNN is left out: it chooses Winograd's algorithm or Fourier
            transforms for some shapes, which compute with fractions (met on an H100 with 3x3 convolutions of float32).
    """
    with _set(_EVERY, "ieee"):
        before = _CUDNN.benchmark, _CUDNN.enabled
        _CUDNN.benchmark, _CUDNN.enabled = False, _CUDNN.enabled and not whole
        try:
            yield
        finally:
            _CUDNN.benchmark, _CUDNN.enabled = before


def exactly(function: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A function of an SNN, computed in :func:`full_precision`, and its sums exactly if its weights are integers."""

    @functools.wraps(function)
    def run(snn: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with full_precision(whole=bool(network.note(snn.graph, "weight_bits"))):
            return function(snn, *args, **kwargs)

    return run


@contextmanager
def tf32() -> Iterator[None]:
    """Within: GPUs may multiply with operands of 11 binary digits and add in float32.

    Exact for whole operands up to :data:`TF32_WHOLE` while their sums of magnitudes stay below 2^24, and for nothing
    else; who calls this has checked both, and what cuDNN, which is allowed here, made of them.
    """
    enabled, _CUDNN.enabled = _CUDNN.enabled, True
    try:
        with _set((_CONVOLUTION, _MATMUL), "tf32"):
            yield
    finally:
        _CUDNN.enabled = enabled


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
