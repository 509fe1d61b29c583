"""A small search for trajectory training, CIFAR-10 ResNet-20: sixty optimizer steps each, judged on validation images.

    python experiments/trajectory_probes.py [--data PATH]

Writes experiments/results/trajectory-probes.json, probe by probe; those in the file are not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from spikezip import Levels, Morph, capture, morph, quantize
from spikezip.data import open_data
from spikezip.measure.provenance import provenance
from spikezip.models import resolve
from spikezip.morph import Residual
from spikezip.spike import parse_encoding
from spikezip.train import AdamW, CrossEntropy, Distil, Plan, Trajectory, train

RESULT = Path(__file__).parent / "results" / "trajectory-probes.json"
STEPS, BATCH = 60, 128
BASE = {
    "encoding": "even:2",
    "highest": 2,
    "weights": [0, 1],
    "residual": "vanilla",
    "rate": 1e-3,
    "refit": False,
    "features": 0.0,
}
PROBES: dict[str, dict[str, Any]] = {
    "even:2, codes 0..2": {},
    "pulse": {"encoding": "pulse"},
    "codes 0..3": {"highest": 3},
    "t = 1 weighs 0.3": {"weights": [0.3, 1]},
    "RCR": {"residual": "rcr"},
    "learning rate 0.003": {"rate": 3e-3},
    "learning rate 0.0003": {"rate": 3e-4},
    "weights refitted before": {"refit": True},
    "MS blocks": {"residual": "ms"},
    "features of the ANN weigh 10": {"features": 10.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files and pretrained weights")
    data_root = parser.parse_args().data
    source = resolve("spikezip:resnet20", weights="pretrained", root=data_root)
    data = open_data("cifar10", data_root, mean=source.mean, std=source.std)
    found = json.loads(RESULT.read_text())["probes"] if RESULT.exists() else {}
    for name, difference in PROBES.items():
        if name in found:
            continue
        probe = {**BASE, **difference}
        torch.manual_seed(0)
        ann = morph(capture(source.module, source.example), Morph(residual=Residual(probe["residual"])))
        levels = Levels(0, probe["highest"])
        qann = quantize(ann, levels, data.calibration(512), refit=probe["refit"])
        criterion = CrossEntropy(distil=Distil(1.0, 2.0, probe["features"]))
        teacher = ann if probe["features"] else source.module
        objective = Trajectory(
            tuple(probe["weights"]), parse_encoding(probe["encoding"]), criterion=criterion, teacher=teacher
        )
        plan = Plan(
            objective,
            batch=BATCH,
            train_images=STEPS * BATCH,
            optimizer=AdamW(rate=probe["rate"], weight_decay=0.0),
            warmup=0.1,
            clip=1.0,
            validation_images=2_048,
        )
        found[name] = {**probe, "validation": train(qann, data, plan).history[-1].validation}
        result = {"experiment": "trajectory-probes", **provenance(0), "optimizer_steps": STEPS, "probes": found}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        print(name, found[name]["validation"], flush=True)


if __name__ == "__main__":
    main()
