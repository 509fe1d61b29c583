"""Results as files."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from spikezip.errors import OutputError


def save_text(path: str | Path, text: str, *, overwrite: bool) -> Path:
    """Write a file beside its place and put it there in one step; OutputError if there is one, or it cannot be."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists. Choose another name or pass overwrite=True.")
    draft = path.with_name(path.name + ".part")
    try:
        draft.write_text(text)
        os.replace(draft, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error
    return path
