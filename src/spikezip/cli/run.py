"""``spikezip run``: a spiking network on a data set, accuracy at every step."""

from __future__ import annotations

import json
import math
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from spikezip.cli import options, screen
from spikezip.cli.target import output_file
from spikezip.cli.verify import show as show_certificate
from spikezip.errors import InputError

if TYPE_CHECKING:
    from spikezip import SNN
    from spikezip.data import ImageData
    from spikezip.measure import EnergyModel
    from spikezip.run import EarlyExit

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
    early_exit: Annotated[
        list[str] | None,
        typer.Option(
            "--early-exit",
            metavar="RULE[:THRESHOLD]",
            show_default=False,
            help="Also say what images would take and give that leave once their answer is clear: [bold]margin[/], "
            "[bold]probability[/] or [bold]entropy[/] of the softmax, or [bold]settled[/]. Without a threshold (0 to "
            "1) one is chosen on the val images that loses no accuracy there, or the least. May be given several "
            "times.",
        ),
    ] = None,
    energy_images: Annotated[
        int,
        typer.Option(
            "--energy-images",
            min=0,
            help="Count operations and energy on so many images, step by step; 0 leaves them out.",
        ),
    ] = 16,
    energy_model: Annotated[
        list[str] | None,
        typer.Option(
            "--energy-model",
            metavar="NAME|FILE.yaml",
            show_default=False,
            help="Price the operations with this model instead: one of spikezip's, or a few lines of YAML of your own "
            "(docs/energy.md). May be given several times; the first gives the headline.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Keep a certificate in the record: all codes compared with the QANN's."),
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="The record to write, for spikezip report.")] = Path("record.json"),
    ann: Annotated[
        str | None,
        typer.Option(
            "--ann",
            metavar="MODEL",
            show_default=False,
            help="The network BUNDLE came from, as convert was given it: its accuracy is measured on the same images "
            "and kept beside the others.",
        ),
    ] = None,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    data_root: options.DataRootOption = None,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Run the spiking network in BUNDLE on DATA and write what happened to a record.

    Prints the accuracy at every step, that of the quantized network beside it, and whether every image settled.

    [bold]Examples[/]
      spikezip run resnet20.spikezip --data cifar10 --steps 32 --out record.json
      spikezip run resnet20.spikezip --data cifar10 --ann spikezip:resnet20 --weights pretrained
      spikezip run resnet20.spikezip --data cifar10 --limit 500 --verify --overwrite
      spikezip run resnet20.spikezip --data cifar10 --early-exit margin:0.6 --early-exit settled
      spikezip run resnet20.spikezip --data cifar10 --energy-model my-chip.yaml
    """
    import spikezip
    from spikezip.cli.sources import answer_shape, check_answers, open_ann, open_for
    from spikezip.run import Engine

    shift, scale = options.read_channels("--mean", mean), options.read_channels("--std", std)
    models = [read_model(text) for text in energy_model or ()]
    with output_file(out, overwrite, reads=(bundle, ann, weights, data, *(energy_model or ()))) as draft:
        if weights is not None and ann is None:
            raise InputError("--weights are those of the network that --ann names; give both, or neither.")
        snn = spikezip.load(bundle)
        source, pixels = open_for(snn, data, data_root, shift, scale)
        images, labels = source.tensors(split, limit)
        check_answers(snn, str(bundle), source)
        trained = open_ann(ann, weights, data, snn, images, data_root) if ann is not None else None
        if pixels:
            screen.note(pixels)
        rules = [exit_rule(text, snn, source, steps, split) for text in early_exit or ()]
        certificate = None
        if verify:
            most = steps if snn.lasts else None  # until all has settled
            with screen.counting(len(images), "verifying") as done:
                certificate = spikezip.verify(snn, images, steps=most, on_batch=done)
        priced = min(energy_images, len(images))
        tasks = ((len(images), "running"), (priced, "counting operations"))
        with screen.counting_each(*tasks) as (done, counted):
            record = spikezip.measure(
                snn,
                images,
                labels if math.prod(answer_shape(snn)) > 1 else None,
                ann=trained,
                steps=steps,
                engine=Engine(engine.value),
                batch=batch,
                data=source.name,
                certificate=certificate,
                on_batch=done,
                on_counted=counted,
                early_exit=rules,
                energy=energy_images > 0,
                energy_images=max(energy_images, 1),
                energy_models=models or None,
            )
        record.save(draft)
        found = json.loads(draft.read_text())
    show(found)
    if found["certificate"]:
        show_certificate(found["certificate"])
    show_energy(found)
    following = screen.command("spikezip", "report", out, "--out", "report.html")
    screen.say(f"[bold]{screen.literal(out)}[/] holds the record. Next: {following}")


def read_model(text: str) -> EnergyModel:
    """An energy model by its name, or from a file of the user's."""
    from spikezip.measure import EnergyModel

    return EnergyModel.from_yaml(text) if text.lower().endswith((".yaml", ".yml")) else EnergyModel.named(text)


def show_energy(record: dict[str, Any]) -> None:
    """Print what an image costs under each model, beside the QANN with the same bits."""
    from spikezip.report.tables import energy as shown
    from spikezip.report.tables import plain

    energy = record.get("energy")
    if not energy:
        return
    table = Table(title=f"Energy of an image, mean of {energy['images']}", title_justify="left")
    for name in ("model", "SNN", "QANN", "SNN / QANN"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for model in energy["models"]:
        snn, qann = model["snn_pj"][-1], model["qann_pj"]
        table.add_row(model["name"], shown(snn), shown(qann), plain(snn / qann if qann else None))
    screen.tabulate(table)
    said = f"{record['synops'][-1]:,.0f} synaptic operations an image."
    first = energy["models"][0]
    if first["qann_pj"]:
        ratio = first["snn_pj"][-1] / first["qann_pj"]
        said = (
            f"The SNN takes [bold]{ratio:.3g} times[/] the energy of the QANN with the same bits "
            f"({first['name']}), {said}"
        )
    screen.say(said + (f" Not counted: {'; '.join(energy['uncounted'])}." if energy["uncounted"] else ""))
    for caution in energy["cautions"]:
        screen.note(caution)


def exit_rule(text: str, snn: SNN, source: ImageData, steps: int, split: str) -> EarlyExit:
    """The rule that was asked for; without a threshold, one that loses nothing on the val images, or the least."""
    from spikezip.measure import choose_threshold, exit_point, exit_run
    from spikezip.run import Settled
    from spikezip.run.exit import CONFIDENCES, parse_exit

    if text not in CONFIDENCES:
        return parse_exit(text)
    if split in ("val", "trainval"):
        raise InputError(
            f"--early-exit {text} chooses its threshold on the val images, so it cannot be judged on them. Give "
            f"--split test, or a threshold: {text}:0.6."
        )
    images, labels = source.tensors("val", 2000)
    with screen.counting(len(images), "choosing a threshold") as done:
        run = exit_run(snn, images, steps, on_batch=done)
    end = exit_point(run, labels, Settled()).accuracy
    best = choose_threshold(run, labels, CONFIDENCES[text], mean_step=steps)
    if best.accuracy >= end:
        return choose_threshold(run, labels, CONFIDENCES[text]).rule
    lost = 100 * (end - best.accuracy)
    screen.note(f"Every threshold of {text} loses {lost:.2f} points or more on the val images: one loses that.")
    return best.rule


def show(record: dict[str, Any]) -> None:
    """Print the accuracy at every step of a decoded record, and how the run ended."""
    accuracy = record.get("accuracy") or {}
    by_step = accuracy.get("snn") or []
    agreement = record.get("agreement") or []
    name = screen.literal(record["data"]["name"])
    table = Table(title=f"{record['data'].get('images', '?')} images of {name}", title_justify="left")
    table.add_column("t", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("same answer as the QANN", justify="right")
    rows = list(zip_longest(by_step, agreement))
    while len(rows) > 1 and rows[-1] == rows[-2]:  # a settled network repeats itself
        rows.pop()
    steps = max(len(by_step), len(agreement))
    for step, row in enumerate(rows, 1):
        t = str(step) if step < len(rows) or step == steps else f"{step} to {steps}"
        table.add_row(t, *(screen.percent(cell) for cell in row))
    screen.tabulate(table)
    screen.say(f"QANN {screen.percent(accuracy.get('qann'))}, ANN {screen.percent(accuracy.get('ann'))}")
    for entry in record.get("early_exit") or ():
        rule = entry["rule"] if entry["threshold"] is None else f"{entry['rule']}:{entry['threshold']:.4g}"
        screen.say(
            f"early exit by {rule}: {screen.percent(entry['accuracy'])} after {entry['mean_step']:.2f} steps on "
            f"average, {entry['spikes']:,.0f} spikes an image."
        )
    settled = record.get("settled")
    if settled:
        said = _SETTLED[settled["outcome"]]
        if settled["outcome"] == "SETTLED" and not record.get("exactness") and record.get("engine") != "reference":
            said += " but for the rounding of floats (--engine reference has none)"
        screen.say(f"{settled['outcome']}: {said}.")
        if settled.get("t_eq_max") is not None:
            bound = settled.get("bound")
            screen.say(f"T_eq: mean {settled['t_eq_mean']:.2f}, max {settled['t_eq_max']}, static bound {bound}.")
