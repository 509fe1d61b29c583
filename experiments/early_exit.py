"""Early exit of the CIFAR-10 ResNet-20: accuracy against the mean exit step, thresholds chosen on validation images.

    python experiments/early_exit.py --data PATH/TO/CIFAR [--trained]

Training-free at 8 levels (pulse, even release), the networks in experiments/networks, and (``--trained``) those that
`spikezip train` made in runs/ of the recipes in experiments/recipes. A network whose row is in the file already is not
run again. Each is run once without early exit on the 5,000 validation images (held out of the training set here; the
published network was trained on them) and on the test images; logits at every step are kept in runs/early-exit.
Thresholds are chosen on validation images alone. A part of the test images is then run with the rule chosen, engine and
all, to see that it leaves at the same steps and what that saves. Writes experiments/results/early-exit.json and the
figure beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import torch

import spikezip
from spikezip.data import ImageData, open_data
from spikezip.measure import choose_threshold, exit_curve, exit_point, exit_run, exit_steps
from spikezip.measure.provenance import provenance
from spikezip.models import ModelSource, resolve
from spikezip.run import Entropy, Margin, Outcome, Probability, Run, Settled
from spikezip.spike import parse_encoding

RESULTS = Path(__file__).parent / "results"
CACHE = Path("runs/early-exit")
SEED = 0
CALIBRATION = 512
STEPS = 20  # by which every image has settled, for those that are run to their end
KINDS = (Margin, Probability, Entropy)
TRAINED = {  # recipes in experiments/recipes
    "PET (one epoch), even:8": "cifar10-resnet20-pet-short",
    "trained for t = 4, even:4": "cifar10-resnet20-t4-ms",
}
KEPT = {  # in experiments/networks
    "for t = 2, pulse from code 1, until then": "cifar10-resnet20-for-T-2-MS-from-code-1-halfway",
    "for t = 4, pulse from code 1, until then": "cifar10-resnet20-for-T-4-MS-from-code-1-0",
}
UNTIL = dict(zip(KEPT, (2, 4), strict=True))  # steps that these are run for
LOST = (0.0, 0.005, 0.01)  # accuracy that may be lost on validation images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files and pretrained weights")
    parser.add_argument("--limit", type=int, help="only the first so many test images")
    parser.add_argument("--timed", type=int, default=512, help="test images that are run again with the rule")
    parser.add_argument("--trained", action="store_true", help="the fine-tuned networks in runs/ too")
    parser.add_argument("--out", type=Path, default=RESULTS / "early-exit.json")
    parser.add_argument("--again", action="store_true", help="run what is in the file or kept already too")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    source = resolve("spikezip:resnet20", weights="pretrained", root=options.data)
    data = open_data("cifar10", options.data, mean=source.mean, std=source.std)
    there = json.loads(options.out.read_text())["networks"] if options.out.exists() else []
    networks = {network["name"]: network for network in there}
    for name, make in made(source, data, options.trained).items():
        if name in networks and not options.again:
            continue
        snn = make()
        runs = {split: kept(name, snn, data, split, options.limit, options.again) for split in ("val", "test")}
        about = provenance(SEED)
        networks[name] = one(name, snn, runs, data, options.timed) | {
            key: about[key] for key in ("commit", "processor")
        }
        document = {"experiment": "early-exit", **about, "networks": list(networks.values())}
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    draw(list(networks.values()), options.out.with_suffix(".svg"))


def made(source: ModelSource, data: ImageData, with_trained: bool) -> dict[str, Callable[[], spikezip.SNN]]:
    """Name of each network and how it is made."""
    real = data.calibration(CALIBRATION, SEED)

    def converted(encoding: str) -> Callable[[], spikezip.SNN]:
        return lambda: spikezip.convert(
            source.module, source.example, real, levels=8, encoding=parse_encoding(encoding)
        )

    networks = {f"training-free, {encoding}": converted(encoding) for encoding in ("pulse", "even:8")}
    return networks | bundles.kept(KEPT) | bundles.trained(TRAINED if with_trained else {})


def kept(name: str, snn: spikezip.SNN, data: ImageData, split: str, limit: int | None, again: bool) -> Run:
    """A run without early exit: logits, T_eq and spikes of every image, from the file if there is one."""
    slug = "".join(c if c.isalnum() else "-" for c in name)
    path = CACHE / f"{slug}-{split}-{limit or 'all'}.pt"
    if again or not path.exists():
        images, _ = data.tensors(split, limit if split == "test" else None)
        run = exit_run(snn, images, UNTIL.get(name, STEPS))
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save((run.logits, run.settled_at, run.total_spikes, run.t_off), path)
    logits, settled_at, spikes, t_off = torch.load(path)
    outcome = Outcome.SETTLED if bool((settled_at > 0).all()) else Outcome.STEP_LIMIT
    return Run((logits,), settled_at, outcome, {"all": spikes}, {}, {}, t_off, "sweep")


def one(name: str, snn: spikezip.SNN, runs: dict[str, Run], data: ImageData, timed: int) -> dict[str, Any]:
    """One network: fixed T, settled, and each confidence with thresholds chosen on validation images."""
    val, test = runs["val"], runs["test"]
    val_labels = data.labels("val")[: val.logits.shape[1]]
    labels = data.labels("test")[: test.logits.shape[1]]
    spent = test.total_spikes.cumsum(0).double().mean(1)
    rows = []
    for kind in KINDS:
        for lost in LOST:
            chosen = choose_threshold(val, val_labels, kind, lost=lost)
            point = exit_point(test, labels, chosen.rule)
            rows.append(
                {
                    "rule": kind.name,
                    "lost_on_validation": lost,
                    "threshold": chosen.rule.threshold,  # type: ignore[union-attr]
                    "validation": {"mean_step": chosen.mean_step, "accuracy": chosen.accuracy},
                    "mean_step": point.mean_step,
                    "accuracy": point.accuracy,
                    "spikes": point.spikes,
                }
            )
            print(name, rows[-1], flush=True)
    settled = exit_point(test, labels, Settled())
    curves = {
        kind.name: [[p.rule.threshold, p.mean_step, p.accuracy] for p in exit_curve(test, labels, kind)]  # type: ignore[union-attr]
        for kind in KINDS
    }
    return {
        "name": name,
        "validation_images": len(val_labels),
        "test_images": len(labels),
        "t_off": test.t_off,
        "fixed": [
            {"t": t, "accuracy": float((test.logits[t - 1].argmax(-1) == labels).double().mean()), "spikes": float(s)}
            for t, s in enumerate(spent, 1)
        ],
        "settled": {"mean_step": settled.mean_step, "accuracy": settled.accuracy, "spikes": settled.spikes},
        "chosen": rows,
        "test_curves": curves,
        "engine": engine(snn, test, data, Margin(rows[0]["threshold"]), timed, UNTIL.get(name, STEPS)),
    }


def engine(snn: spikezip.SNN, full: Run, data: ImageData, rule: Margin, images: int, steps: int) -> dict[str, Any]:
    """Some test images run with the rule: the same exits, and the time of both ways."""
    x, labels = data.tensors("test", images)
    begun = time.perf_counter()
    snn.run(x, steps)
    settled = time.perf_counter() - begun
    begun = time.perf_counter()
    run = snn.run(x, steps, early_exit=rule)
    early = time.perf_counter() - begun
    expected = exit_steps(full, rule)[: len(labels)]
    assert run.exited_at is not None
    return {
        "images": len(labels),
        "threshold": rule.threshold,
        "same_exit_steps": bool(torch.equal(run.answered_at, expected)),
        "outcome": run.outcome.value,
        "seconds_until_settled": round(settled, 3),
        "seconds_with_early_exit": round(early, 3),
    }


def draw(networks: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against mean steps: fixed T, and each confidence; the thresholds chosen are marked."""
    from matplotlib.figure import Figure

    lines = -(-len(networks) // 3)
    figure = Figure(figsize=(10.8, 3.6 * lines), layout="constrained")
    places = figure.subplots(lines, 3, squeeze=False)
    colours = {"margin": "#d55e00", "probability": "#0072b2", "entropy": "#009e73"}
    for axes in places.flat[len(networks) :]:
        axes.set_visible(False)
    for axes, net in zip(places.flat, networks, strict=False):
        fixed = net["fixed"]
        axes.plot(
            [p["t"] for p in fixed],
            [100 * p["accuracy"] for p in fixed],
            color="#666666",
            marker=".",
            label="fixed T",
        )
        for kind, colour in colours.items():
            curve = net["test_curves"][kind]
            axes.plot([p[1] for p in curve], [100 * p[2] for p in curve], color=colour, linewidth=1.2, label=kind)
            chosen = [row for row in net["chosen"] if row["rule"] == kind]
            axes.plot([r["mean_step"] for r in chosen], [100 * r["accuracy"] for r in chosen], "o", color=colour, ms=4)
        best = 100 * max(p["accuracy"] for p in fixed)
        axes.set_ylim(best - 12, best + 1)  # where the rules differ; all lines begin far below
        end = net["settled"]
        axes.plot(end["mean_step"], 100 * end["accuracy"], "k*", ms=9, label="settled, or last step")
        axes.set(xlabel="mean exit step", title=net["name"])
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
    for first in places[:, 0]:
        first.set_ylabel("accuracy (%), CIFAR-10 test")
    places[0, 0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
