"""The rows of an experiment: a network fine-tuned by one recipe with one seed, measured, kept as soon as it is done."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import spikezip
from spikezip.cli.sources import begun_with
from spikezip.data import ImageData
from spikezip.measure.counts import count as count_operations
from spikezip.measure.provenance import provenance
from spikezip.models import ModelSource
from spikezip.run import execute
from spikezip.spike import parse_encoding
from spikezip.train import Training, train
from spikezip.train.recipe import Recipe, Stage

RESULTS = Path(__file__).parent / "results"
STEPS = (1, 2, 4, 8)
CERTIFIED, COUNTED = 256, 64  #: test images of the certificate, and of the count of operations


class Cells:
    """A file of rows, one for each variant and seed; those that are there are not made again.

    Args:
        path: the file of results.
        settings: what all rows share; a file that was made with others is refused.
        parser: tells so.
        facts: of the experiment, for the head of the file.
    """

    def __init__(self, path: Path, settings: dict[str, Any], parser: argparse.ArgumentParser, **facts: Any):
        self.path, self.settings, self.facts = path, settings, facts
        found = json.loads(path.read_text()) if path.exists() else {"settings": settings, "rows": []}
        if found["settings"] != settings:
            parser.error(f"{path} was made with other settings: {found['settings']}. Give another --out.")
        self.rows: list[dict[str, Any]] = found["rows"]

    def missing(
        self, variants: dict[str, dict[str, Any]], seeds: int, only: list[str]
    ) -> Iterator[tuple[str, dict[str, Any], int]]:
        """Name, lines of its recipe, and seed of every row that is wanted and not there."""
        done = {(row["variant"], row["seed"]) for row in self.rows}
        for seed in range(seeds):
            for variant, lines in variants.items():
                if (not only or any(part in variant for part in only)) and (variant, seed) not in done:
                    yield variant, lines, seed

    def keep(self, variant: str, lines: dict[str, Any], seed: int, row: dict[str, Any]) -> None:
        """Put a row into the file."""
        about = {**provenance(None), "seed": f"0 to {seed}" if seed else "0"}
        where = {key: about[key] for key in ("commit", "processor")}
        self.rows.append({"variant": variant, "seed": seed, "lines": lines, **where, **row})
        whole = {**self.facts, **about, "settings": self.settings, "variants": summary(self.rows), "rows": self.rows}
        self.path.write_text(json.dumps(whole, indent=1) + "\n")
        accuracy = " ".join(f"{100 * row[f't{t}']:.2f}" for t in STEPS)
        print(f"{variant}, seed {seed}: t=1, 2, 4, 8: {accuracy}, QANN {100 * row['qann']:.2f}", flush=True)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of each figure of each variant."""
    found: dict[str, Any] = {}
    for variant in dict.fromkeys(row["variant"] for row in rows):
        same = [row for row in rows if row["variant"] == variant]
        figures = [key for key, value in same[0].items() if isinstance(value, float)]
        found[variant] = {"seeds": len(same), "equal": all(row["equal"] for row in same)} | {
            key: {
                "mean": statistics.fmean(row[key] for row in same),
                "std": statistics.stdev(row[key] for row in same) if len(same) > 1 else None,
            }
            for key in figures
        }
    return found


def cell(
    ann: nn.Module,
    source: ModelSource,
    data: ImageData,
    recipe: Recipe,
    settings: dict[str, Any],
    out: Path | None = None,
    teacher: nn.Module | None = None,
) -> dict[str, Any]:
    """One variant with one seed, fine-tuned (in ``out``, from where it was cut off) and measured."""
    done = fine_tuned(ann, source, data, recipe, out, teacher)
    return {**measured(spiking(done.network, recipe), data, settings), **cost(recipe, [done])}


def measured(snn: spikezip.SNN, data: ImageData, settings: dict[str, Any]) -> dict[str, Any]:
    """An SNN on the test split."""
    images, labels = data.tensors("test", settings["test_images"])
    run = execute(snn, images)
    right = (run.logits.argmax(-1) == labels).double().mean(1)
    counts = count_operations(snn, (images,), len(right), limit=COUNTED)
    certificate = spikezip.verify(snn, images[:CERTIFIED])
    settled = run.settled_at.double()
    return {
        **{f"t{t}": float(right[min(t, len(right)) - 1]) for t in STEPS},
        "settled": float(right[-1]),
        "qann": share_right(snn.qann, images, labels),
        "t_eq": float(settled.mean()),
        "t_eq_max": int(settled.max()),
        "synops": float(counts.synops[-1]),
        **{f"synops_t{t}": float(counts.synops[min(t, len(right)) - 1]) for t in STEPS},
        "spikes": float(run.total_spikes.double().sum(0).mean()),
        "equal": certificate.equal,
    }


def spiking(network: nn.Module, recipe: Recipe) -> spikezip.SNN:
    """The SNN of a QANN whose weights become integers of 8 bits."""
    return spikezip.spike(spikezip.to_integer(network, 8), parse_encoding(recipe.encoding))  # type: ignore[arg-type]


def cost(recipe: Recipe, trainings: list[Training]) -> dict[str, Any]:
    """What trainings by one recipe took together."""
    epochs = [epoch for training in trainings for epoch in training.history]
    return {
        "passes": passes(recipe),
        "images_seen": sum(epoch.images for epoch in epochs),
        "seconds": round(sum(epoch.seconds for epoch in epochs), 1),
    }


def fine_tuned(
    ann: nn.Module,
    source: ModelSource,
    data: ImageData,
    recipe: Recipe,
    out: Path | None,
    teacher: nn.Module | None = None,
) -> Training:
    """The QANN of an ANN, trained by a recipe; the ANN is its teacher too, unless another is given."""
    qann = untrained(ann, source, data, recipe)
    plan = recipe.plan((teacher or ann) if recipe.needs_teacher else None)
    return train(qann, data, plan, out=out, resume=out is not None)


def untrained(ann: nn.Module, source: ModelSource, data: ImageData, recipe: Recipe) -> nn.Module:
    """The QANN of an ANN that a recipe begins with: calibrated, or with the weights that it starts from."""
    torch.manual_seed(recipe.seed)
    original = spikezip.capture(ann, source.example)
    morphed = spikezip.morph(original, spikezip.Morph(**dict(recipe.morph)))
    real = data.calibration(min(recipe.calibration, data.count("train")), recipe.seed)
    qann = recipe.quantized(morphed, original, real)
    return qann if recipe.start is None else begun_with(qann, recipe.start, recipe.start_scale)


def shared_lines(name: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """The lines of a recipe that all rows of an experiment have."""
    return {
        "name": name,
        "model": settings["network"],
        "data": settings["data"],
        "epochs": settings["epochs"],
        "batch": settings["batch"],
        "warmup": 0.1,
        "clip": 1.0,
        "optimizer": {"adamw": {"rate": settings["rate"], "weight_decay": 0.0}},
        "seed": seed,
    }


def passes(recipe: Recipe) -> float:
    """How often an image goes through the network in a step of training, forward and backward."""
    match recipe.stage:
        case Stage.PET:
            return 1 + len(recipe.paths or ())
        case Stage.TRAJECTORY:
            return len(recipe.steps or ()) + (recipe.settled > 0)
        case Stage.SPEQ:
            return 4 / 3  # forward twice and backward, which costs twice as much, once
    return 1


@torch.no_grad()
def share_right(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Accuracy, in batches."""
    answers = torch.cat([network(part).argmax(-1) for part in images.split(250)])
    return float((answers == labels).double().mean())
