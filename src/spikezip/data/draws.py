"""Random numbers that depend on nothing but their key, so that any worker draws the same for the same image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


def draw(keys: Keys, *stream: int) -> Keys:
    """One 64-bit number per key: ``mix(... mix(mix(key) + s_1) ... + s_n)``.

    Args:
        keys: ``[N]``, for example indices of images.
        stream: whole numbers that tell apart what is drawn (seed, epoch, which draw).

    Returns:
        ``[N]`` numbers, evenly spread over 0..2^64-1. The same arguments give the same numbers on every machine and
        in every version, which resuming a training run and fixed splits of data sets rely on.

    Source: splitmix64, Steele, Lea and Flood, OOPSLA 2014, fig. 17.
    """
    mixed = _mix(np.asarray(keys, dtype=np.uint64))
    for number in stream:
        mixed = _mix(mixed + np.array([number % 2**64], dtype=np.uint64))
    return mixed


def _mix(x: Keys) -> Keys:
    x = x + np.array([0x9E3779B97F4A7C15], dtype=np.uint64)  # arrays wrap around, where scalars would warn
    x = (x ^ (x >> np.uint64(30))) * np.array([0xBF58476D1CE4E5B9], dtype=np.uint64)
    x = (x ^ (x >> np.uint64(27))) * np.array([0x94D049BB133111EB], dtype=np.uint64)
    return x ^ (x >> np.uint64(31))


def integers(keys: Keys, count: int, *stream: int) -> NDArray[np.int64]:
    """One of ``0..count-1`` per key."""
    return (draw(keys, *stream) % np.uint64(count)).astype(np.int64)


def uniforms(keys: Keys, *stream: int) -> NDArray[np.float64]:
    """One number in ``[0, 1)`` per key."""
    return (draw(keys, *stream) >> np.uint64(11)).astype(np.float64) / 2.0**53


def order(count: int, *stream: int) -> NDArray[np.int64]:
    """A permutation of ``0..count-1``."""
    return np.argsort(draw(np.arange(count, dtype=np.uint64), *stream), kind="stable")


def carve(labels: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split indices in two, class by class.

    Args:
        labels: ``[N]``.
        share: of every class that goes into the second part, rounded, at least one image of a class of two or more.
        seed: which split.

    Returns:
        The indices of the two parts, each in mixed order.

    >>> kept, held = carve(np.array([0] * 10 + [1] * 20), 0.1, seed=0)
    >>> len(kept), len(held)
    (27, 3)
    """
    mixed = order(len(labels), seed)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        own = mixed[labels[mixed] == label]
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        held[own[:count]] = True
    return mixed[~held[mixed]], mixed[held[mixed]]
