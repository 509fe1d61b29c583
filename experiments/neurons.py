"""Why ST-BIF: the same QANN with other neurons, behind one protocol.

    python experiments/neurons.py --data PATH/TO/CIFAR [--pet runs/cifar10-resnet20-pet-short/snn.spikezip] [--images N]

Same weights, thresholds (the quantizers' scales), start (theta/2), encodings and 64 steps; only the rule of firing
differs. Networks: the digits network (trained here on the training digits, measured on all of the test split) and the
CIFAR-10 ResNet-20 (fine-tuned with ``--pet``, else training-free; on the first ``--images`` test images); 8 levels,
8-bit weights. What has been run is kept in runs/neurons. Writes
experiments/results/neurons.json and the figure beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import spikezip
from spikezip.data import ImageData, open_data
from spikezip.measure import ablate
from spikezip.measure.provenance import provenance
from spikezip.models import resolve
from spikezip.spike import parse_encoding
from spikezip.spike.neurons import NEURONS
from spikezip.train import AdamW, Plan

RESULTS = Path(__file__).parent / "results"
CACHE = Path("runs/neurons")
SEED = 0
STEPS = 64
SHOWN = (1, 2, 4, 8, 16, 32, 64)
LEVELS = 8
CALIBRATION = 512
DIGITS = "digits network"
COLOURS = ["#000000", "#d55e00", "#e69f00", "#cc79a7", "#0072b2", "#999999", "#009e73", "#56b4e9", "#8c6bb1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files and pretrained weights")
    parser.add_argument("--images", type=int, default=1000, help="test images of CIFAR-10")
    parser.add_argument("--pet", type=Path, help="bundle of the fine-tuned ResNet-20")
    parser.add_argument("--encodings", default="pulse,even:8", help="of the ResNet-20 (digits has both)")
    parser.add_argument("--out", type=Path, default=RESULTS / "neurons.json")
    parser.add_argument("--again", action="store_true", help="run what is kept already too")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    results = []
    for network, snn, images, labels in networks(options.data, options.pet, options.images):
        qann = accuracy(torch.cat([snn.qann(x) for x in images.split(256)]), labels)
        for text in ("pulse,even:8" if network == DIGITS else options.encodings).split(","):
            encoding = parse_encoding(text)
            changed = replace(snn, encoding=encoding, bias_encoding=encoding)
            rows = [one(network, text, name, changed, images, labels, options.again) for name in NEURONS]
            results.append({"network": network, "images": len(images), "encoding": text, "qann": qann, "neurons": rows})
            text = json.dumps(
                {"experiment": "neurons", **provenance(SEED), "steps": list(SHOWN), "results": results}, indent=1
            )
            options.out.write_text(text + "\n")
            draw(results, options.out.with_suffix(".svg"))


def networks(root: Path | None, pet: Path | None, limit: int) -> Iterator[tuple[str, Any, Tensor, Tensor]]:
    """Name, SNN, test images and labels of each network."""
    digits = open_data("digits")
    yield DIGITS, digits_network(digits), *digits.tensors("test")
    source = resolve("spikezip:resnet20", weights="pretrained", root=root)
    data = open_data("cifar10", root, mean=source.mean, std=source.std)
    if pet is not None:
        name, snn = "ResNet-20, CIFAR-10, PET (one epoch)", spikezip.load(pet)
    else:
        real = data.calibration(CALIBRATION, SEED)
        name = "ResNet-20, CIFAR-10, training-free"
        snn = spikezip.convert(source.module, source.example, real, levels=LEVELS)
    yield name, snn, *data.tensors("test", limit)


def digits_network(data: ImageData) -> spikezip.SNN:
    """Trained for 20 epochs, converted without fine-tuning."""
    model: nn.Module = resolve("spikezip:digits").module
    plan = Plan(spikezip.QAT(), epochs=20, batch=64, optimizer=AdamW(rate=0.003), validation_split=None, seed=SEED)
    model = spikezip.finetune(model, data, plan)  # type: ignore[assignment,arg-type]
    real = data.calibration(CALIBRATION, SEED)
    return spikezip.convert(model.eval(), real[:1], real, levels=LEVELS)


def one(
    network: str, encoding: str, name: str, snn: spikezip.SNN, images: Tensor, labels: Tensor, again: bool
) -> dict[str, Any]:
    """One neuron in one network."""
    slug = "".join(c if c.isalnum() else "-" for c in f"{network}-{encoding}-{name}-{len(images)}")
    path = CACHE / f"{slug}.json"
    if again or not path.exists():
        begun = time.perf_counter()
        found = ablate(snn, NEURONS[name], images, STEPS)
        at = [t - 1 for t in SHOWN]
        row = {
            "neuron": name,
            "alphabet": NEURONS[name].alphabet,
            "source": NEURONS[name].source,
            "accuracy": [accuracy(found.logits[t], labels) for t in at],
            "differ": found.differ[at].tolist(),
            "spikes": found.spikes.cumsum(0)[at].tolist(),
            "synops": found.synops.cumsum(0)[at].tolist(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row))
        print(network, encoding, name, [round(100 * a, 1) for a in row["accuracy"]], flush=True)
        print(f"  differ {row['differ'][-1]:.4f}, {time.perf_counter() - begun:.0f} s", flush=True)
    return json.loads(path.read_text())


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images classified rightly."""
    return float((logits.argmax(-1) == labels).double().mean())


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Accuracy, and share of wrong codes in the last layer, against time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.3 * len(results) + 0.4, 6), layout="constrained")
    columns = figure.subplots(2, len(results), squeeze=False)
    for (top, below), result in zip(columns.T, results, strict=True):
        for row, colour in zip(result["neurons"], COLOURS, strict=True):
            ours = row["neuron"] == "ST-BIF"
            style = {"color": colour, "marker": ".", "linewidth": 2.4 if ours else 1.1, "zorder": 3 if ours else 2}
            top.plot(SHOWN, [100 * a for a in row["accuracy"]], label=row["neuron"], **style)
            below.plot(SHOWN, [100 * d for d in row["differ"]], **style)
        top.axhline(100 * result["qann"], color="#666666", linewidth=1, linestyle=":")
        top.set_title(f"{result['network']}\n{result['encoding']}, {result['images']:,} images", fontsize=9)
        for axes in (top, below):
            axes.set_xscale("log", base=2)
            axes.set_xticks(SHOWN, [str(t) for t in SHOWN])
            axes.spines[["top", "right"]].set_visible(False)
        below.set_xlabel("time step t")
        below.set_ylim(-3, 103)
    columns[0][0].set_ylabel("accuracy (%)")
    columns[1][0].set_ylabel("last-layer codes\nthat are not the QANN's (%)")
    figure.legend(
        *columns[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3 if len(results) < 3 else 5,
        fontsize=9,
        frameon=False,
    )
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
