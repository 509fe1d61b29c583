"""Whether torch's public operations do all the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

_alone: ContextVar[bool] = ContextVar("torch_alone", default=False)


def is_alone() -> bool:
    """Whether compiled kernels and 8-bit operations are left out here."""
    return _alone.get()


def torch_alone() -> AbstractContextManager[None]:
    """Within: as on a machine without a compiler and without dot products of bytes. Results are the same bits."""
    return switched_on(_alone)


@contextmanager
def switched_on(switch: ContextVar[bool]) -> Iterator[None]:
    """Within: the switch is on; then as it was before."""
    token = switch.set(True)
    try:
        yield
    finally:
        switch.reset(token)
