"""From the CPU to where values are needed; on request, once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, device

_kept: ContextVar[dict[Any, Tensor] | None] = ContextVar("kept", default=None)


@contextmanager
def copied_once(kept: dict[Any, Tensor]) -> Iterator[None]:
    """Within: what :func:`to_device` copies from the CPU is kept, and not copied again.

    A CUDA graph cannot capture such copies. What has run before with the same ``kept`` has none to make.
    """
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)


def to_device(values: Tensor, where: device) -> Tensor:
    """Values on a device. A small copy to a GPU does not wait for what it still computes."""
    kept = _kept.get()
    if values.device.type != "cpu" or where.type == "cpu":
        return values.to(where)
    if kept is None:
        return values.to(where, non_blocking=where.type == "cuda")
    key = where, values.dtype, values.shape, values.numpy().tobytes()
    if key not in kept:
        kept[key] = values.to(where)
    return kept[key]
