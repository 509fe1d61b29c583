"""``spikezip run``: a spiking network on a data set, accuracy at every step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from spikezip.cli import options, screen
from spikezip.cli.target import output_file

_SETTLED = {
    "SETTLED": "every image settled: these are the quantized network's outputs",
    "CONFIDENT": "stopped early where the answer was clear enough",
    "STEP_LIMIT": "the steps ran out before every image settled: give more --steps for final outputs",
}


def command(
    bundle: options.BundleArgument,
    data: options.DataOption,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Time steps of the run.")] = 32,
    limit: options.LimitOption = None,
    engine: options.EngineOption = options.EngineName.sweep,
    split: options.SplitOption = "test",
    batch: options.BatchOption = 64,
    out: Annotated[Path, typer.Option("--out", help="The record to write, for spikezip report.")] = Path("record.json"),
    data_root: options.DataRootOption = None,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Run the spiking network in BUNDLE on DATA and write what happened to a record.

    Prints the accuracy at every step, that of the quantized network beside it, and whether every image settled.

    [bold]Examples[/]
      spikezip run resnet20.spikezip --data cifar10 --steps 32 --out record.json
      spikezip run resnet20.spikezip --data cifar10 --limit 500 --engine reference --overwrite
    """
    import spikezip
    from spikezip.cli.sources import open_for
    from spikezip.run import Engine

    with output_file(out, overwrite) as draft:
        snn = spikezip.load(bundle)
        source = open_for(snn, data, data_root)
        images, labels = source.tensors(split, limit)
        with screen.counting(len(images), "running") as done:
            record = spikezip.measure(
                snn,
                images,
                labels,
                steps=steps,
                engine=Engine(engine.value),
                batch=batch,
                data=source.name,
                on_batch=done,
            )
        record.save(draft)
        found = json.loads(draft.read_text())
    show(found)
    screen.say(f"[bold]{out}[/] holds the record. Next: spikezip report {out} --out report.html")


def show(record: dict[str, Any]) -> None:
    """Print the accuracy at every step of a decoded record, and how the run ended."""
    accuracy = record.get("accuracy") or {}
    by_step = accuracy.get("snn") or []
    agreement = record.get("agreement") or []
    table = Table(title=f"{record['data'].get('images', '?')} images of {record['data']['name']}", title_justify="left")
    table.add_column("t", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("same answer as the QANN", justify="right")
    for index in range(max(len(by_step), len(agreement))):
        cells = [values[index] if index < len(values) else None for values in (by_step, agreement)]
        table.add_row(str(index + 1), *(screen.percent(cell) for cell in cells))
    screen.stdout.print(table)
    screen.say(f"QANN {screen.percent(accuracy.get('qann'))}, ANN {screen.percent(accuracy.get('ann'))}")
    settled = record.get("settled")
    if settled:
        screen.say(f"{settled['outcome']}: {_SETTLED[settled['outcome']]}.")
        if settled.get("t_eq_max") is not None:
            bound = settled.get("bound")
            screen.say(f"T_eq: mean {settled['t_eq_mean']:.2f}, max {settled['t_eq_max']}, static bound {bound}.")
