"""What a training step costs beside a step of the plain ANN: LSQ, PET with 4 paths, trajectories.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--batch 64] [--rounds 3] [--device cuda]

ResNet-18 (CIFAR form, BatchNorm folded, float32, channels last); a step is forward, loss and backward. Every timed step
stands between two of the ANN, by whose mean it is divided. Writes experiments/results/speed-training.json.
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
import torch.nn.functional as F
from torch import Tensor, nn

from spikezip import Even, Levels, Morph, capture, morph, quantize
from spikezip.bench.memory import peak_mib
from spikezip.measure.provenance import provenance
from spikezip.models import resnet18
from spikezip.train import Folded, InTurn, Rescaled, ensemble, unroll

PATHS = (Rescaled(1, 8), Rescaled(2, 8), Rescaled(4, 8))
EIGHT, TWO = Levels(0, 8), Levels(0, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true", help="with torch.compile too (minutes more)")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/speed-training.json"))
    choices = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(choices.device)
    images = torch.randn(choices.batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (choices.batch,), device=device)
    ann = morph(capture(resnet18().eval(), torch.randn(2, 3, 32, 32)), Morph())
    qann, coarse = (quantize(ann, levels, images[:16].cpu()) for levels in (EIGHT, TWO))
    made: dict[str, tuple[nn.Module, nn.Module]] = {
        "LSQ, 9 levels": (qann, qann),
        "PET, 4 paths, folded": (ensemble(qann, PATHS, Folded()), qann),
        "PET, 4 paths, in turn": (ensemble(qann, PATHS, InTurn()), qann),
        "PET, 4 paths, recomputed": (ensemble(qann, PATHS, InTurn(recompute=True)), qann),
        "trajectory, T = 2": (unroll(coarse, 2, Even(2), settled=False), coarse),
    }
    for module in (ann, *(m for pair in made.values() for m in pair)):
        module.to(device)
        for parameter in module.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    steps = {name: step(module, owner, images, labels) for name, (module, owner) in made.items()}
    plain = step(ann, ann, images, labels)
    if choices.compiled:
        steps["ANN, compiled"] = step(torch.compile(ann), ann, images, labels)  # type: ignore[arg-type]
        steps["LSQ, 9 levels, compiled"] = step(torch.compile(qann), qann, images, labels)  # type: ignore[arg-type]
    rows = measured(plain, steps, choices.rounds, device)
    whole = {
        "experiment": "speed-training",
        **provenance(0),
        "model": "resnet18",
        "batch": choices.batch,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "rows": rows,
    }
    choices.out.write_text(json.dumps(whole, indent=1) + "\n")


def step(module: nn.Module, owner: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Forward, loss and backward, the gradients then dropped."""

    def run() -> None:
        answer = module(images)
        answer = answer if answer.dim() == 3 else answer.unsqueeze(0)
        torch.stack([F.cross_entropy(logits, labels) for logits in answer]).sum().backward()
        owner.zero_grad(set_to_none=True)

    return run


def measured(
    plain: Callable[[], None], steps: dict[str, Callable[[], None]], rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """Median, least and most multiples of the plain step; memory over the start."""
    memory = {}
    for name, run in {"ANN": plain, **steps}.items():
        run()  # compilers and caches are made ready before anything is timed
        memory[name] = _memory(run, device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    before = _seconds(plain, device)
    for _ in range(rounds):
        for name, run in steps.items():
            took, after = _seconds(run, device), _seconds(plain, device)
            times[name].append(2 * took / (before + after))
            before = after
    rows = []
    for name, found in times.items():
        more = memory[name] / memory["ANN"] if memory[name] and memory["ANN"] else None
        middle = statistics.median(found)
        rows.append({"what": name, "steps": middle, "least": min(found), "most": max(found), "memory": more})
        print(f"{name}: {middle:.2f} ANN steps ({min(found):.2f}-{max(found):.2f}), memory {more}", flush=True)
    return rows


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - began


def _memory(run: Callable[[], None], device: torch.device) -> float | None:
    if device.type != "cuda":
        return peak_mib(run)[1]
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    run()
    return (torch.cuda.max_memory_allocated(device) - start) / 2**20


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
