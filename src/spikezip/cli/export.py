"""``spikezip export``: a saved network as a NIR graph, played and held against the network before it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spikezip.cli import options, screen
from spikezip.cli.target import output_file
from spikezip.cli.verify import EXIT_DIFFERENT


def command(
    bundle: options.BundleArgument,
    out: Annotated[Path, typer.Option("--out", show_default=False, help="The NIR file (HDF5) to write.")],
    data: Annotated[
        str | None,
        typer.Option("--data", show_default=False, help="Data whose test images are played; drawn ones without."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many images are played.")] = 4,
    inexact: Annotated[
        bool, typer.Option("--inexact", help="Write what NIR cannot hold exactly too: float weights, MS blocks.")
    ] = False,
    seed: options.SeedOption = 0,
    data_root: options.DataRootOption = None,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Write the spiking network in BUNDLE as a NIR graph, which other simulators and chips' tools read.

    ST-BIF neurons are put together from NIR's integrators and thresholds. The file is read back and played until its
    images have settled, and every spike is compared with the network's. Ends with 1 if any differs, but for --inexact,
    which tells how many do. A network that NIR has no nodes for is refused, by name.

    [bold]Examples[/]
      spikezip export resnet20.spikezip --out resnet20.nir
      spikezip export resnet20.spikezip --out resnet20.nir --data cifar10 --limit 20
    """
    import torch

    import spikezip
    from spikezip.cli.sources import open_for
    from spikezip.export.nir import compare, needed
    from spikezip.graph import network

    nir = needed()
    with output_file(out, overwrite, reads=(bundle, data)) as draft:
        snn = spikezip.load(bundle)
        with screen.working("writing"):
            nir.write(str(draft), snn.to_nir(exact=not inexact))
        if data is None:
            generator = torch.Generator().manual_seed(seed)
            images = [spec.draw(limit, generator, torch.device("cpu")) for spec in network.info(snn.graph).inputs]
        else:
            source, pixels = open_for(snn, data, data_root)
            images = [source.tensors("test", limit)[0]]
            if pixels:
                screen.note(pixels)
        with screen.working("playing what was written"):
            played = compare(snn, nir.read(str(draft)), images)
    shown = "drawn inputs" if data is None else "images"
    verdict = "[bold green]equal[/]" if played.equal else "[bold red]different[/]"
    screen.say(
        f"{verdict}: {played.differing:,} of {played.spikes:,} spikes differ in {played.steps} steps of {limit:,} "
        f"{shown}, answers by {played.far:.2g} at most."
    )
    screen.say(f"[bold]{screen.literal(out)}[/] holds the graph.")
    if not played.equal and not inexact:
        raise typer.Exit(EXIT_DIFFERENT)
