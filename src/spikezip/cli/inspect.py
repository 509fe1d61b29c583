"""``spikezip inspect``: what is captured of a network, what becomes of it, what is refused and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from spikezip.cli import options, screen
from spikezip.report.tables import counted

if TYPE_CHECKING:
    from spikezip.cli.survey import Survey

EXIT_REFUSED = 1


def command(
    model: options.ModelArgument,
    weights: options.WeightsOption = None,
    shape: options.ShapeOption = None,
    classes: options.ClassesOption = None,
    levels: options.LevelsOption = "8",
    weight_bits: options.WeightBitsOption = "8",
    residual: options.ResidualOption = options.ResidualName.vanilla,
    pool: options.PoolOption = options.PoolName.keep,
    data_root: options.DataRootOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show what is captured of MODEL, what each rule does to it, and what is refused and why.

    Nothing is trained, calibrated or written; weights too small for the thresholds that data gives are refused by
    convert alone. Ends with 1 if the network cannot be converted as it is.

    [bold]Examples[/]
      spikezip inspect spikezip:resnet20
      spikezip inspect timm:vit_tiny_patch16_224
      spikezip inspect my_models.py:build --shape 3,64,64 --residual rcr --json
    """
    from spikezip.cli.survey import survey
    from spikezip.models import resolve

    choice = options.morph_choice(residual, pool)
    count, bits = options.read_levels(levels), options.read_weight_bits(weight_bits)
    with screen.working(f"capturing {model}"):
        source = resolve(
            model, weights=weights, example_shape=options.read_shape(shape), num_classes=classes, root=data_root
        )
        found = survey(model, source.module, source.example, choice, count, bits)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        _show(found)
    if found.refused:
        raise typer.Exit(EXIT_REFUSED)


def _show(found: Survey) -> None:
    table = Table(
        title=f"{screen.literal(found.model)}: {found.parameters:,} parameters",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("name")
    table.add_column("operations")
    table.add_column("output")
    table.add_column("to spikes it is", style="dim")
    table.add_column("what becomes of it")
    for place in found.places:
        becomes = [f"{change.rule}: {change.text}" for change in place.changes]
        becomes += [f"[green]neuron[/] {name}, codes {low}..{high}" for name, low, high in place.neurons]
        becomes += [f"[red]refused[/]: {reason}" for reason in place.refused]
        table.add_row(
            place.name or "(top)",
            ", ".join(place.operations),
            "x".join(str(n) for n in place.shape),
            ", ".join(place.kinds),
            "\n".join(becomes) or "kept",
        )
    if found.places:  # otherwise nothing could be captured
        screen.tabulate(table)
    for rule in found.rules:
        kept = "keeps the function" if rule.keeps else "changes the function: refit or fine-tune"
        screen.say(f"[bold]{rule.name}[/] ({rule.count}): {rule.why} ({rule.source}; {kept}).")
    for reason in found.refused:
        screen.say(f"[red]refused[/]: {reason}")
    if not found.refused:
        layers = counted(found.neuron_layers, "layer")
        screen.say(f"{layers} of neurons, {found.neurons:,} neurons. It can be converted.")
