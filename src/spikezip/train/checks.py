"""What choices of training are held against, so that a wrong one is refused where it is made."""

from __future__ import annotations

import sys
from typing import Any, TypeGuard

from spikezip.errors import RecipeError

GREATEST_COUNT = 10**9  #: of epochs, images and steps
GREATEST_CODE = 2**24  #: that float32 tells from its neighbours


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether this is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether this is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def are_weights(values: Any) -> bool:
    """Whether this is a tuple or list of finite numbers, each 0 or more."""
    return isinstance(values, tuple | list) and all(is_number(value) and value >= 0 for value in values)


def check_kind(name: str, value: Any, wanted: Any, example: str) -> None:
    """Raise RecipeError unless a choice is of the type that is wanted."""
    if not isinstance(value, wanted):
        raise RecipeError(f"{name}={value!r}: give {example}.")


def check_flag(name: str, value: Any) -> None:
    """Raise RecipeError unless a choice is True or False."""
    check_kind(name, value, bool, "True or False")
