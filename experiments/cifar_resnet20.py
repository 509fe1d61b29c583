"""ResNet-20 on CIFAR as an SNN: accuracy at every step on the full test set, each run certified.

    python experiments/cifar_resnet20.py --data PATH/TO/CIFAR [--data-set cifar100] [--trained]

Training-free at 8 levels (pulse, from code 0 and from mean codes; even release) and 16 (pulse), the networks kept in
experiments/networks, and (``--trained``) those that `spikezip train` has made in runs/ of the recipes in ``SETS``.
Writes experiments/results/DATA-SET-resnet20.json and the figure beside it. Rows that are in the file are kept, not run
again (``--again`` runs what can be run). The ANN is the published one for CIFAR-10; for CIFAR-100, and for networks of
CIFAR-10 that were trained with BatchNorm live, those in experiments/networks that their recipes
(DATA-SET-resnet20-ann-taught.yaml) trained.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bundles
import torch

import spikezip
from spikezip.cli.sources import open_both
from spikezip.data import ImageData
from spikezip.measure import count
from spikezip.measure.provenance import provenance
from spikezip.models import ModelSource, resolve
from spikezip.report.style import series_style
from spikezip.spike import parse_encoding

RESULTS = Path(__file__).parent / "results"
NETWORK = "spikezip:resnet20"
SEED = 0
CALIBRATION = 512
STEPS = 32
COUNTED = 64  #: images that synaptic operations are counted on
TRAINED = {
    "PET (one epoch), 8 levels, even:8": "cifar10-resnet20-pet-short",
    "trajectory for t=2 (8 epochs), 3 levels, even:2": "cifar10-resnet20-t2",
    "trajectory for t=2 (3 epochs), MS blocks, 3 levels, even:2": "cifar10-resnet20-t2-ms",
    "trajectory for t=2 (12 epochs), MS blocks, 3 levels, even:2": "cifar10-resnet20-t2-ms-on",
    "trajectory for t=4 (1 epoch), 5 levels, even:4": "cifar10-resnet20-t4",
    "trajectory for t=4 (4 epochs), MS blocks, 5 levels, even:4": "cifar10-resnet20-t4-ms",
    "trajectory for t=1 (4 epochs), MS blocks, 3 levels from code 1, pulse": "cifar10-resnet20-t1-initial",
    "trajectory for t=2 (6 epochs), MS blocks, 4 levels from code 1, pulse": "cifar10-resnet20-t2-initial",
    "trajectory for t=2 (15 epochs), MS blocks, 4 levels from code 1, pulse": "cifar10-resnet20-t2-initial-on",
    "trajectory for t=4 (3 epochs), MS blocks, 6 levels from code 1, pulse": "cifar10-resnet20-t4-initial",
}


@dataclass(frozen=True)
class Part:
    """One data set's ANN, the recipes in experiments/recipes that go on from it, and the networks that are kept."""

    shown: str
    weights: str
    trained: dict[str, str]
    kept: dict[str, str]
    others: dict[str, str] = field(default_factory=dict)  #: runs whose ANN is another one: its weights


KEPT = {
    "trajectory for t=2 (mean of trainings), MS blocks, 4 levels from code 1, pulse": (
        "cifar10-resnet20-for-T-2-MS-from-code-1-halfway"
    ),
    "trajectory for t=4 (3 epochs from the one for t=2), MS blocks, 6 levels from code 1, pulse": (
        "cifar10-resnet20-for-T-4-MS-from-code-1-0"
    ),
}


def live(data_set: str, epochs: dict[int, int], run: str = "live", seed: str = "", begun: str = "") -> dict[str, str]:
    """Networks that were trained for one step each, BatchNorm live: each row and its run."""
    return {
        f"trajectory for t={t} ({count} epochs{begun}, BatchNorm live{seed}), "
        f"MS blocks, {t + 2} levels from code 1, pulse": f"{data_set}-resnet20-t{t}-{run}"
        for t, count in epochs.items()
    }


def each(data_set: str, epochs: dict[int, int], runs: dict[str, str], begun: str = "") -> dict[str, str]:
    """The same of several seeds: what a row says of the seed, and its run."""
    return {row: run for seed, name in runs.items() for row, run in live(data_set, epochs, name, seed, begun).items()}


EPOCHS_100 = {2: 48, 4: 33}
LIVE = live("cifar10", {4: 10}) | live("cifar10", {4: 24}, "live-on")
LIVE_MEAN = {
    "trajectory for t=4 (mean of 10 and 24 epochs, BatchNorm live), MS blocks, 6 levels from code 1, pulse": (
        "cifar10-resnet20-t4-live-mean"
    )
}
#: Other seeds' runs of the recipes that gave the kept networks for CIFAR-100.
SEEDS_100 = each("cifar100", EPOCHS_100, {f", seed {seed}": f"live-further-seed{seed}" for seed in (2, 3)})
#: Networks for t = 2 that began as the one for t = 4.
BEGUN = " from the one for t=4"
FROM_T4 = each(
    "cifar10", {2: 12}, {f", seed {seed}" * bool(seed): f"live-from-t4-seed{seed}" for seed in (0, 1, 2)}, BEGUN
)
FROM_T4_100 = each("cifar100", {2: 16}, {"": "live-from-t4", ", seed 2": "live-from-t4-seed2"}, BEGUN)
TAUGHT, TAUGHT_100 = (str(bundles.NETWORKS / f"{of}-resnet20-ann-taught.safetensors") for of in ("cifar10", "cifar100"))
SETS = {
    "cifar10": Part(
        "CIFAR-10",
        "pretrained",
        TRAINED | LIVE | FROM_T4,
        KEPT | LIVE_MEAN,
        dict.fromkeys(LIVE | FROM_T4 | LIVE_MEAN, TAUGHT),
    ),
    "cifar100": Part("CIFAR-100", TAUGHT_100, SEEDS_100 | FROM_T4_100, live("cifar100", EPOCHS_100)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files and pretrained weights")
    parser.add_argument("--data-set", choices=list(SETS), default="cifar10")
    parser.add_argument("--limit", type=int, help="only the first so many test images")
    parser.add_argument("--certified", type=int, default=10_000, help="images the certificate is made on")
    parser.add_argument("--trained", action="store_true", help="the fine-tuned networks in runs/ too")
    parser.add_argument("--only", nargs="+", default=[""], help="only the runs whose name holds one of these")
    parser.add_argument("--out", type=Path, help="file to write, if not the one in results")
    parser.add_argument("--again", action="store_true", help="run what is in the file already too")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    part, experiment = SETS[options.data_set], f"{options.data_set}-resnet20"
    source, data = open_both(
        NETWORK, options.data_set, weights=part.weights, classes=None, image_size=None, root=options.data
    )
    images, labels = data.tensors("test", options.limit)
    path = options.out or RESULTS / f"{experiment}.json"
    kept = {run["name"]: run for run in json.loads(path.read_text())["runs"]} if path.exists() else {}
    whole = {"experiment": experiment, "data_set": options.data_set}
    made = networks(source, data) | bundles.kept(part.kept) | bundles.trained(part.trained if options.trained else {})
    for name, make in made.items():
        if (name in kept and not options.again) or not any(part in name for part in options.only):
            continue
        other = part.others.get(name)
        ann = resolve(NETWORK, num_classes=data.num_classes, weights=other) if other else source
        run = one(name, make(), images, labels, ann, data, options.certified)
        kept[name] = run
        best = max(run["snn"])
        print(
            f"{name}: QANN {run['qann']:.4f}, best {best:.4f} at t={run['snn'].index(best) + 1}, equal={run['equal']}",
            flush=True,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(whole | provenance(SEED) | {"runs": list(kept.values())}, indent=1) + "\n")
    draw(part.shown, list(kept.values()), path.with_suffix(".svg"))


def networks(source: ModelSource, data: ImageData) -> dict[str, Any]:
    """Name of each run without training, and how its SNN is made."""

    real = data.calibration(CALIBRATION, SEED)

    def converted(levels: int, encoding: str, start: Any = 0) -> Any:
        release = parse_encoding(encoding)
        return lambda: spikezip.convert(
            source.module, source.example, real, levels=levels, encoding=release, initial_code=start
        )

    made: dict[str, Any] = {
        f"training-free, {levels} levels, {encoding}": converted(levels, encoding)
        for levels, encoding in ((8, "pulse"), (8, "even:8"), (16, "pulse"))
    }
    made["training-free, 8 levels from mean codes, pulse"] = converted(8, "pulse", "mean")
    return made


def one(
    name: str,
    snn: spikezip.SNN,
    images: torch.Tensor,
    labels: torch.Tensor,
    source: ModelSource,
    data: ImageData,
    certified: int,
) -> dict[str, Any]:
    """Measure and certify one network: its row."""
    certificate = spikezip.verify(snn, images[:certified], seed=SEED)
    record = spikezip.measure(
        snn,
        images,
        labels,
        ann=source.module,
        steps=STEPS,
        data=data.name,
        name=name,
        certificate=certificate,
        seed=SEED,
        energy=False,
        distances=128,
    )
    return row(record.content) | {"synops": count(snn, images[:COUNTED], STEPS).synops.tolist()}


def row(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record goes into the table."""
    proof, first = record["certificate"], record["layers"][0]
    return {
        "name": record["name"],
        "images": record["data"]["images"],
        "levels": [first["lowest"], first["highest"]],
        "encoding": record["encoding"],
        "weight_bits": record["network"]["weight_bits"],
        "fine_tuning": record["network"]["fine_tuning"],
        "ann": record["accuracy"]["ann"],
        "qann": record["accuracy"]["qann"],
        "snn": record["accuracy"]["snn"],
        "agreement": record["agreement"],
        "t_eq": record["settled"],
        "equal": proof["equal"],
        "certified_images": proof["images"],
        "mismatches": proof["mismatches"],
        "codes_checked": sum(layer["codes_checked"] for layer in proof["layers"]),
        "weights_sha256": proof["weights_sha256"],
        "spikes_per_image": sum(sum(layer["spikes"]) for layer in record["layers"]),
        "created": record["created"],
        "commit": record["commit"],
        "processor": record["processor"],
    }


def draw(data_set: str, runs: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against time, as SVG and PNG: networks made for any number of steps, and those trained for a few."""
    from matplotlib.figure import Figure

    for_few = [run for run in runs if run["name"].startswith("trajectory")]
    others = [run for run in runs if run not in for_few]
    panels = [
        (some, title)
        for some, title in ((others, "for any number of steps"), (for_few, "trained for a few steps"))
        if some
    ]
    figure = Figure(figsize=(13, 3.6 * len(panels) + 0.4), layout="constrained")
    figure.suptitle(f"{data_set}, ResNet-20: every run settles on its QANN's accuracy")
    for axes, (some, title) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for number, run in enumerate(some):
            steps = range(1, len(run["snn"]) + 1)
            look = series_style(number) | {"marker": None}
            label = f"{run['name']} (QANN {100 * run['qann']:.2f})"
            axes.plot(steps, [100 * a for a in run["snn"]], **look, label=label)
        anns = sorted({100 * run["ann"] for run in some})
        least = 10 * int(10 * min(min(run["snn"]) for run in some))  # the axes differ: all of each line is shown
        for ann in anns:
            axes.axhline(ann, color="#666666", linewidth=1, linestyle=":")
        told = ", ".join(f"{ann:.2f}" for ann in anns)
        axes.annotate(f"ANN {told}", (1, anns[-1]), ha="left", va="bottom")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set(title=title, xlabel="time step t", ylabel="accuracy (%)", ylim=(least, 1.05 * max(anns)))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
