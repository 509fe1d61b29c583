"""Ctrl-C while the command line still imports torch: it ends as a later one does.

``import spikezip`` has this module run first. Nothing changes for a program that only uses the library.
"""

import os
import signal
import sys
from typing import Any

EXIT_STOPPED = 130


def _stop(*_: Any) -> None:
    # Imports may swallow an exception; nothing is to be cleaned up yet.
    os.write(2, b"Stopped.\n")
    os._exit(EXIT_STOPPED)


def hand_over() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# The word before the arguments: the script, or the module of ``python -m``.
_started = os.path.basename(sys.orig_argv[-len(sys.argv)]) if len(sys.argv) <= len(sys.orig_argv) else ""
if os.path.splitext(_started)[0] == "spikezip" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)
