"""Where results go: refused before long work begins, complete or not there at all after it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spikezip.cli import screen
from spikezip.errors import OutputError


@contextmanager
def output_file(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a path to write to; what was written becomes ``target`` in one step when the block ends well.

    Args:
        target: the file that is wanted. Missing parent folders are made at the end.
        overwrite: an existing file may be replaced.

    Yields:
        A path in a temporary folder on the same disk, with ``target``'s name.

    Invariant:
        If the block raises, ``target`` is as it was and nothing is left beside it.

    Raises:
        OutputError: ``target`` exists and ``overwrite`` is False, is no regular file, or cannot be written.
    """
    _check_file(target, overwrite)
    with _scratch(target) as scratch:
        draft = scratch / target.name
        yield draft
        _check_file(target, overwrite)  # another may have written it meanwhile
        _move(draft, target)


@contextmanager
def output_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder to write to; its files appear in ``target`` when the block ends well.

    Args:
        target: the folder that is wanted; it may exist if it is empty.
        overwrite: files of the same names may be replaced. Other files in ``target`` are never touched.

    Yields:
        An empty temporary folder on the same disk.

    Invariant:
        If the block raises, ``target`` is as it was and nothing is left beside it.

    Raises:
        OutputError: ``target`` is not empty and ``overwrite`` is False, is a file, or cannot be written.
    """
    _check_folder(target, overwrite)
    with _scratch(target) as scratch:
        draft = scratch / target.resolve().name
        draft.mkdir()
        yield draft
        _check_folder(target, overwrite, scratch.name)
        for file in sorted(path for path in draft.rglob("*") if path.is_file()):
            _move(file, target / file.relative_to(draft))


def _check_file(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise OutputError(f"'{target}' is a folder; give the name of a file.")
    if target.exists() and not target.is_file():
        raise OutputError(f"'{target}' is a pipe or a device, and is not replaced. Give the name of a file.")
    if target.exists() and not overwrite:
        raise OutputError(f"'{target}' exists. Give another name or add --overwrite.")


def _check_folder(target: Path, overwrite: bool, ours: str = "") -> None:
    if target.exists() and not target.is_dir():
        raise OutputError(f"'{target}' is a file; give the name of a folder.")
    if target.is_dir() and not overwrite and any(path.name != ours for path in _listed(target)):
        raise OutputError(f"'{target}' is not empty. Give another folder or add --overwrite.")


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A temporary folder as near to ``target`` as one exists: making it proves that the place can be written."""
    # Inside an existing folder its own disk is meant, which may be mounted there: write within it.
    place = target.absolute()
    while not place.is_dir():
        if place.exists() and place != target.absolute():
            raise OutputError(f"'{target}' cannot be made: '{place}' is a file. Give another --out.")
        place = place.parent
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".spikezip-", dir=place))
    except OSError as reason:
        raise OutputError(
            f"'{target}' cannot be written: {reason.strerror} in '{place}'. Give an --out where you may write."
        ) from reason
    try:
        yield scratch
    except OutputError as reason:  # of a draft: the user knows of the target alone
        told = str(reason).replace(str(scratch / target.resolve().name), str(target))
        raise OutputError(told.replace(str(scratch / target.name), str(target))) from reason
    except KeyboardInterrupt:
        screen.note(f"Nothing was written to '{target}'.")
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _listed(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError as reason:
        raise OutputError(f"'{folder}' cannot be read: {reason.strerror}. Give another --out.") from reason


def _move(draft: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # mkstemp's 0600 must not stick: give what open() would have given.
        with contextlib.suppress(OSError):
            os.chmod(draft, 0o666 & ~_umask())
        os.replace(draft, target)
    except OSError as reason:
        raise OutputError(f"'{target}' cannot be written: {reason.strerror}. Give another --out.") from reason


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
