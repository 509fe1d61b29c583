"""What the published CIFAR-10 ResNet-20 costs as an SNN, in five wirings: audit, operations, energy at each step.

    python experiments/energy.py --data PATH/TO/CIFAR [--images 64] [--accuracy 500]

Training-free conversion, 8 levels, 8-bit weights (re-routed with float weights too), pulse release, 32 steps.
Operations are counted on the first ``--images`` test images, accuracy on the first ``--accuracy``, of which the first
``--certified`` are compared with the QANN code by code. Writes experiments/results/energy-resnet20.json, from which
docs/generate.py makes the tables of docs/energy.md.
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
from spikezip.measure.audit import audit_of
from spikezip.measure.provenance import provenance
from spikezip.measure.work import OPERATIONS
from spikezip.models import ModelSource, resolve

RESULTS = Path(__file__).parent / "results"
SEED = 0
CALIBRATION = 512
STEPS = 32

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
    parser.add_argument("--certified", type=int, default=200, help="images to compare with the QANN")
    parser.add_argument("--out", type=Path, default=RESULTS / "energy-resnet20.json")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    source = resolve("spikezip:resnet20", weights="pretrained", root=options.data)
    data = open_data("cifar10", options.data, mean=source.mean, std=source.std)
    wirings = [(wiring.value, wiring, 8) for wiring in spikezip.Residual]
    wirings.append(("rcr, float weights", spikezip.Residual.RCR, None))
    runs = []
    for name, residual, bits in wirings:
        run = one(name, residual, bits, source, data, options)
        runs.append(run)
        settled = f"T_eq {run['t_eq']['max']}, {run['synops'][-1] / 1e6:.1f} million SynOps, equal: {run['equal']}"
        print(f"{name}: {100 * run['accuracy'][-1]:.1f} %, {settled}", flush=True)
    result = {"experiment": "energy-resnet20", **provenance(SEED), "steps": STEPS, "runs": runs}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def one(
    name: str,
    residual: spikezip.Residual,
    weight_bits: int | None,
    source: ModelSource,
    data: ImageData,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Convert, compare, audit, count and price one wiring."""
    images, accuracy = options.images, options.accuracy
    real = data.calibration(CALIBRATION, SEED)
    choice = spikezip.Morph(residual=residual)
    snn = spikezip.convert(source.module, source.example, real, morph=choice, weight_bits=weight_bits)
    pictures, labels = data.tensors("test", max(images, accuracy))
    run = snn.run(pictures[:accuracy], STEPS)
    right = (run.logits.argmax(-1) == labels[:accuracy]).double().mean(1)
    quantized = qann_accuracy(snn, pictures[:accuracy], labels[:accuracy])
    certificate = spikezip.verify(snn, pictures[: options.certified], seed=SEED)
    began = time.perf_counter()
    counts = count(snn, pictures, STEPS, limit=images)
    seconds = time.perf_counter() - began
    audit = audit_of(snn, counts)
    priced = [price(counts, EnergyModel.named(name)) for name in energy_models()]
    return {
        "name": name,
        "residual": residual.value,
        "weight_bits": weight_bits,
        "images": images,
        "accuracy_images": accuracy,
        "accuracy": right.tolist(),
        "qann": quantized,
        "equal": certificate.equal,
        "mismatches": certificate.mismatches,
        "codes_checked": sum(layer.codes_checked for layer in certificate.layers),
        "certified_images": certificate.images,
        "weights_sha256": certificate.weights_sha256,
        "neuron_layers": len(snn.layers),
        "bound": certificate.bound,
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


def qann_accuracy(snn: spikezip.SNN, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images the quantized network answers rightly."""
    with torch.no_grad():
        answers = torch.cat([snn.qann(part).argmax(-1) for part in images.split(100)])
    return float((answers == labels).double().mean())


if __name__ == "__main__":
    main()
