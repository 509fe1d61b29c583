"""The zoo's networks and roads are plain modules of this folder, used by experiments/zoo.py too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, visibly, all but the fast part of the zoo unless asked for (``make zoo``)."""
    if "zoo" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("zoo"):
                item.add_marker(pytest.mark.skip(reason="the whole zoo takes long; run make zoo"))
