"""The most memory a call takes, over what was held when it began."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mib(call: Callable[[], Any]) -> tuple[Any, float | None]:
    """Call, and tell the most resident memory it took over the start, in MiB; None where Linux's counters are missing.

    Freed memory is handed back to the system before, so that the call cannot reuse it unseen.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")  # the peak counts from here
        start = resident_mib()
    except (OSError, AttributeError):
        return call(), None
    result = call()
    return result, round(resident_mib("VmHWM") - start, 1)


def resident_mib(field: str = "VmRSS") -> float:
    """What the process holds of memory now, or one of Linux's other counts of it; OSError where there are none."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
