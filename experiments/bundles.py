"""Fine-tuned networks: those that are in the repository, and those that ``spikezip train`` left in runs/."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import spikezip

NETWORKS = Path(__file__).parent / "networks"


def trained(recipes: Mapping[str, str]) -> dict[str, Callable[[], spikezip.SNN]]:
    """What opens each network whose recipe (in experiments/recipes; the same name in runs/) has been trained here."""
    paths = {name: Path("runs") / recipe / "snn.spikezip" for name, recipe in recipes.items()}
    return {name: functools.partial(spikezip.load, path) for name, path in paths.items() if path.exists()}


def kept(names: Mapping[str, str]) -> dict[str, Callable[[], spikezip.SNN]]:
    """What opens each network that front.py made and that is in the repository."""
    return {run: functools.partial(spikezip.load, NETWORKS / f"{name}.spikezip") for run, name in names.items()}
