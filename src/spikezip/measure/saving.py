"""Results as files, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from spikezip.errors import OutputError


@contextlib.contextmanager
def replacing(target: Path, parents: bool = False) -> Iterator[Path]:
    """Give an empty draft beside ``target`` to write to; it takes its place in one step, flushed to disk, at the end.

    Args:
        target: the file that is wanted; one that is there is replaced.
        parents: make folders that are missing.

    Invariant:
        If the block raises, ``target`` is as it was and nothing is left beside it. Modes are those of any new file.

    Raises:
        OutputError: the folder cannot be written, or its disk is full; or ``target`` is a folder, a pipe or a device.
    """
    draft = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            raise OutputError(f"'{target}' is no regular file, so it is not replaced. Give the name of a file.")
        draft.touch(exist_ok=False)
        yield draft
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, target)
    except OSError as reason:
        raise OutputError(
            f"'{target}' cannot be written: {reason.strerror or reason}. Give a place that you may "
            "write to and that has room."
        ) from reason
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def check_free(path: Path, overwrite: bool) -> None:
    """Raise OutputError if there is a file that may not be replaced."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists. Choose another name, or pass overwrite=True (--overwrite) to replace it.")


def finite(values: Iterable[float | None]) -> list[float | None]:
    """Numbers as JSON holds them: None for those that are NaN or infinite.

    >>> finite([0.5, float("-inf")])
    [0.5, None]
    """
    return [value if value is not None and math.isfinite(value) else None for value in values]


def save_json(path: str | Path, content: Any, *, overwrite: bool, indent: int | None = None) -> Path:
    """Write plain data as JSON in one step; OutputError if the file is there, cannot be, or a number is not finite."""
    path = Path(path)
    check_free(path, overwrite)
    for place, value in _numbers(content):
        if not math.isfinite(value):
            raise OutputError(
                f"'{path}' cannot be written: {place} is {value}, which JSON does not hold. Look in the network for a "
                "logarithm of 0, a division by 0 or weights that are not finite."
            )
    with replacing(path) as draft:
        draft.write_text(json.dumps(content, indent=indent, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _numbers(content: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every float in plain data, with the place it is at."""
    if isinstance(content, float):
        yield place, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _numbers(value, f"{place}.{key}" if place else str(key))
    elif isinstance(content, list | tuple):
        for i, value in enumerate(content):
            yield from _numbers(value, f"{place}[{i}]")
