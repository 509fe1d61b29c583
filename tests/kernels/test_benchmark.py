"""The benchmark of speed runs, and its contenders agree to the bit (it compares them itself)."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def speed(monkeypatch):
    if not BENCHMARKS.exists():
        pytest.skip("an installed package has no benchmarks")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("speed", BENCHMARKS / "speed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("networks", "plain_loop"):
        sys.modules.pop(name, None)


def test_benchmark_of_speed(speed, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    out = tmp_path / "speed.json"
    size = ["--models", "resnet20", "--levels", "4", "--steps", "2", "6", "--batches", "2", "1", "--rounds", "1"]
    try:
        speed.main([*size, "--out", str(out)])
        record = json.loads(out.read_text())
        assert {(r["batch"], r["steps"], r["engine"]) for r in record["rows"]} == {
            (batch, steps, engine) for batch in (2, 1) for steps in (2, 6) for engine in speed.CONTENDERS
        }
        assert all(r["ann_forwards"] > 0 for r in record["rows"])
        assert record["versions"]["torch"] == torch.__version__
        # The comparison can fail.
        wrong = lambda c, steps: speed.PlainLoop(c.snn).steps(c.images, steps) + 1  # noqa: E731
        monkeypatch.setitem(speed.CONTENDERS, "plain loop", wrong)
        with pytest.raises(AssertionError, match="do not agree"):
            speed.main([*size, "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
