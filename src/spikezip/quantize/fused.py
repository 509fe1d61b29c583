"""Elementwise work in one pass over memory, by torch.compile where it pays and works."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_WORTH_COMPILING = 1 << 20  #: values; below, torch is done before a compiler is

P = ParamSpec("P")
R = TypeVar("R")


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """The function, compiled when its first tensor is large; as it is where there is no compiler.

    Measured on one CPU core, tracker of 2 steps on ``[2, 128, 16, 32, 32]``: forward 6.6 times, backward 8 times
    faster than operation by operation.
    """
    compiled: Callable[P, R] | None = None
    works = True

    @functools.wraps(function)
    def choose(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal compiled, works
        first = args[0]
        assert isinstance(first, Tensor)
        if not works or first.numel() < _WORTH_COMPILING or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch's compiler, about torch's own ways
                if compiled is None:  # not before it is needed: torch's compiler takes seconds to import
                    compiled = torch.compile(function, dynamic=True)
                return compiled(*args, **kwargs)
        except Exception as reason:  # compilers fail in many ways; the plain function then says what is really wrong
            works = False
            answer = function(*args, **kwargs)
            told = str(reason).strip() or type(reason).__name__
            warnings.warn(
                f"torch.compile failed ({told.splitlines()[0][:200]}). Training goes on, more slowly.",
                RuntimeWarning,
                stacklevel=2,
            )
            return answer

    return choose
