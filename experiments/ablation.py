"""What each part of fine-tuning adds, at an equal budget: variants -N, -P, -R, -PR, the parts of PET, and its rivals.

    python experiments/ablation.py --data-set digits --images 1280 --epochs 6 --seeds 3
    python experiments/ablation.py --data-set cifar10 --images 12800 --epochs 4 --seeds 3 --data PATH/TO/CIFAR

Every cell (a variant and a seed) starts from the same ANN, is quantized to ``--levels`` levels, fine-tuned, given 8-bit
weights, and run with even release on the test split. The budget is ``--epochs`` times ``--images`` images through the
network: a variant that sends an image through it ``k`` times a step (paths, time steps) trains on ``1/k`` as many
(``--equal images`` gives all of them as many images instead). No variant's settings were searched for; the penalty's
weight was raised once from 1e-4 for the digits network, after a run of one seed, and lowered once for ResNet-20: at the
digits' weight its 200,000 spikes an image were all that it learned from, and it ended at chance. Each finished cell is
kept in experiments/results/ablation-DATASET.json and not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from cells import RESULTS, Cells, cell, passes, shared_lines
from torch import nn

from spikezip.data import ImageData, open_data
from spikezip.models import ModelSource, resolve
from spikezip.train import AdamW, Plan, train
from spikezip.train.recipe import Recipe, check_recipe

NETWORKS = {"digits": "spikezip:digits", "cifar10": "spikezip:resnet20", "cifar100": "spikezip:resnet20"}
PER_SPIKE = {"digits": 1e-3, "cifar10": 1e-6, "cifar100": 1e-6}  #: what a spike costs, where spikes do
RCR = {"morph": {"residual": "rcr"}}
LIVE = {"batch_norm": "live"}


def variants(release: int, per_spike: float = PER_SPIKE["digits"]) -> dict[str, dict[str, Any]]:
    """The lines of a recipe that each variant has beside those of all."""

    def pet(*steps: int, kind: str = "rescaled", **lines: Any) -> dict[str, Any]:
        late = {"release": release} if kind == "rescaled" else {}
        loss = {"alpha": 0.5, **lines.pop("loss", {})}
        return {"stage": "pet", "paths": [{kind: step, **late} for step in steps], "loss": loss, **lines}

    trajectory: dict[str, Any] = {"stage": "trajectory", "steps": [1, 1, 0, 1], "settled": 1}
    four = {
        "-N (plain QAT)": {"stage": "qat"},
        "-P (PET, rescaled 2, 4)": pet(2, 4),
        "-R (RCR)": {"stage": "qat", **RCR},
        "-PR (PET, RCR)": pet(2, 4, **RCR),
    }
    refitted = {**four, "trajectory, t = 1, 2, 4": trajectory}
    return {
        **four,
        "PET, 1 sub-path: 4": pet(4),
        "PET, 3 sub-paths: 2, 4, 6": pet(2, 4, 6),
        "PET, 4 sub-paths: 1, 2, 4, 6": pet(1, 2, 4, 6),
        "PET, capped 2, 4": pet(2, 4, kind="capped"),
        "PET, ensemble loss": pet(2, 4, loss={"beta": 1.0}),
        "PET, soft labels": pet(2, 4, loss={"sub_labels": "main"}),
        "PET, free scales": pet(2, 4, scale="free"),
        "PET, live BatchNorm": pet(2, 4, morph=LIVE),
        "PET, live BatchNorm, shared statistics": pet(2, 4, morph=LIVE, statistics="shared"),
        "QAT, live BatchNorm": {"stage": "qat", "morph": LIVE},
        "QAT, RCR, live BatchNorm": {"stage": "qat", "morph": LIVE | RCR["morph"]},
        "PET, RCR, live BatchNorm, shared statistics": pet(2, 4, morph=LIVE | RCR["morph"], statistics="shared"),
        "SPEQ": {"stage": "speq"},
        "trajectory, t = 1, 2, 4": trajectory,
        "trajectory, live BatchNorm": {**trajectory, "morph": LIVE},
        "trajectory, RCR, live BatchNorm": {**trajectory, "morph": LIVE | RCR["morph"]},
        "trajectory, learned bias shares": {**trajectory, "bias_shares": "learned"},
        "trajectory, penalty on spikes": {**trajectory, "penalty": {"spikes": per_spike}},
        **{f"{name}, from refitted weights": {**lines, "refit": True} for name, lines in refitted.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-set", choices=NETWORKS, default="digits")
    parser.add_argument("--network", help="the data set's ResNet-20, or the digits network, if not given")
    parser.add_argument("--images", type=int, default=1280, help="images of an epoch, one pass each")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--equal", choices=["passes", "images"], default="passes", help="what the budget is counted in")
    parser.add_argument("--levels", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of AdamW")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--test-images", type=int, help="only the first so many")
    parser.add_argument("--only", nargs="*", default=[], help="only the variants whose name holds one of these")
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files and pretrained weights")
    parser.add_argument("--out", type=Path, help="the file of results, if it is to be another")
    options = parser.parse_args()
    name = options.network or NETWORKS[options.data_set]
    out = options.out or RESULTS / f"ablation-{options.data_set}.json"
    budget = {
        key: getattr(options, key) for key in ("images", "epochs", "equal", "levels", "rate", "batch", "test_images")
    }
    settings = {"data": options.data_set, "network": name, "encoding": f"even:{options.levels}", **budget}
    cells = Cells(out, settings, parser, experiment="ablation")
    source = resolve(name, weights=None if options.data_set == "digits" else "pretrained", root=options.data)
    data = open_data(options.data_set, options.data, mean=source.mean, std=source.std)
    ann = trained_ann(source, data) if options.data_set == "digits" else source.module
    wanted = variants(options.levels, PER_SPIKE[options.data_set])
    for variant, lines, seed in cells.missing(wanted, options.seeds, options.only):
        row = cell(ann, source, data, recipe_of(variant, lines, settings, seed), settings)
        cells.keep(variant, lines, seed, row)


def trained_ann(source: ModelSource, data: ImageData) -> nn.Module:
    """The digits network, trained once; kept in runs/."""
    plan = Plan(epochs=20, batch=64, warmup=1, optimizer=AdamW(rate=3e-3), validation_split=None)
    torch.manual_seed(0)
    source = resolve(source.name)
    return train(source.module, data, plan, out=Path("runs/ablation-digits-ann"), resume=True).network


def recipe_of(variant: str, lines: dict[str, Any], settings: dict[str, Any], seed: int) -> Recipe:
    """The whole recipe of one cell."""
    of_all = {"levels": settings["levels"], "encoding": settings["encoding"], "validation_split": None}
    recipe = check_recipe({**shared_lines(variant, settings, seed), **of_all, **lines})
    share = passes(recipe) if settings["equal"] == "passes" else 1
    return recipe.model_copy(update={"train_images": max(round(settings["images"] / share), settings["batch"])})


if __name__ == "__main__":
    main()
