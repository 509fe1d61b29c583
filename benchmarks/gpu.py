"""What a whole run costs on a GPU beside one forward pass of the ANN, and whether it stays exact there.

    python benchmarks/gpu.py [--device cuda] [--batch 512] [--rounds 5]

ResNet-18 (CIFAR form, 8 levels, T = 16) and, unless ``--only resnet18``, timm's ViT-S at 224 pixels to equilibrium.
Each timed run stands between two forward passes of the ANN (float32; TF32 beside it) by whose mean it is divided. A few
images are run with the reference engine on the CPU too: codes and outputs must be the same bits. Writes
experiments/results/speed-gpu.json. It has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import spikezip
from spikezip.kernels.precision import full_precision, tf32
from spikezip.measure.provenance import provenance
from spikezip.models import resnet18, resolve
from spikezip.run import Engine

CHECKED = 4  #: images compared with the reference engine on the CPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=512, help="of ResNet-18; ViT-S runs a sixteenth of it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["resnet18", "vit-s"])
    parser.add_argument("--out", type=Path, default=Path("experiments/results/speed-gpu.json"))
    choices = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(choices.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here.")
    rows = []
    if choices.only != "vit-s":
        rows.append(measured("resnet18", resnet18().eval(), (3, 32, 32), 16, choices.batch, choices.rounds, device))
    if choices.only != "resnet18":
        vit = resolve("timm:vit_small_patch16_224").module
        batch = max(choices.batch // 16, 1)
        rows.append(measured("vit-s", vit, (3, 224, 224), 256, batch, choices.rounds, device))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    whole = {"experiment": "speed-gpu", **provenance(0), "device": name, "rows": rows}
    choices.out.write_text(json.dumps(whole, indent=1) + "\n")


def measured(
    name: str, model: nn.Module, shape: tuple[int, ...], steps: int, batch: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """One network: exact or not, and how long a run takes."""
    images = torch.randn(batch, *shape)
    snn = spikezip.convert(model, images[:2], images[: min(batch, 64)], levels=8)
    wanted = snn.run(images[:CHECKED], steps, engine=Engine.REFERENCE)
    snn.graph.to(device)
    moved = images.to(device)
    moved = moved.contiguous(memory_format=torch.channels_last)
    ann = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = snn.run(moved[:CHECKED], steps, engine=Engine.SWEEP)
    equal = torch.equal(found.outputs[0][-1].cpu(), wanted.outputs[0][-1])
    equal &= all(torch.equal(found.codes[layer].cpu(), wanted.codes[layer]) for layer, _ in snn.layers)
    equal &= torch.equal(found.settled_at, wanted.settled_at)
    times: dict[str, list[float]] = {"float32": [], "tf32": []}
    forwards = {"float32": _in(full_precision, ann, moved), "tf32": _in(tf32, ann, moved)}

    def run() -> None:
        snn.run(moved, steps, engine=Engine.SWEEP)

    for call in (run, *forwards.values()):
        call()
    for _ in range(rounds):
        for precision, forward in forwards.items():
            before, took, after = _seconds(forward, device), _seconds(run, device), _seconds(forward, device)
            times[precision].append(2 * took / (before + after))
    row: dict[str, Any] = {"network": name, "steps": steps, "batch": batch, "levels": 8, "equal": equal}
    row["t_eq"] = int(wanted.settled_at.max())
    for precision, ratios in times.items():
        row[f"ann_forwards_{precision}"] = statistics.median(ratios)
        row[f"spread_{precision}"] = [min(ratios), max(ratios)]
    print(row, flush=True)
    return row


def _in(precision: Callable[[], Any], ann: nn.Module, images: Tensor) -> Callable[[], None]:
    def forward() -> None:
        with torch.no_grad(), precision():
            ann(images)

    return forward


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
