"""How long a whole run takes, as multiples of one ANN forward; all contenders interleaved in one process.

    python benchmarks/speed.py --models resnet18 vgg16 --levels 8 16 --steps 8 16 32 64 --batches 32 1

An ANN forward is float32, channels_last, BatchNorm folded, the same batch. Each round times every contender once; a
ratio is a contender's time over the ANN's of the same round; medians and extremes are over rounds. Contenders must give
the same outputs at every step, to the bit, or the benchmark fails.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # beside this file, wherever it is run from

from networks import Case, case
from plain_loop import PlainLoop

from spikezip.measure.provenance import provenance
from spikezip.run.reference import reference
from spikezip.run.sweep import sweep

#: Everything that may be timed: from a case and a number of steps to the outputs ``[t, B, ...]``.
CONTENDERS: dict[str, Callable[[Case, int], Tensor]] = {
    "sweep": lambda c, steps: sweep(c.snn, (c.images,), steps).logits,
    "reference": lambda c, steps: reference(c.snn, (c.images,), steps).logits,
    "plain loop": lambda c, steps: PlainLoop(c.snn).steps(c.images, steps),
}


def held(outputs: Tensor, steps: int) -> Tensor:
    """Outputs of a run that may have ended sooner, its last held."""
    return torch.cat([outputs, outputs[-1:].expand(steps - outputs.shape[0], *outputs.shape[1:])])


def measure(
    c: Case, steps: Sequence[int], contenders: Sequence[str], rounds: int, slow_rounds: int
) -> list[dict[str, Any]]:
    """Time and compare; one row per number of steps and contender.

    Raises:
        AssertionError: two contenders do not agree to the bit.
    """
    batch = c.images.contiguous(memory_format=torch.channels_last)
    times: dict[Any, list[float]] = {}
    answers: dict[tuple[int, str], Tensor] = {}

    def ann() -> None:
        with torch.no_grad():
            c.ann(batch)

    def timed(key: Any, call: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = call()
        times.setdefault(key, []).append(time.perf_counter() - begin)
        return result

    ann()
    for name in contenders:  # compilers, caches and weights are made ready before anything is timed
        if name == "sweep":
            CONTENDERS[name](c, max(steps))
    for i in range(rounds):
        timed("ann", ann)
        for count in steps:
            for name in contenders:
                if name == "sweep" or i < slow_rounds:
                    answers[count, name] = held(
                        timed((count, name), lambda t=count, n=name: CONTENDERS[n](c, t)), count
                    )
    rows = []
    for count in steps:
        for name in contenders:
            assert torch.equal(answers[count, name], answers[count, contenders[0]]), (
                f"{name} and {contenders[0]} do not agree at {count} steps"
            )
            ratios = [t / a for t, a in zip(times[count, name], times["ann"], strict=False)]
            rows.append(
                {
                    "steps": count,
                    "engine": name,
                    "ann_forwards": round(statistics.median(ratios), 3),
                    "least": round(min(ratios), 3),
                    "most": round(max(ratios), 3),
                    "rounds": len(ratios),
                    "seconds": round(statistics.median(times[count, name]), 5),
                    "ann_seconds": round(statistics.median(times["ann"]), 5),
                }
            )
    return rows


def describe(c: Case, steps: int) -> dict[str, Any]:
    """What a figure depends on beside the code: how many units are active, and when they settle."""
    run = sweep(c.snn, (c.images,), max(steps, 128))
    codes = [v.flatten() for v in run.codes.values()]
    active = sum(int((v != 0).sum()) for v in codes) / sum(v.numel() for v in codes)
    spikes = float(run.total_spikes.sum()) / (c.images.shape[0] * sum(v[0].numel() for v in run.codes.values()))
    return {
        "active_units": round(active, 3),
        "spikes_per_neuron": round(spikes, 3),
        "settled_at": [int(run.settled_at.min()), int(run.settled_at.max())],
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark from the command line; returns what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "vgg16"], help="of spikezip.models")
    parser.add_argument("--levels", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--steps", nargs="+", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 1])
    parser.add_argument(
        "--active", nargs="+", type=float, default=[0.5], help="share of units above 0 behind BatchNorm"
    )
    parser.add_argument("--engines", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--floats", action="store_true", help="weights as drawn, not integers (compares no bits)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=1, help="rounds of all but the sweep")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/speed.json"))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    if chosen.floats:
        chosen.engines = ["sweep"]
    record = {
        "format": "spikezip.speed/1",
        **provenance(chosen.seed),
        "threads": chosen.threads,
        "processor": _processor(),
        "rows": [],
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    for model, levels, active in itertools.product(chosen.models, chosen.levels, chosen.active):
        name, most = f"spikezip:{model}", max(chosen.batches)
        whole = case(name, levels, batch=most, active=active, integer=not chosen.floats, seed=chosen.seed)
        for batch in chosen.batches:
            part = Case(whole.ann, whole.snn, whole.images[:batch])
            setting = {"model": model, "levels": levels, "batch": batch, "integer": not chosen.floats}
            setting |= describe(part, max(chosen.steps))
            for row in measure(part, chosen.steps, chosen.engines, chosen.rounds, chosen.slow_rounds):
                record["rows"].append(setting | row)
                what = f"{model} {levels} levels, batch {batch}, T = {row['steps']}, {row['engine']}"
                print(f"{what}: {row['ann_forwards']} ANN forwards", flush=True)
            chosen.out.write_text(
                json.dumps(record, indent=1) + "\n"
            )  # after each setting: a long run may be cut short
    return record


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


if __name__ == "__main__":
    main()
