"""Whether torch's public operations do all the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_alone: ContextVar[bool] = ContextVar("torch_alone", default=False)


def is_alone() -> bool:
    """Whether compiled kernels and 8-bit operations are left out here."""
    return _alone.get()


@contextmanager
def torch_alone() -> Iterator[None]:
    """Within: as on a machine without a compiler and without dot products of bytes. Results are the same bits."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)
