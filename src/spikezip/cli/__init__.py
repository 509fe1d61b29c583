"""The command line: one file a verb. Each parses, calls the library, prints.

Errors the user can mend (:class:`~spikezip.errors.SpikezipError`) become one message on stderr and exit code 2;
``--traceback`` or ``SPIKEZIP_TRACEBACK=1`` shows where they came from. Ctrl-C ends with 130, SIGTERM with 143, and a
reader that has seen enough of the output with 141; drafts of files are removed.
"""

from __future__ import annotations

import errno
import inspect as inspection
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

import spikezip
from spikezip.cli import bench, convert, demo, export, inspect, report, run, screen, train, verify
from spikezip.cli.narrow import NarrowCommand, NarrowGroup
from spikezip.errors import SpikezipError
from spikezip.interrupt import EXIT_STOPPED, hand_over

EXIT_MENDABLE = 2
EXIT_TERMINATED = 143


class _Verbs(NarrowGroup):
    """The group of verbs: turns errors that the user can mend into messages."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Wherever it stands: people add it at the end of the command that has just failed.
        if "--traceback" in args:
            args = ["--traceback", *(arg for arg in args if arg != "--traceback")]
        return super().parse_args(ctx, args)

    def make_context(self, *words: Any, **more: Any) -> Any:
        with _output():  # --help and --version are printed here
            return super().make_context(*words, **more)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _output(), screen.plain_warnings():
                return super().invoke(ctx)
        except SpikezipError as problem:
            if ctx.params.get("traceback") or os.environ.get("SPIKEZIP_TRACEBACK", "0") not in ("", "0"):
                traceback.print_exception(problem)
            else:
                screen.error(str(problem))
            raise typer.Exit(EXIT_MENDABLE) from problem
        except KeyboardInterrupt as problem:
            screen.note("Stopped.")
            raise typer.Exit(EXIT_STOPPED) from problem


@contextmanager
def _output() -> Iterator[None]:
    """End as said above where the output is no longer read, or cannot be written."""
    try:
        yield
    except (BrokenPipeError, SystemExit) as end:
        if not isinstance(end if isinstance(end, OSError) else end.__context__, BrokenPipeError):
            raise  # rich's own console ends with 1
        screen.discard()
        raise typer.Exit(screen.EXIT_PIPE) from end
    except OSError as problem:
        if problem.filename is not None or problem.errno not in (errno.ENOSPC, errno.EIO):
            raise
        screen.discard()
        screen.error(f"What was to be printed cannot be written: {problem.strerror}.")
        raise typer.Exit(EXIT_MENDABLE) from problem


app = typer.Typer(
    cls=_Verbs,
    name="spikezip",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        screen.say(f"spikezip {spikezip.__version__}")
        raise typer.Exit


@app.callback(
    help="Trained networks in, certified spiking neural networks out.\n\nBegin with [bold]spikezip demo --out "
    "demo-out[/], which goes the whole road on a small data set in a few minutes. For your own network: "
    "[bold]inspect[/] it, [bold]convert[/] it, then [bold]run[/], [bold]verify[/] and [bold]report[/]; "
    "[bold]train[/] makes it better at few steps."
)
def _spikezip(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from (also SPIKEZIP_TRACEBACK=1).")
    ] = False,
) -> None:
    """What stands before the verb."""


def _help(verb: Any) -> str:
    """A verb's docstring for the terminal: prose flows, indented lines (examples) stay lines."""
    paragraphs = inspection.cleandoc(verb.command.__doc__).split("\n\n")
    return "\n\n".join(text if "\n  " in text else " ".join(text.split("\n")) for text in paragraphs)


for _verb in (demo, inspect, convert, train, run, verify, report, export, bench):
    app.command(name=_verb.__name__.rpartition(".")[2], cls=NarrowCommand, help=_help(_verb))(_verb.command)


def main() -> None:
    """Entry point of ``spikezip`` and ``python -m spikezip``."""
    hand_over()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale without, say, an ellipsis is no reason to end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # blocks that clean up behind them end so
    app()
