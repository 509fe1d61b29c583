"""What a whole run costs on a GPU beside one forward pass of the network, beside others' ways, and whether it is exact.

    python benchmarks/gpu.py [--device cuda] [--batch 512] [--rounds 5] [--rivals]

ResNet-18 (CIFAR form, 8 levels, half of the units active) for 16 steps and timm's ViT-S at 224 pixels to equilibrium,
seed-fixed weights. Each timed run stands between two forward passes, of the ANN in float32 and with TF32, and of the
QANN, by whose mean it is divided. A few images are run with the reference engine on the CPU too: codes and outputs must
be the same bits. ``--rivals`` times the other ways of `spikezip bench` too, on ResNet-18, two rounds each. Replayed
CUDA graphs are timed beside the sweep on ResNet-18 with one and eight images. Writes after each way
experiments/results/speed-gpu.json; rows of another GPU stay.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from training import seconds

from spikezip.bench.cases import Case, make_case
from spikezip.bench.contenders import CONTENDERS, packages
from spikezip.kernels.precision import full_precision, tf32
from spikezip.measure.provenance import provenance
from spikezip.models import resnet18, resolve
from spikezip.run import Engine, execute, replay

CHECKED = 4  #: images compared with the reference engine on the CPU
FEW = (1, 8)  #: images, for which graphs are meant
RIVALS = ("reference", "plain loop", "spikingjelly step", "spikingjelly multi-step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=512, help="of ResNet-18; ViT-S runs an eighth of it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["resnet18", "vit-s"])
    parser.add_argument("--rivals", action="store_true", help="time the other ways too")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/speed-gpu.json"))
    choices = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(choices.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here.")
    rivals = [name for name in RIVALS if choices.rivals and CONTENDERS[name].installed]
    if choices.only != "vit-s":
        case = make_case(resnet18(), (3, 32, 32), 8, batch=choices.batch)
        measured("resnet18", case, 16, rivals, choices.rounds, device, choices.out)
        for batch in FEW:
            case = make_case(resnet18(), (3, 32, 32), 8, batch=batch)
            measured("resnet18", case, 16, ["replay"], choices.rounds, device, choices.out)
    if choices.only != "resnet18":
        vit = resolve("timm:vit_small_patch16_224").module
        case = make_case(vit, (3, 224, 224), 8, batch=max(choices.batch // 8, 1), active=None)
        measured("vit-s", case, None, [], choices.rounds, device, choices.out)


def _replay(case: Case, steps: int) -> torch.Tensor:
    return replay(case.snn, (case.images,), steps).logits


def keep(row: dict[str, Any], device: torch.device, path: Path) -> None:
    """Put a row into the file, in place of the one that measured the same."""
    about = provenance(0)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    row = {"device": where, "created": about["created"], "commit": about["commit"], **row}
    same = ("device", "network", "batch")
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [old for old in rows if any(old[key] != row[key] for key in same)]
    path.write_text(json.dumps({"experiment": "speed-gpu", **about, "rows": [*rows, row]}, indent=1) + "\n")
    print(json.dumps(row), flush=True)


def measured(
    name: str, case: Case, steps: int | None, rivals: list[str], rounds: int, device: torch.device, out: Path
) -> None:
    """One network: exact or not, and how long a run takes; without ``steps``, as many as all images need to settle."""
    few = case.images[:CHECKED]
    wanted = execute(case.snn, few, steps, engine=Engine.REFERENCE)
    case.snn.graph.to(device)
    images = case.images.to(device)
    case = replace(case, ann=case.ann.to(device), images=images)
    equal = True
    for engine in (Engine.SWEEP, *([Engine.REPLAY] if "replay" in rivals else [])):
        found = execute(case.snn, few.to(device), steps, engine=engine)
        equal &= torch.equal(found.outputs[0][-1].cpu(), wanted.outputs[0][-1])
        equal &= all(torch.equal(found.codes[layer].cpu(), wanted.codes[layer]) for layer, _ in case.snn.layers)
        equal &= torch.equal(found.settled_at, wanted.settled_at)
    whole = execute(case.snn, images)
    steps = steps or int(whole.settled_at.max())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    qann = case.snn.qann

    def forward(network: Any, precision: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad(), precision():
                network(images)

        return run

    forwards = {
        "ann": forward(case.ann, full_precision),
        "ann_tf32": forward(case.ann, tf32),
        "qann": forward(qann, full_precision),
    }
    row: dict[str, Any] = {
        "network": name,
        "steps": steps,
        "batch": len(images),
        "levels": 8,
        "equal": equal,
        "settled_at": [int(whole.settled_at.min()), int(whole.settled_at.max())],
        "packages": packages(rivals),
        "seconds": {key: statistics.median(seconds(call, device) for _ in range(3)) for key, call in forwards.items()},
        "runs": {},
    }
    for engine in ("sweep", *rivals):
        run = _replay if engine == "replay" else CONTENDERS[engine].run

        def call(run: Any = run) -> None:
            with torch.no_grad():
                run(case, steps)

        times: dict[str, list[float]] = {key: [] for key in forwards}
        call()
        for _ in range(rounds if engine in ("sweep", "replay") else 2):
            for key, before in forwards.items():
                first, took, last = seconds(before, device), seconds(call, device), seconds(before, device)
                times[key].append(2 * took / (first + last))
        row["runs"][engine] = {
            key: {"median": statistics.median(t), "least": min(t), "most": max(t)} for key, t in times.items()
        }
        if device.type == "cuda":
            row["runs"][engine]["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
            torch.cuda.reset_peak_memory_stats()
        keep(row, device, out)


if __name__ == "__main__":
    main()
