"""Fine-tuned networks, as ``spikezip train`` left them in runs/."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import spikezip


def trained(recipes: Mapping[str, str]) -> dict[str, Callable[[], spikezip.SNN]]:
    """What opens each network whose recipe (in experiments/recipes; the same name in runs/) has been trained here."""
    paths = {name: Path("runs") / recipe / "snn.spikezip" for name, recipe in recipes.items()}
    return {name: functools.partial(spikezip.load, path) for name, path in paths.items() if path.exists()}
