"""What a training step costs beside a step of the plain ANN: LSQ, PET with 4 paths, trajectories.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--batch 64] [--rounds 3] [--device cuda] [--only LSQ PET]
    OMP_NUM_THREADS=1 python benchmarks/training.py --model resnet20 --batch 256 --only trajectory

ResNet-18 or -20 (CIFAR form, BatchNorm folded, float32, channels last); a step is forward, loss and backward. Every
timed step stands between two of the ANN, by whose mean it is divided. Writes experiments/results/speed-training.json
after each row, which takes the place of the same row of the same processor or GPU.
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
from spikezip.measure.provenance import processor, provenance
from spikezip.models import resolve
from spikezip.train import Folded, InTurn, Rescaled, ensemble, unroll

PATHS = (Rescaled(1, 8), Rescaled(2, 8), Rescaled(4, 8))
EIGHT, TWO = Levels(0, 8), Levels(0, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("resnet18", "resnet20"), default="resnet18")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose names begin so")
    parser.add_argument("--compiled", action="store_true", help="with torch.compile too (minutes more)")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/speed-training.json"))
    choices = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(choices.device)
    images = torch.randn(choices.batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (choices.batch,), device=device)
    ann = morph(capture(resolve(f"spikezip:{choices.model}").module, torch.randn(2, 3, 32, 32)), Morph())
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
    whole = made["trajectory, T = 2"]
    steps["trajectory, T = 2, in 4 parts"] = step(*whole, images, labels, parts=4)
    plain = step(ann, ann, images, labels)
    if choices.compiled:
        steps["ANN, compiled"] = step(torch.compile(ann), ann, images, labels)  # type: ignore[arg-type]
        steps["LSQ, 9 levels, compiled"] = step(torch.compile(qann), qann, images, labels)  # type: ignore[arg-type]
        steps["trajectory, T = 2, compiled"] = step(torch.compile(whole[0]), coarse, images, labels)  # type: ignore[arg-type]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    facts = {"model": choices.model, "batch": choices.batch, "threads": torch.get_num_threads(), "device": where}
    for name, run in steps.items():
        if any(name.startswith(begin) for begin in choices.only):
            record(choices.out, {"what": name, **facts, **measured(plain, run, choices.rounds, device)})


def record(path: Path, row: dict[str, Any]) -> None:
    """Put a row into the file, in place of the one that measured the same."""
    same = ("what", "model", "batch", "threads", "device")
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [old for old in rows if any(old[key] != row[key] for key in same)]
    about = provenance(0)
    rows.append({**row, "commit": about["commit"]})
    path.write_text(json.dumps({"experiment": "speed-training", **about, "rows": rows}, indent=1) + "\n")
    most = f"{row['steps']:.2f} ANN steps ({row['least']:.2f}-{row['most']:.2f}), memory {row['memory']}"
    print(f"{row['what']}: {most}", flush=True)


def step(module: nn.Module, owner: nn.Module, images: Tensor, labels: Tensor, parts: int = 1) -> Callable[[], None]:
    """Forward, loss and backward, of the batch or one part of it after the other; the gradients are then dropped."""

    def run() -> None:
        for some, theirs in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            answer = module(some)
            answer = answer if answer.dim() == 3 else answer.unsqueeze(0)
            torch.stack([F.cross_entropy(logits, theirs) for logits in answer]).sum().backward()
        owner.zero_grad(set_to_none=True)

    return run


def measured(plain: Callable[[], None], run: Callable[[], None], rounds: int, device: torch.device) -> dict[str, Any]:
    """Median, least and most multiples of the plain step; memory over the start, as a multiple of its."""
    memory = []
    for call in (plain, run):
        call()  # compilers and caches are made ready before anything is timed
        memory.append(_memory(call, device))
    times = []
    before = seconds(plain, device)
    for _ in range(rounds):
        took, after = seconds(run, device), seconds(plain, device)
        times.append(2 * took / (before + after))
        before = after
    more = round(memory[1] / memory[0], 3) if all(memory) else None
    return {
        "steps": statistics.median(times),
        "least": min(times),
        "most": max(times),
        "rounds": rounds,
        "memory": more,
    }


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """How long a call takes, with all that it gives a GPU to do."""
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
