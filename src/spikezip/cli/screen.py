"""What the command line shows: results on stdout, everything else (progress, notes, errors) on stderr."""

from __future__ import annotations

import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from spikezip.report.tables import percent as shown

_PACKAGE = Path(__file__).parents[1]
# A pipe has no width; 80 columns would cut the names of layers.
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140

_BRACKET = "\ue000"  # stands for one of a path until tags are told apart
_TAGS = re.compile(r"(\[(?:/|(?:bold )?(?:red|green)|bold|dim)\])")


EXIT_PIPE = 141  #: whoever read the output has seen enough (128 + SIGPIPE)


class _Results(Console):
    """A console that knows these tags alone: other square brackets are text, as those of paths."""

    def on_broken_pipe(self) -> None:
        """End quietly, and with a code that says no more than that nobody reads on."""
        discard()
        raise SystemExit(EXIT_PIPE)

    def render_str(self, text: str, **choices: Any) -> Text:
        parts = _TAGS.split(text)
        return super().render_str(
            "".join(p if i % 2 else escape(p.replace(_BRACKET, "[")) for i, p in enumerate(parts)), **choices
        )


stdout = _Results(width=_WIDTH, highlight=False, emoji=False)
stderr = Console(width=_WIDTH, highlight=False, emoji=False, stderr=True)


def discard() -> None:
    """Let what is still to be printed go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Print a line of results; ``[bold]``, ``[dim]``, ``[red]``, ``[green]`` and ``[/]`` are rich's markup."""
    stdout.print(text, soft_wrap=True)


def untagged(text: str) -> str:
    """A text without the tags of :func:`say`."""
    return _TAGS.sub("", text)


def tabulate(table: Table) -> None:
    """Print a table; where that would cut or break words, each row of it as lines."""
    if stdout.measure(table, options=stdout.options.update(width=10_000)).minimum <= stdout.width:
        stdout.print(table)
        return
    say(f"[bold]{table.title}[/]")
    for first, *others in zip(*(column.cells for column in table.columns), strict=True):
        say(f"[bold]{first}[/]")
        for column, cell in zip(table.columns[1:], others, strict=True):
            if cell:
                say(f"  {column.header}: " + str(cell).replace("\n", "\n    "))


def literal(text: object) -> str:
    """A path, or what else a user named, for :func:`say`: no tag in it is read as one."""
    return str(text).replace("[", _BRACKET)


def command(*words: object) -> str:
    """A command for :func:`say`, quoted so that a shell reads these words."""
    return literal(shlex.join(map(str, words)))


def note(text: str) -> None:
    """Print a line that is no result (what is being done, what was left out), to stderr."""
    stderr.print(escape(text), style="dim", soft_wrap=True)


def error(text: str) -> None:
    """Print one error message to stderr."""
    stderr.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)


def percent(share: float | None) -> str:
    """A share in 0..1 as a percentage, as reports have it; ``-`` for none.

    >>> percent(0.98765), percent(0.99999), percent(None)
    ('98.77 %', '> 99.99 %', '-')
    """
    return "-" if share is None else shown(share)


def progress() -> Progress:
    """A progress bar on stderr with count, elapsed and remaining time; it leaves nothing behind.

    Where stderr is no terminal nothing is drawn.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )


@contextmanager
def counting(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A progress bar over ``total`` images; yields what is to be told how many more are done."""
    with counting_each((total, what)) as (done,):
        yield done


@contextmanager
def counting_each(*tasks: tuple[int, str]) -> Iterator[list[Callable[[int], None]]]:
    """As :func:`counting`, a bar for each of several tasks; one of no images has none."""
    with progress() as bar:
        bars = [bar.add_task(what, total=total, visible=total > 0) for total, what in tasks]
        yield [partial(bar.advance, task) for task in bars]


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner beside ``what`` while work of unknown length goes on (terminals only); yields what changes the text."""
    if not stderr.is_terminal:
        yield lambda text: None
        return
    with stderr.status(escape(what)) as status:
        yield lambda text: status.update(escape(text))


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Within: what this package warns of is a message on stderr, without the line of code that it comes from."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def told(message: Any, category: Any, filename: str, *where: Any, **more: Any) -> None:
            if issubclass(category, UserWarning) and Path(filename).is_relative_to(_PACKAGE):
                stderr.print(f"[bold yellow]warning:[/] {escape(str(message))}", soft_wrap=True)
            else:
                show(message, category, filename, *where, **more)

        warnings.showwarning = told
        yield
