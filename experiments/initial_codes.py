"""What a start at code 1 is worth: a network trained for one step T, from 0 and from 1, with the codes that T reaches.

    python experiments/initial_codes.py --data-set digits --images 1280 --epochs 6 --batch 32
    python experiments/initial_codes.py --data PATH/TO/CIFAR

From 0, T steps reach codes 0 to T; from 1, codes 0 to T + 1. Every cell (a variant and a seed) starts from the same
ANN, is fine-tuned by trajectory training for its T on as many images, given 8-bit weights, run on the test split and
certified. No variant's settings were searched for. Each finished cell is kept in
experiments/results/initial-codes-DATASET.json and not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ablation import NETWORKS, trained_ann
from cells import RESULTS, Cells, cell, shared_lines

from spikezip.data import open_data
from spikezip.models import resolve
from spikezip.train.recipe import Recipe, check_recipe


def variants() -> dict[str, dict[str, Any]]:
    """The lines of a recipe that each variant has beside those of all."""

    def of(steps: int, code: int, encoding: str) -> dict[str, Any]:
        codes = {"lowest": 0, "highest": steps + code}
        return {"steps": [0] * (steps - 1) + [1], "levels": codes, "initial_code": code, "encoding": encoding}

    found = {}
    for steps in (1, 2, 4):
        for code, encoding in ((0, "pulse"), (0, f"even:{steps}"), (1, "pulse"), (1, f"even:{steps}")):
            if steps > 1 or encoding == "pulse":
                found[f"T={steps}, from {code}, {encoding}"] = of(steps, code, encoding)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-set", choices=("digits", "cifar10"), default="cifar10")
    parser.add_argument("--images", type=int, default=6400, help="images of an epoch")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--test-images", type=int, default=2000, help="only the first so many")
    parser.add_argument("--only", nargs="*", default=[], help="only the variants whose name holds one of these")
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files and pretrained weights")
    options = parser.parse_args()
    name = NETWORKS[options.data_set]
    budget = {key: getattr(options, key) for key in ("images", "epochs", "batch", "test_images")}
    settings = {"data": options.data_set, "network": name, "rate": 1e-3, **budget}
    path = RESULTS / f"initial-codes-{options.data_set}.json"
    cells = Cells(path, settings, parser, experiment="initial-codes")
    source = resolve(name, weights=None if options.data_set == "digits" else "pretrained", root=options.data)
    data = open_data(options.data_set, options.data, mean=source.mean, std=source.std)
    ann = trained_ann(source, data) if options.data_set == "digits" else source.module
    for variant, lines, seed in cells.missing(variants(), options.seeds, options.only):
        cells.keep(variant, lines, seed, cell(ann, source, data, recipe_of(variant, lines, settings, seed), settings))


def recipe_of(variant: str, lines: dict[str, Any], settings: dict[str, Any], seed: int) -> Recipe:
    """The whole recipe of one cell."""
    return check_recipe(
        {
            **shared_lines(variant, settings, seed),
            "stage": "trajectory",
            "morph": {"residual": "ms"},
            "loss": {"distil": {"weight": 1.0, "temperature": 2.0}},
            "train_images": settings["images"],
            "validation_split": None,
            **lines,
        }
    )


if __name__ == "__main__":
    main()
