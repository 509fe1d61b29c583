"""Help as lines where the terminal is too narrow for tables, which would cut the names of options."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from spikezip.cli import screen

_TABLES = 80  #: columns that typer's tables of options need


class _Narrow:
    """To stand before typer's own class."""

    def format_help(self: Any, ctx: Any, formatter: Any) -> None:
        width = Console().width  # as typer finds it
        if width >= _TABLES:
            super().format_help(ctx, formatter)  # type: ignore[misc]
            return
        for indent, text in _lines(self, ctx):
            formatter.write(
                textwrap.fill(
                    screen.untagged(text),
                    width,
                    initial_indent=" " * indent,
                    subsequent_indent=" " * (indent + 2),
                    break_on_hyphens=False,
                )
                + "\n"
            )


class NarrowCommand(_Narrow, TyperCommand):
    """A verb."""


class NarrowGroup(_Narrow, TyperGroup):
    """The group of verbs."""


def _lines(command: Any, ctx: Any) -> Iterator[tuple[int, str]]:
    """Each line of a command's help, with its indentation."""
    yield 0, f"Usage: {ctx.command_path} {' '.join(command.collect_usage_pieces(ctx))}"
    yield 0, ""
    for line in command.help.splitlines():
        yield len(line) - len(line.lstrip()), line.strip()
    verbs = getattr(command, "commands", {}).values()
    records = [record for param in command.get_params(ctx) if (record := param.get_help_record(ctx))]
    for name, text in records + [(verb.name, verb.get_short_help_str(1000)) for verb in verbs]:
        yield 0, ""
        yield 0, name
        yield 4, text
