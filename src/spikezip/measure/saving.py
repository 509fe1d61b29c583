"""Results as files, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

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


def save_text(path: str | Path, text: str, *, overwrite: bool) -> Path:
    """Write a file in one step; OutputError if there is one, or it cannot be."""
    path = Path(path)
    check_free(path, overwrite)
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path
