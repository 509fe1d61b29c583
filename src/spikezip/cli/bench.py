"""``spikezip bench``: how long a run takes, in forward passes of the ANN, beside other ways of running it."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Table

from spikezip.cli import options, screen
from spikezip.cli.target import output_folder
from spikezip.errors import InputError

if TYPE_CHECKING:
    from torch import nn

Number = TypeVar("Number", int, float)


def command(
    model: options.ModelArgument,
    out: Annotated[Path, typer.Option("--out", show_default=False, help="Folder for speed.json and the figure.")],
    steps: Annotated[str, typer.Option("--steps", metavar="T,T,..", help="Numbers of time steps.")] = "8,16,32",
    levels: Annotated[str, typer.Option("--levels", metavar="N,N,..", help="Levels of every neuron.")] = "8",
    batch: Annotated[str, typer.Option("--batch", metavar="B,B,..", help="Images run together.")] = "32",
    width: Annotated[
        str, typer.Option("--width", metavar="W,W,..", help="Multiples of the network's width (resnet18, vgg16).")
    ] = "1",
    active: Annotated[
        str | None,
        typer.Option(
            "--active",
            metavar="A,A,..",
            show_default="0.5",
            help="Share of units above 0 behind BatchNorm2d (random weights).",
        ),
    ] = None,
    engines: Annotated[
        str,
        typer.Option(
            "--engines", metavar="NAME,..", help="What is timed; [bold]all[/]: what is installed and can run MODEL."
        ),
    ] = "all",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timings of the fast engines.")] = 5,
    slow_rounds: Annotated[int, typer.Option("--slow-rounds", min=1, help="Timings of the others.")] = 1,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of torch.")] = 1,
    weights: options.WeightsOption = None,
    weight_bits: options.WeightBitsOption = "8",
    shape: options.ShapeOption = None,
    seed: options.SeedOption = 0,
    data_root: options.DataRootOption = None,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Time whole runs of MODEL as a spiking network, as multiples of one forward pass of the ANN.

    One forward pass is float32, channels_last, BatchNorm folded, the same batch, and stands before and after every
    timed run in the same process. The first value of each option is the base; each further value is measured with the
    others at their first. All engines must give the same bits at every step, or nothing is written. Engines other than
    the sweep are slow, and run at the base alone; those of other packages need pip install 'spikezip\\[bench]'. Images
    are drawn, and so are weights unless --weights names some.

    [bold]Examples[/]
      spikezip bench spikezip:resnet20 --out bench
      spikezip bench spikezip:resnet18 --steps 8,16,32 --levels 8,16 --batch 32,1 --width 1,0.5 --out bench
      spikezip bench my_models.py:build --weights mine.safetensors --engines sweep,reference --out bench
    """
    from spikezip import bench
    from spikezip.models import resolve

    names = tuple(bench.installed()) if engines == "all" else tuple(name.strip() for name in engines.split(","))
    axes = bench.Axes(
        steps=_numbers("--steps", steps, int),
        levels=_numbers("--levels", levels, int),
        batch=_numbers("--batch", batch, int),
        width=_numbers("--width", width, float),
        active=(None,) if weights else _numbers("--active", active or "0.5", float),
    )
    if weights and active is not None:
        raise InputError("--active sets what random weights have; leave it out with --weights.")
    if weights and axes.width != (1,):
        raise InputError("--weights are those of one width; leave --width out.")
    if any(not 0 < share < 1 for share in axes.active if share is not None):
        raise InputError(f"--active {active!r}: shares lie between 0 and 1, for example 0.5,0.25.")
    effort = bench.Effort(names, rounds, slow_rounds, threads, all_that_run=engines == "all")
    find = functools.partial(resolve, model, weights=weights, example_shape=options.read_shape(shape), root=data_root)
    bits = options.read_weight_bits(weight_bits)
    with output_folder(out, overwrite) as draft:
        example = find().example
        if isinstance(example, tuple):
            raise InputError(f"{model} takes {len(example)} inputs; this benchmark gives one.")
        with screen.working(f"timing {model}"):
            record = bench.benchmark(
                model,
                _builder(model, lambda: find().module),
                tuple(example.shape[1:]),
                axes,
                effort,
                weight_bits=bits,
                seed=seed,
                on_setting=_show,
            )
        (draft / "speed.json").write_text(json.dumps(record, indent=1) + "\n")
        _draw(record, draft)
    timed = {row["engine"] for setting in record["settings"] for row in setting["rows"]}
    if left_out := [name for name in names if name not in timed]:
        screen.note(f"Not timed, as they have no rule for an operation of {model}: {', '.join(left_out)}.")
    screen.say(f"[bold]{screen.literal(out)}[/] holds speed.json, and the figure as speed.svg and speed.png.")


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or any(not 0 < number < math.inf for number in found):
        raise InputError(f"{option} {text!r}: give numbers above 0, separated by commas.")
    return found


def _builder(model: str, find: Callable[[], nn.Module]) -> Callable[[float], nn.Module]:
    from spikezip.models import resnet18, vgg16

    def build(width: float) -> nn.Module:
        if width == 1:
            return find()
        wide = {"spikezip:resnet18": resnet18, "spikezip:vgg16": vgg16}
        if model not in wide:
            raise InputError(f"--width changes {' and '.join(wide)} alone; {model} has the width it has.")
        if round(64 * width) < 1:
            raise InputError(f"--width {width:g}: {model} has 64 channels at width 1, and needs one at least.")
        return wide[model](width=round(64 * width)).eval()

    return build


def _show(setting: dict[str, Any]) -> None:
    what = ", ".join(f"{name} {setting[name]}" for name in ("levels", "batch", "width", "active") if setting[name])
    settled = f"settled at step {setting['settled_at'][0]} to {setting['settled_at'][1]}"
    table = Table(title=f"{what}: {settled}", title_justify="left", title_style="bold")
    for column in ("engine", "T", "ANN forwards", "least", "most", "seconds", "MiB over the start"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in setting["rows"]:
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        spread = [f"{row[name]:.2f}" for name in ("ann_forwards", "least", "most")]
        table.add_row(row["engine"], str(row["steps"]), *spread, f"{row['seconds']:.3f}", peak)
    screen.tabulate(table)


def _draw(record: dict[str, Any], folder: Path) -> None:
    from spikezip.report.figures.speed import speed
    from spikezip.report.style import file_png, file_svg, house_style

    with house_style():
        figure = speed(record)
        (folder / "speed.svg").write_bytes(file_svg(figure))
        (folder / "speed.png").write_bytes(file_png(figure))
