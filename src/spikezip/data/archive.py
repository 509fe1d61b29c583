"""Reading ``.npz`` files that may be anything."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from spikezip.errors import DataError


def load_arrays(path: Path, wanted: tuple[str, ...]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of an ``.npz`` file that are wanted and there, and the names of all that are there.

    Raises:
        DataError: the file is missing, corrupt, no ``.npz``, or holds Python objects (they are never unpickled).
    """
    try:
        with path.open("rb") as file:  # numpy leaves the file open when it turns out to be no archive
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is not an .npz file of several arrays. Write it with numpy.savez.")
            found, there = {name: stored[name] for name in wanted if name in stored.files}, list(stored.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        hint = " Store plain numbers, not objects." if "allow_pickle" in str(error) else " Write or download it again."
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}.{hint}") from error
    for name, value in found.items():
        if not isinstance(value, np.ndarray):  # numpy hands out other files of a zip as bytes
            raise DataError(f"{path}: {name} is no array. Write the file with numpy.savez.")
    return found, there
