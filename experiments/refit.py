"""What refitting the weights gains without training: published CIFAR ResNets, few levels, few images.

    python experiments/refit.py [--data PATH]

Each network is quantized twice from the same calibration images, as its weights are and refitted to the network as it
was before its residual blocks were rewired, if they were, and tried on all test images. Writes
experiments/results/refit.json, row by row; those in the file are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from cells import share_right

from spikezip import Morph, Residual, capture, morph, quantize
from spikezip.cli.sources import open_both
from spikezip.measure.provenance import provenance

HERE = Path(__file__).parent
RESULT = HERE / "results" / "refit.json"
SEED = 0
ANN_100 = HERE / "networks" / "cifar100-resnet20-ann.safetensors"
#: Data set, network, its weights, levels, calibration images, and residual blocks where they are rewired.
CASES = [
    *(("cifar10", "resnet20", "pretrained", levels, 512) for levels in (4, 8, 16, 32)),
    *(("cifar10", "resnet20", "pretrained", 8, images) for images in (16, 64, 1024)),
    *(("cifar10", network, "pretrained", 8, 512) for network in ("resnet32", "resnet56")),
    *(("cifar100", "resnet20", str(ANN_100), levels, 512) for levels in (4, 8, 16)),
    *(("cifar10", "resnet20", "pretrained", levels, 512, wiring) for wiring in ("rcr", "ms") for levels in (4, 8, 16)),
    *(("cifar10", "resnet56", "pretrained", 8, 512, wiring) for wiring in ("rcr", "ms")),
    *(("cifar100", "resnet20", str(ANN_100), 8, 512, wiring) for wiring in ("rcr", "ms")),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files and pretrained weights")
    data_root = parser.parse_args().data
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    for data_set, network, weights, levels, images, *wiring in CASES:
        case = {"data_set": data_set, "network": network, "levels": levels, "calibration": images}
        case |= dict(zip(("residual",), wiring, strict=False))
        if any(case.items() <= row.items() for row in rows):
            continue
        torch.manual_seed(SEED)
        source, data = open_both(
            f"spikezip:{network}", data_set, weights=weights, classes=None, image_size=None, root=data_root
        )
        original = capture(source.module, source.example)
        ann = morph(original, Morph(residual=Residual(case.get("residual", "vanilla"))))
        real = data.calibration(images, SEED)
        test = data.tensors("test")
        row: dict[str, Any] = {**case, "ann": share_right(original, *test)}
        for name, refit in (("plain", False), ("refitted", True)):
            start = time.process_time()
            qann = quantize(ann, levels, real, refit=refit, original=original)
            row[f"{name}_seconds"] = time.process_time() - start
            row[name] = share_right(qann, *test)
        rows.append(row)
        told = {"experiment": "refit", **provenance(SEED), "rows": rows}
        RESULT.write_text(json.dumps(told, indent=1) + "\n")
        print(f"{case}: {row['ann']:.4f}, {row['plain']:.4f} -> {row['refitted']:.4f}", flush=True)


if __name__ == "__main__":
    main()
