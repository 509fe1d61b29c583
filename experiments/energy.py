"""What the published CIFAR-10 ResNet-20 costs as an SNN, in five wirings: audit, operations, energy at each step.

    python experiments/energy.py --data PATH/TO/CIFAR [--finetune] [--images 64] [--accuracy 500]

8 levels, 8-bit weights, pulse release, 32 steps; training-free (re-routed with float weights too), or with
``--finetune`` after quantization-aware training, every wiring with the same ``--finetune-images`` training images, the
ANN as teacher, and the same optimizer and seed. Operations are counted on the first ``--images`` test images, accuracy
on the first ``--accuracy``, of which the first ``--certified`` are compared with the QANN code by code. Writes
experiments/results/energy-resnet20.json (energy-resnet20-finetuned.json), from which docs/generate.py makes the tables
of docs/energy.md. What has been fine-tuned and counted is kept in runs/energy, so that the command can be given again.
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
from spikezip.train import QAT, AdamW, CrossEntropy, Distil, Plan, finetune

RESULTS = Path(__file__).parent / "results"
SEED = 0
CALIBRATION = 512
STEPS = 32
BATCH = 128
TRAIN = 45_000  #: training images; the other 5,000 are for validation
CACHE = Path("runs/energy")

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
    parser.add_argument("--finetune", action="store_true", help="fine-tune every wiring first")
    parser.add_argument("--finetune-images", type=int, default=200 * BATCH, help="training images of each wiring")
    parser.add_argument("--out", type=Path, help="by default in experiments/results")
    options = parser.parse_args()
    if options.finetune_images < BATCH:
        parser.error(f"--finetune-images must be {BATCH} (one step) or more")
    name = "energy-resnet20-finetuned" if options.finetune else "energy-resnet20"
    out = options.out or RESULTS / f"{name}.json"
    torch.manual_seed(SEED)
    source = resolve("spikezip:resnet20", weights="pretrained", root=options.data)
    data = open_data("cifar10", options.data, mean=source.mean, std=source.std)
    budget = {"finetune": training(options.finetune_images)} if options.finetune else {}
    wirings = [(wiring.value, wiring, 8) for wiring in spikezip.Residual]
    if not options.finetune:
        wirings.append(("rcr, float weights", spikezip.Residual.RCR, None))
    sizes = (options.finetune_images, options.images, options.accuracy, options.certified)
    runs = []
    for wiring, residual, bits in wirings:
        kept = CACHE / f"{'-'.join(map(str, (wiring, *sizes)))}.json"
        if options.finetune and kept.exists():
            run = json.loads(kept.read_text())
        else:
            run = one(wiring, residual, bits, source, data, options)
            if options.finetune:
                kept.write_text(json.dumps(run))
        runs.append(run)
        settled = f"T_eq {run['t_eq']['max']}, {run['synops'][-1] / 1e6:.1f} million SynOps, equal: {run['equal']}"
        print(f"{wiring}: {100 * run['accuracy'][-1]:.1f} %, {settled}", flush=True)
    result = {"experiment": name, **provenance(SEED), "steps": STEPS, **budget, "runs": runs}
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


def training(images: int) -> dict[str, Any]:
    """What every wiring is given, as the result says it."""
    epochs = -(-images // TRAIN)
    steps = epochs * (images // epochs // BATCH)
    return {"images": steps * BATCH, "batch": BATCH, "steps": steps, "epochs": epochs, "rate": 1e-3, "temperature": 2.0}


def make(
    residual: spikezip.Residual, weight_bits: int | None, source: ModelSource, data: ImageData, images: int | None
) -> spikezip.SNN:
    """One wiring as an SNN: training-free, or fine-tuned on so many images; a training that was cut off goes on."""
    real = data.calibration(CALIBRATION, SEED)
    choice = spikezip.Morph(residual=residual)
    if images is None:
        return spikezip.convert(source.module, source.example, real, morph=choice, weight_bits=weight_bits)
    ann = spikezip.morph(spikezip.capture(source.module, source.example), choice)
    qann = spikezip.quantize(ann, 8, real)
    given = training(images)
    plan = Plan(
        QAT(CrossEntropy(distil=Distil(temperature=given["temperature"])), source.module),
        optimizer=AdamW(rate=given["rate"], weight_decay=0.0),
        epochs=given["epochs"],
        batch=BATCH,
        train_images=given["images"] // given["epochs"],
        validation_split=None,
        clip=1.0,
        checkpoint_every=20,
        seed=SEED,
    )
    trained = finetune(qann, data, plan, out=CACHE / f"{residual.value}-{images}", resume=True)
    return spikezip.spike(spikezip.to_integer(trained, weight_bits) if weight_bits else trained)


def one(
    name: str,
    residual: spikezip.Residual,
    weight_bits: int | None,
    source: ModelSource,
    data: ImageData,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Make, compare, audit, count and price one wiring."""
    images, accuracy = options.images, options.accuracy
    snn = make(residual, weight_bits, source, data, options.finetune_images if options.finetune else None)
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
