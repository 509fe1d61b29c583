"""The Triton scan, in a process of its own where Triton interprets its kernels on the CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("interpreted_triton.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton: pip install 'spikezip[gpu]'")
def test_triton_scan_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # read when Triton is imported
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(CASES)]
    done = subprocess.run(call, cwd=CASES.parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
