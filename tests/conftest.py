"""What every test may use: real data where there is some, the same draws each time, and small machines kept small."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

# Tests in this folder and below import mutants.py and random_networks.py by name.
sys.path.insert(0, str(Path(__file__).parent))

# Two xdist workers on two cores: more threads a worker would only wait for each other.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

_BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of CIFAR files and published weights; the test is skipped, visibly, where there is none."""
    root = Path(os.environ.get("SPIKEZIP_DATA", _BESIDE_THE_CHECKOUT))
    if not root.is_dir():
        pytest.skip(f"no data in {root}: set SPIKEZIP_DATA to the folder with cifar10_test.npz")
    return root


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Give every test the same draws, alone or after others."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, and say so: ``gpu`` where torch sees no CUDA device; ``deep`` unless asked for (``pytest -m deep``)."""
    if "deep" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("deep"):
                item.add_marker(pytest.mark.skip(reason="many more random cases; run with -m deep"))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))
