"""How floats are multiplied while a network runs: float32 as it is, and shorter only where that is proven exact."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from spikezip.graph import network
from spikezip.graph.modes import default_device

P = ParamSpec("P")
R = TypeVar("R")

_CUDNN: Any = torch.backends.cudnn  # these modules make their attributes as they are asked for
_MKLDNN: Any = torch.backends.mkldnn
_CONVOLUTION, _MATMUL = _CUDNN.conv, torch.backends.cuda.matmul
_EVERY = (_CONVOLUTION, _CUDNN.rnn, _MATMUL, _MKLDNN.conv, _MKLDNN.rnn, _MKLDNN.matmul)
#: Whole numbers up to here are operands that TF32 (11 binary digits) keeps as they are.
TF32_WHOLE = 2**11
#: Settings are the whole process's: who computes with which (thread, and whether cuDNN is left out), and who before.
_LOCK = threading.RLock()
_inside: list[tuple[int, bool]] = []
_outside = ExitStack()


@contextmanager
def full_precision(*, whole: bool = False) -> Iterator[None]:
    """Within: float32 is multiplied as float32, whatever was allowed (torch allows TF32 in convolutions by default),
    and algorithms are not chosen by trial, which may choose another one in the next run.

    Args:
        whole: sums of whole numbers are to be exact, so cuDNN is left out: it chooses Winograd's algorithm or Fourier
            transforms for some shapes, which compute with fractions (met on an H100 with 3x3 convolutions of float32).

    ``torch.autocast`` is off within, and new tensors are the CPU's (:func:`~spikezip.graph.modes.default_device`).
    Several threads may be within at once; the last one out puts back what was before.
    """
    here = threading.get_ident(), whole
    _enter(here)
    try:
        with ExitStack() as defaults:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    defaults.enter_context(torch.autocast(kind, enabled=False))
            defaults.enter_context(default_device())
            yield
    finally:
        _leave(here)


def _enter(here: tuple[int, bool]) -> None:
    with _LOCK:
        if not _inside:
            _outside.enter_context(_set(_EVERY, "ieee"))
            _outside.enter_context(_cudnn(enabled=_CUDNN.enabled, benchmark=False))
        _inside.append(here)
        if here[1] and _CUDNN.enabled:
            _CUDNN.enabled = False


def _leave(here: tuple[int, bool]) -> None:
    with _LOCK:
        _inside.remove(here)
        if not _inside:
            _outside.close()


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
    else; who calls this has checked both, and what cuDNN, which is allowed here, made of them. Other threads wait where
    they would begin to compute in full precision; while some do already, nothing changes.
    """
    with _LOCK:
        if not {thread for thread, _ in _inside} - {threading.get_ident()}:
            with _set((_CONVOLUTION, _MATMUL), "tf32"), _cudnn(enabled=True, benchmark=_CUDNN.benchmark):
                yield
            return
    yield


@contextmanager
def _cudnn(*, enabled: bool, benchmark: bool) -> Iterator[None]:
    before = _CUDNN.enabled, _CUDNN.benchmark
    _CUDNN.enabled, _CUDNN.benchmark = enabled, benchmark
    try:
        yield
    finally:
        _CUDNN.enabled, _CUDNN.benchmark = before


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
