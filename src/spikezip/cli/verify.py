"""``spikezip verify``: a certificate that the settled spiking network equals its quantized network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from spikezip.cli import options, screen
from spikezip.cli.target import output_file

EXIT_DIFFERENT = 1


def command(
    bundle: options.BundleArgument,
    data: options.DataOption,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            show_default=False,
            help="Time steps at most; by default as many as the static bound allows. A constant encoding needs them.",
        ),
    ] = None,
    limit: options.LimitOption = None,
    split: options.SplitOption = "test",
    out: Annotated[Path, typer.Option("--out", help="The certificate to write.")] = Path("certificate.json"),
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    data_root: options.DataRootOption = None,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Run the spiking network in BUNDLE until it settles and compare every neuron with the quantized network.

    Writes a certificate: mismatches per layer, the conditions that equality rests on, the bound on T_eq, versions, and
    the hash of the weights. Ends with 1 if anything differs or has not settled.

    [bold]Examples[/]
      spikezip verify resnet20.spikezip --data cifar10
      spikezip verify resnet20.spikezip --data cifar10 --limit 200 --out some.json --overwrite
    """
    import spikezip
    from spikezip.cli.sources import open_for

    shift, scale = options.read_channels("--mean", mean), options.read_channels("--std", std)
    with output_file(out, overwrite, reads=(bundle, data)) as draft:
        snn = spikezip.load(bundle)
        source, pixels = open_for(snn, data, data_root, shift, scale)
        images, _ = source.tensors(split, limit)
        if pixels:
            screen.note(pixels)
        with screen.counting(len(images), "verifying") as done:
            certificate = spikezip.verify(snn, images, steps=steps, on_batch=done)
        certificate.save(draft)
        found = json.loads(draft.read_text())
    show(found)
    screen.say(f"[bold]{screen.literal(out)}[/] holds the certificate.")
    if not certificate.equal:
        raise typer.Exit(EXIT_DIFFERENT)


def show(certificate: dict[str, Any]) -> None:
    """Print what a decoded certificate says."""
    differ = f"{certificate['mismatches']:,} codes differ"
    images, settled = certificate["images"], certificate["settled_at"]
    if certificate["outcome"] == "STEP_LIMIT":
        screen.say(
            f"[bold red]not settled[/]: {settled['unsettled']:,} of {images:,} images need more than "
            f"{certificate['steps']} steps ({differ} by then); give more --steps."
        )
    else:
        verdict = "[bold green]equal[/]" if certificate["equal"] else "[bold red]different[/]"
        screen.say(
            f"{verdict}: {differ} on {images:,} images; settled at step {settled['max']} at most "
            f"(static bound {certificate['bound']})."
        )
    for layer in certificate["layers"]:
        if layer["mismatches"]:
            screen.say(f"  {layer['name']}: {layer['mismatches']:,} of {layer['codes_checked']:,} codes differ")
    for condition in certificate["conditions"]:
        if not condition["holds"]:
            screen.say(f"  {condition['id']} does not hold: {condition['text']} ({condition['evidence']})")
