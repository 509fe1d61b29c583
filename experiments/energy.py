"""What the published CIFAR-10 ResNet-20 costs as an SNN, vanilla and re-routed: audit, operations, energy at each step.

    python experiments/energy.py --data PATH/TO/CIFAR [--images 64] [--accuracy 500]

Training-free conversion, 8 levels, 8-bit weights (re-routed with float weights too), pulse release, 32 steps.
Operations are counted on the first
``--images`` test images, accuracy on the first ``--accuracy``. Writes experiments/results/energy-resnet20.json and
prints the tables of docs/energy.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import spikezip
from spikezip.data import ImageData, open_data
from spikezip.measure import Counts, EnergyModel, count, energy_models, price
from spikezip.measure.provenance import provenance
from spikezip.measure.work import OPERATIONS
from spikezip.models import ModelSource, resolve

RESULTS = Path(__file__).parent / "results"
SEED = 0
CALIBRATION = 512
STEPS = 32
SHOWN = (1, 2, 4, 6, 8, 12, 16, 32)

#: memory-45nm-int8 with an accelerator's reuse: see docs/energy.md, "A model of your own".
REUSE = """
name: memory-45nm-int8-reuse16
source: memory-45nm-int8; a 16 x 16 array reads each weight and activation of the QANN once for 16 MACs (assumed)
prices: {ac: 0.1, mac: 0.3, add: 0.1, mul: 0.2, compare: 0.1, tracer_compare: 0.03, tracer_add: 0.03,
         address_add: 0.1, address_mul: 0.2}
ann: {mac: 4.6, add: 0.9, mul: 3.7, compare: 0.9}
memory:
  access: [[0, 0], [8192, 10], [32768, 20], [1048576, 100]]
  word_bits: 64
  reuse: {qann: 16, ann: 16}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files and pretrained weights")
    parser.add_argument("--images", type=int, default=64, help="images to count on")
    parser.add_argument("--accuracy", type=int, default=500, help="images for accuracy at each step")
    parser.add_argument("--out", type=Path, default=RESULTS / "energy-resnet20.json")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    source = resolve("spikezip:resnet20", weights="pretrained", root=options.data)
    data = open_data("cifar10", options.data, mean=source.mean, std=source.std)
    runs = [
        one(name, residual, bits, source, data, options.images, options.accuracy)
        for name, residual, bits in (
            ("vanilla", spikezip.Residual.VANILLA, 8),
            ("rcr", spikezip.Residual.RCR, 8),
            ("rcr, float weights", spikezip.Residual.RCR, None),
        )
    ]
    result = {"experiment": "energy-resnet20", **provenance(SEED), "steps": STEPS, "runs": runs}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(tables(runs))


def one(
    name: str,
    residual: spikezip.Residual,
    weight_bits: int | None,
    source: ModelSource,
    data: ImageData,
    images: int,
    accuracy: int,
) -> dict[str, Any]:
    """Convert, audit, count and price one wiring."""
    real = data.calibration(CALIBRATION, SEED)
    choice = spikezip.Morph(residual=residual)
    snn = spikezip.convert(source.module, source.example, real, morph=choice, weight_bits=weight_bits)
    pictures, labels = data.tensors("test", max(images, accuracy))
    run = snn.run(pictures[:accuracy], STEPS)
    right = (run.logits.argmax(-1) == labels[:accuracy]).double().mean(1)
    began = time.perf_counter()
    counts = count(snn, pictures, STEPS, limit=images)
    seconds = time.perf_counter() - began
    audit = spikezip.audit(snn, pictures[:images], STEPS)
    priced = [price(counts, EnergyModel.named(name)) for name in energy_models()]
    return {
        "name": name,
        "residual": residual.value,
        "weight_bits": weight_bits,
        "images": images,
        "accuracy_images": accuracy,
        "accuracy": right.tolist(),
        "t_eq": {"max": int(run.settled_at.max()), "mean": float(run.settled_at.double().mean())},
        "audit": audit.to_json(),
        "synops": counts.synops.tolist(),
        "spikes": counts.spikes.tolist(),
        "operations": {name: {"snn": float(counts.snn(name).sum()), "qann": counts.qann(name)} for name in OPERATIONS},
        "energy": [
            {
                "model": energy.model.name,
                "snn_pj": energy.snn.tolist(),
                "qann_pj": energy.qann,
                "ann_pj": energy.ann,
                "ratio": None if energy.ratio is None else energy.ratio.tolist(),
                "tracers_pj": tracers(counts, energy.model),
            }
            for energy in [*priced, price(counts, EnergyModel.from_text(REUSE))]
        ],
        "uncounted": list(counts.uncounted),
        "seconds_to_count": round(seconds, 1),
    }


def tracers(counts: Counts, model: EnergyModel) -> float:
    """What the tracers cost of it all: their comparisons, changes and memory accesses."""
    return sum(
        row.snn.total(name) * model.price("snn", name, row.snn.memories)
        for row in counts.rows
        for name in OPERATIONS
        if name.startswith("tracer")
    )


def tables(runs: list[dict[str, Any]]) -> str:
    """The tables of docs/energy.md."""
    lines = ["| wiring | what | " + " | ".join(f"t={t}" for t in SHOWN) + " |", "|---|---|" + "---|" * len(SHOWN)]
    for run in runs:
        rows = {"accuracy (%)": [f"{100 * run['accuracy'][t - 1]:.1f}" for t in SHOWN]}
        rows["SynOps (10⁶)"] = [f"{run['synops'][t - 1] / 1e6:.1f}" for t in SHOWN]
        for energy in run["energy"]:
            if energy["ratio"]:
                rows[f"SNN / QANN, {energy['model']}"] = [f"{energy['ratio'][t - 1]:.2f}" for t in SHOWN]
        lines += [f"| {run['name']} | {what} | {' | '.join(cells)} |" for what, cells in rows.items()]
    head = "| operation | synapses |" + "".join(
        f" {r['name']}: receives | ACs | MACs | MACs as integers |" for r in runs
    )
    lines += ["", head, "|---|---:|" + "---|---:|---:|---:|" * len(runs)]
    for rows in zip(*(run["audit"]["rows"] for run in runs), strict=True):
        cells = [f"{row['input']} | {' | '.join(_million(row[k]) for k in COUNTED)}" for row in rows]
        lines.append(f"| {rows[0]['name']} | {_million(rows[0]['synapses'])} | {' | '.join(cells)} |")
    totals = [[sum(row[k] for row in run["audit"]["rows"]) for k in ("synapses", *COUNTED)] for run in runs]
    cells = [f" | {' | '.join(_million(n) for n in total[1:])}" for total in totals]
    lines.append(f"| all (10⁶) | {_million(totals[0][0])} | {' | '.join(cells)} |")
    return "\n".join(lines)


COUNTED = ("acs", "macs", "as_macs")


def _million(number: float) -> str:
    return f"{number / 1e6:.2f}"


if __name__ == "__main__":
    main()
