"""``spikezip report``: records in, one HTML page out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spikezip.cli import options, screen
from spikezip.cli.target import output_file


def command(
    records: Annotated[
        list[Path],
        typer.Argument(metavar="RECORD...", show_default=False, help="record.json files, or folders that hold one."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None,
        typer.Option("--figures", show_default=False, help="A folder for every figure as SVG, PDF and CSV."),
    ] = None,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Make one self-contained HTML page from one or several runs.

    Accuracy over time, spikes and distances per layer, energy, the certificate: whatever the records hold. Several
    records are compared.

    [bold]Examples[/]
      spikezip report record.json
      spikezip report runs/*/record.json -o compare.html --figures figures
    """
    from spikezip.report.page import write_report

    with output_file(out, overwrite, reads=records) as draft, screen.working("drawing"):
        write_report(records, draft, figures=figures, overwrite=overwrite)
    screen.say(f"[bold]{screen.literal(out)}[/] holds the report; open it in a browser.")
