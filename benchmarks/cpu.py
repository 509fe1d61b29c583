"""The figures of docs/speed.md: what `spikezip bench` measures, at the settings that the documentation shows.

    OMP_NUM_THREADS=1 python benchmarks/cpu.py rivals     # the sweep beside other packages' ways
    OMP_NUM_THREADS=1 python benchmarks/cpu.py sweep      # the sweep over all axes
    OMP_NUM_THREADS=1 python benchmarks/cpu.py events     # with and without the event-driven kernel
    OMP_NUM_THREADS=1 python benchmarks/cpu.py others     # a transformer to its end; a machine without compiler
    OMP_NUM_THREADS=1 python benchmarks/cpu.py architectures  # many published networks, to their end
    python benchmarks/cpu.py threads                      # with one thread and with more

Each writes experiments/results/speed-NAME.json; ``rivals`` and ``sweep`` also one figure per network beside it. Results
of different processors stand side by side there: a run replaces those of its own processor. ``--part 0`` runs the
first part of a suite alone.
"""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from spikezip import bench
from spikezip.measure.provenance import provenance
from spikezip.models import resnet18, resnet20, resolve, vgg16
from spikezip.report.figures.speed import speed
from spikezip.report.style import file_png, file_svg, house_style

VIT = "vit_small_patch16_224"
NETWORKS = {
    "resnet18": resnet18,
    "vgg16": vgg16,
    "resnet20": lambda width: resnet20(),  # 16 to 64 channels; width is not varied
    VIT: lambda width: resolve(f"timm:{VIT}").module,  # width is not varied
}
#: Published networks of many kinds, and the size of their images.
ARCHITECTURES = {
    "torchvision:squeezenet1_1": 96,
    "torchvision:googlenet": 96,
    "torchvision:shufflenet_v2_x1_0": 96,
    "torchvision:densenet121": 96,
    "torchvision:mobilenet_v2": 96,
    "torchvision:mobilenet_v3_small": 96,
    "torchvision:efficientnet_b0": 96,
    "torchvision:regnet_y_400mf": 96,
    "torchvision:resnext50_32x4d": 96,
    "timm:ghostnet_100": 96,
    "timm:convnext_atto": 96,
    "timm:poolformer_s12": 96,
    "timm:mixer_s32_224": 224,
    "timm:vit_tiny_patch16_224": 224,
    "timm:mobilevit_xxs": 128,
}
RIVALS = ("sweep", "plain loop", "spikingjelly step", "spikingjelly multi-step")


@dataclass(frozen=True)
class Part:
    """One network at some settings."""

    network: str
    axes: bench.Axes
    effort: bench.Effort
    weight_bits: int | None = 8
    shape: tuple[int, ...] = (3, 32, 32)


GAIN = bench.Effort(("sweep", "dense sweep"), rounds=3, slow_rounds=3)
BATCHES = bench.Axes((16,), batch=(32, 8, 1))
TO_THE_END = 64  #: steps that every image settles in

SUITES: dict[str, tuple[Part, ...]] = {
    "rivals": (
        Part("resnet18", bench.Axes((8, 16, 32), batch=(8,)), bench.Effort(RIVALS, rounds=3, slow_rounds=3)),
        Part("vgg16", bench.Axes((8, 16, 32), batch=(8,)), bench.Effort(RIVALS, rounds=3, slow_rounds=3)),
    ),
    "sweep": (
        Part(
            "resnet18",
            bench.Axes((8, 16, 32, 64), (8, 16), (32, 8, 1), (1.0, 0.5), (0.5, 0.25)),
            bench.Effort(("sweep",), rounds=3),
        ),
        Part("vgg16", bench.Axes((8, 16, 32, 64), (8, 16)), bench.Effort(("sweep",), rounds=3)),
        Part("resnet18", bench.Axes((32,)), bench.Effort(("sweep",), rounds=3), weight_bits=None),
        Part("resnet20", bench.Axes((8, 16, 32), batch=(32, 1)), bench.Effort(("sweep",), rounds=3)),
    ),
    "events": (
        Part("resnet18", bench.Axes((8, 16, 32)), GAIN),
        Part("resnet18", bench.Axes((32,), active=(0.25,)), GAIN),
        Part("resnet18", bench.Axes((16,), batch=(1,)), GAIN),
        Part("vgg16", bench.Axes((8, 32)), GAIN),
    ),
    "others": (
        Part(
            VIT,
            bench.Axes((TO_THE_END,), batch=(4, 1), active=(None,)),
            bench.Effort(("sweep",), rounds=5),
            shape=(3, 224, 224),
        ),
        Part(
            "resnet18",
            bench.Axes((8, 16, 32)),
            bench.Effort(("sweep", "no compiler", "torch alone"), rounds=3, slow_rounds=3),
        ),
    ),
    "architectures": tuple(
        Part(
            name,
            bench.Axes((TO_THE_END,), batch=(4,)),
            bench.Effort(("sweep",), rounds=3, slow_rounds=3),
            shape=(3, size, size),
        )
        for name, size in ARCHITECTURES.items()
    ),
    "threads": tuple(Part("resnet18", BATCHES, bench.Effort(("sweep",), threads=threads)) for threads in (1, 2)),
}


def built(name: str, width: float) -> nn.Module:
    """A network of this benchmark; the width of published ones is not varied."""
    network = resolve(name).module if name in ARCHITECTURES else NETWORKS[name](width=round(64 * width))
    return network.eval()


def measure(part: Part, seed: int) -> dict[str, Any]:
    """One network's record."""

    def tell(setting: dict[str, Any]) -> None:
        for row in setting["rows"]:
            what = ", ".join(f"{k} {setting[k]}" for k in ("levels", "batch", "width", "active"))
            print(f"{part.network} {what}, T {row['steps']}, {row['engine']}: {row['ann_forwards']}", flush=True)

    build = functools.partial(built, part.network)
    run = functools.partial(bench.benchmark, part.network, build, part.shape, part.axes, part.effort)
    return run(weight_bits=part.weight_bits, seed=seed, on_setting=tell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=list(SUITES))
    parser.add_argument("--part", type=int, help="the number of one part, from 0; all if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    chosen = parser.parse_args()
    path = chosen.out / f"speed-{chosen.suite}.json"
    parts = SUITES[chosen.suite]
    chosen.out.mkdir(parents=True, exist_ok=True)
    for part in parts if chosen.part is None else [parts[chosen.part]]:
        run = measure(part, chosen.seed)
        runs = {_what(old): old for old in json.loads(path.read_text())["runs"]} if path.exists() else {}
        runs[_what(run)] = run
        whole = {"format": "spikezip.speeds/1", **provenance(chosen.seed), "runs": list(runs.values())}
        # After each network: a long run may be cut short.
        path.write_text(json.dumps(whole, indent=1) + "\n")
        if part.weight_bits and chosen.suite in ("rivals", "sweep"):
            with house_style():
                figure = speed(run)
                for kind, data in (("svg", file_svg(figure)), ("png", file_png(figure))):
                    (chosen.out / f"speed-{chosen.suite}-{part.network}.{kind}").write_bytes(data)


def _what(run: dict[str, Any]) -> tuple[object, ...]:
    """What a run measured, and on which processor."""
    base = run["settings"][0]
    return run["processor"], run["model"], run["weight_bits"], base["batch"], base["active"], run["threads"]


if __name__ == "__main__":
    main()
