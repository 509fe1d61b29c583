"""What is left out to see what it is worth: compiled kernels, 8-bit operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

_alone: ContextVar[bool] = ContextVar("torch_alone", default=False)
_no_compiler: ContextVar[bool] = ContextVar("no_compiler", default=False)


def is_alone() -> bool:
    """Whether torch's public operations do everything here."""
    return _alone.get()


def torch_alone() -> AbstractContextManager[None]:
    """Within: without compiled kernels and without 8-bit operations. Results are the same bits."""
    return switched_on(_alone)


def has_no_compiler() -> bool:
    """Whether compiled kernels are left out here."""
    return _alone.get() or _no_compiler.get()


def no_compiler() -> AbstractContextManager[None]:
    """Within: as on a machine without a compiler. Results are the same bits."""
    return switched_on(_no_compiler)


@contextmanager
def switched_on(switch: ContextVar[bool]) -> Iterator[None]:
    """Within: the switch is on; then as it was before."""
    token = switch.set(True)
    try:
        yield
    finally:
        switch.reset(token)
