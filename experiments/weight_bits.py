"""Weights of few bits: each rounded to the nearest step, or in order, so that they make up for one another.

    python experiments/weight_bits.py [--data PATH]

ResNet-20 without training (8 levels, refitted, once settled), and the network that was trained for t = 2
(experiments/networks) at t = 2; all test images; and how large the SNN's file is. Writes
experiments/results/weight-bits.json, row by row; those in the file are not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cells import share_right
from torch import Tensor, fx

from spikezip import Levels, Morph, Residual, capture, morph, quantize, spike, to_integer
from spikezip.cli.sources import open_both
from spikezip.export import save_bundle
from spikezip.measure.provenance import provenance
from spikezip.models.weights import load_weights
from spikezip.run import Engine, execute

HERE = Path(__file__).parent
RESULT = HERE / "results" / "weight-bits.json"
SEED = 0
CALIBRATION = 512
BITS = (8, 6, 5, 4, 3)
NETWORKS = HERE / "networks"
#: What is converted: its data set and, unless they are published, its weights.
CASES = {
    "CIFAR-10, settled": ("cifar10", "pretrained"),
    "CIFAR-100, settled": ("cifar100", str(NETWORKS / "cifar100-resnet20-ann.safetensors")),
    "CIFAR-10, trained for t = 2": ("cifar10", "pretrained"),
}
FOR_TWO = NETWORKS / "cifar10-resnet20-for-T-2-MS-from-code-1-halfway.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files and pretrained weights")
    data_root = parser.parse_args().data
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    for case, (data_set, weights) in CASES.items():
        missing = [bits for bits in BITS if not any((row["case"], row["bits"]) == (case, bits) for row in rows)]
        if not missing:
            continue
        torch.manual_seed(SEED)
        source, data = open_both(
            "spikezip:resnet20", data_set, weights=weights, classes=None, image_size=None, root=data_root
        )
        real, (images, labels) = data.calibration(CALIBRATION, SEED), data.tensors("test")
        original = capture(source.module, source.example)
        right: Callable[..., float] = share_right
        if "t = 2" in case:
            qann, right = quantize(morph(original, Morph(residual=Residual.MS)), Levels(0, 3), real), right_at_two
            load_weights(qann, FOR_TWO)
        else:
            qann = quantize(morph(original), 8, real, refit=True, original=original)
        whole = right(qann, images, labels)
        for bits in missing:
            row: dict[str, Any] = {"case": case, "bits": bits, "floats": whole}
            for name, calibration in (("nearest", None), ("in order", real)):
                start = time.process_time()
                network = to_integer(qann, bits, calibration=calibration)
                row[f"{name} seconds"] = time.process_time() - start
                row[name] = right(network, images, labels)
            row["bytes"], row["floats bytes"] = (file_size(net) for net in (network, qann))
            rows.append(row)
            told = {"experiment": "weight-bits", **provenance(SEED), "rows": rows}
            RESULT.write_text(json.dumps(told, indent=1) + "\n")
            print(f"{case}, {bits} bits: {row['nearest']:.4f} -> {row['in order']:.4f}", flush=True)


def right_at_two(network: fx.GraphModule, images: Tensor, labels: Tensor) -> float:
    """Share of images on which the SNN, from code 1, is right at t = 2."""
    snn, right = spike(network, initial_code=1), 0
    engine = Engine.SWEEP if snn.note("weight_bits") else Engine.REFERENCE
    for part, wanted in zip(images.split(500), labels.split(500), strict=True):
        answers = execute(snn, (part,), 2, engine=engine, stop=False).outputs[0][-1]
        right += int((answers.argmax(-1) == wanted).sum())
    return right / len(images)


def file_size(qann: fx.GraphModule) -> int:
    """Bytes of its SNN's bundle."""
    with tempfile.TemporaryDirectory() as folder:
        return save_bundle(spike(qann), Path(folder) / "net.spikezip").stat().st_size


if __name__ == "__main__":
    main()
