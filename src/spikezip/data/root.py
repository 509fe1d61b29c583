"""Where data sets are looked for."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path


def data_root(root: str | PathLike[str] | None = None) -> Path | None:
    """The folder that holds data sets and pretrained weights, or None if nobody named one.

    Args:
        root: a folder; by default the environment variable ``SPIKEZIP_DATA``.
    """
    chosen = root if root is not None else os.environ.get("SPIKEZIP_DATA")
    return Path(chosen).expanduser() if chosen else None


def cache_root() -> Path:
    """The folder that downloads go to: ``SPIKEZIP_CACHE``, or ``~/.cache/spikezip``."""
    return Path(os.environ.get("SPIKEZIP_CACHE") or "~/.cache/spikezip").expanduser()
