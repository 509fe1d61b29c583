"""Peak memory of a whole run, beside one forward pass of the ANN: as a heap holds it, and what is in use at once.

    python benchmarks/memory.py

Every figure comes from a process of its own, on one thread, after two runs that have packed the weights; what these
keep is told apart. A heap keeps what lies free between the tensors in use; with ``MALLOC_MMAP_THRESHOLD_`` (glibc) each
tensor has pages of its own and gives them back. Writes experiments/results/speed-memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from cpu import ARCHITECTURES, built

from spikezip import bench
from spikezip.bench.contenders import CONTENDERS
from spikezip.bench.memory import peak_mib, resident_mib
from spikezip.bench.timing import ann_peak
from spikezip.measure.provenance import provenance

#: Network, batch, width.
SETTINGS = [
    ("resnet18", 32, 1.0),
    ("resnet18", 8, 1.0),
    ("resnet18", 1, 1.0),
    ("resnet18", 32, 0.5),
    ("vgg16", 32, 1.0),
    ("resnet20", 32, 1.0),
    ("resnet20", 1, 1.0),
    ("torchvision:mobilenet_v2", 4, 1.0),
    ("torchvision:efficientnet_b0", 4, 1.0),
    ("torchvision:shufflenet_v2_x1_0", 4, 1.0),
    ("timm:ghostnet_100", 4, 1.0),
    ("timm:vit_tiny_patch16_224", 4, 1.0),
]
STEPS, LEVELS = 32, 8
PAGES = {"heap": {}, "own pages": {"MALLOC_MMAP_THRESHOLD_": "65536"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", nargs=3, metavar=("NETWORK", "BATCH", "WIDTH"), help="measure one, and print it")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/speed-memory.json"))
    chosen = parser.parse_args()
    if chosen.of:
        name, batch, width = chosen.of
        print(json.dumps(measured(name, int(batch), float(width))))
        return
    rows = []
    for name, batch, width in SETTINGS:
        row: dict[str, Any] = {"network": name, "batch": batch, "width": width, "steps": STEPS, "levels": LEVELS}
        for pages, settings in PAGES.items():
            call = [sys.executable, __file__, "--of", name, str(batch), str(width)]
            environment = {**os.environ, **settings, "OMP_NUM_THREADS": "1"}
            told = subprocess.run(call, env=environment, check=True, capture_output=True, text=True).stdout
            row[pages] = json.loads(told)
        print(row, flush=True)
        rows.append(row)
    whole = {"experiment": "speed-memory", **provenance(0), "rows": rows}
    chosen.out.write_text(json.dumps(whole, indent=1) + "\n")


def measured(name: str, batch: int, width: float) -> dict[str, float | None]:
    """Most memory over the start, in MiB."""
    torch.manual_seed(0)
    size = ARCHITECTURES.get(name, 32)
    network = built(name, width)
    case = bench.make_case(network, (3, size, size), LEVELS, batch=batch)
    before = resident_mib()
    for _ in range(2):
        CONTENDERS["sweep"].run(case, STEPS)
    kept = resident_mib() - before
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.parameters()) / 2**20
    snn = peak_mib(lambda: CONTENDERS["sweep"].run(case, STEPS))[1]
    return {"ann": ann_peak(case), "snn": snn, "kept": round(kept, 1), "ann_weights": round(weights, 1)}


if __name__ == "__main__":
    main()
