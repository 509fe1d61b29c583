"""Object detection without training: published YOLOv3-family detectors as SNNs, mAP at each time step.

    python experiments/detection.py --data FOLDER [--only NETWORK] [--levels 8 16 32]

COCO's first 128 training images, 320 x 320. Each half's thresholds and weights are found on the other half, without its
boxes; precision is over all 128. Eight-bit weights, analog input at step 1, ternary spikes. Every settled answer is
compared with the QANN's, to the bit. Operations are counted on eight images. Writes experiments/results/detection.json,
row by row; those in the file are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from darknet import Darknet, coco128, detected, mean_precision
from torch import Tensor

import spikezip
from spikezip.data.root import data_root
from spikezip.measure import count
from spikezip.measure.provenance import provenance

RESULT = Path(__file__).parent / "results" / "detection.json"
SEED = 0
NETWORKS = {
    "MobileNetV2-YOLOv3-Nano (ReLU)": "coco_mobilenetv2_yolov3_nano_coco.safetensors",
    "Yolo-Fastest-1.1-XL (LeakyReLU)": "coco_yolo_fastest_1.1_xl_coco.safetensors",
}
STEPS = (1, 2, 4, 8, 12, 16, 24, 32, 48)
BATCH = 16
COUNTED = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the images, boxes and weights")
    parser.add_argument("--only", choices=list(NETWORKS), help="one network")
    parser.add_argument("--levels", type=int, nargs="*", default=[8, 16, 32], help="of the neurons")
    options = parser.parse_args()
    root = data_root(options.data)
    if root is None or not (root / "coco128_images.npz").is_file():
        parser.error("give the folder with coco128_images.npz, coco128_boxes.json and the weights: --data FOLDER")
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    for name in [options.only] if options.only else NETWORKS:
        network = Darknet(root / NETWORKS[name]).eval()
        images, truth = coco128(root, network.size)
        for levels in options.levels:
            if any((row["network"], row["levels"]) == (name, levels) for row in rows):
                continue
            row = {"network": name, "levels": levels, **measured(network, images, truth, levels)}
            rows.append(row)
            told = {"experiment": "detection", **provenance(SEED), "images": len(images), "rows": rows}
            RESULT.write_text(json.dumps(told, indent=1) + "\n")
            at = ", ".join(f"t={t} {value:.3f}" for t, value in row["at"].items())
            print(f"{name}, {levels} levels: ANN {row['ann']:.3f}, QANN {row['qann']:.3f}, {at}", flush=True)


@torch.no_grad()
def measured(network: Darknet, images: Tensor, truth: list[Tensor], levels: int) -> dict[str, Any]:
    """One network at so many levels, each half of the images by what was made on the other."""
    heads, half = network.heads(), len(images) // 2
    parts = [slice(0, half), slice(half, len(images))]
    boxes: dict[str, list[Any]] = {}
    settled: list[Tensor] = []
    equal, seconds, counts = True, 0.0, None
    for own, other in (parts, parts[::-1]):
        began = time.process_time()
        torch.manual_seed(SEED)
        snn = spikezip.convert(network, images[:1], images[other], levels=levels)
        seconds += time.process_time() - began
        equal &= spikezip.verify(snn, images[own], seed=SEED).equal
        for some in images[own].split(BATCH):
            boxes.setdefault("ann", []).extend(detected(heads, network(some)))
            boxes.setdefault("qann", []).extend(detected(heads, snn.qann(some)))
            run = snn.run(some)
            settled.append(run.settled_at)
            for t in STEPS:
                answers = [output[min(t, run.steps) - 1] for output in run.outputs]
                boxes.setdefault(f"{t}", []).extend(detected(heads, answers))
            boxes.setdefault("settled", []).extend(detected(heads, [output[-1] for output in run.outputs]))
        counts = counts or count(snn, images[own], limit=COUNTED, batch=COUNTED)
    assert counts is not None
    sums = {"synops": counts.synops, "spikes": counts.spikes.cumsum(0)}
    precision = {name: mean_precision(found, truth) for name, found in boxes.items()}
    steps = torch.cat(settled)
    return {
        "ann": precision.pop("ann"),
        "qann": precision.pop("qann"),
        "at": precision,
        "equal": equal,
        "t_eq": {"mean": float(steps.double().mean()), "max": int(steps.max())},
        **{name: {str(t): float(each[min(t, len(each)) - 1]) for t in STEPS} for name, each in sums.items()},
        "settled": {name: float(each[-1]) for name, each in sums.items()},
        "macs": float(counts.qann("mac")),
        "convert_seconds": round(seconds / 2, 1),
    }


if __name__ == "__main__":
    main()
