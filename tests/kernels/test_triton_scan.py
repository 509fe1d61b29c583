"""The Triton scan in a process of its own: on the CPU, where Triton interprets its kernels, and on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_cases.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton: pip install 'spikezip[gpu]'")
@pytest.mark.parametrize("interpreted", ["1", pytest.param("0", marks=pytest.mark.gpu)], ids=["interpreter", "gpu"])
def test_triton_scan(interpreted):
    environment = {**os.environ, "TRITON_INTERPRET": interpreted}  # read when Triton is imported
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(CASES)]
    done = subprocess.run(call, cwd=CASES.parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
