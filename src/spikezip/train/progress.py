"""What training tells while it runs, and who may listen: a progress bar, lines for a log, TensorBoard."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from spikezip.errors import OutputError
from spikezip.percent import percent


@dataclass(frozen=True)
class StepDone:
    """Some optimizer steps of an epoch are done; ``loss`` and ``numbers`` are means over the epoch so far."""

    epoch: int
    step: int
    steps: int
    epochs: int
    loss: float
    numbers: dict[str, float]
    rate: float


@dataclass(frozen=True)
class EpochDone:
    """The record of one epoch: means over its images, and over the validation images.

    Attributes:
        epoch: counted from 1.
        images: trained on in this epoch.
        loss: mean training loss.
        numbers: mean of what the objective logs on training batches.
        validation: the same on validation images, with ``loss``; empty if there are none.
        rate: share of the learning rate's height at the end of the epoch.
        seconds: of this epoch (since the last resume).
    """

    epoch: int
    epochs: int
    images: int
    loss: float
    numbers: dict[str, float]
    validation: dict[str, float] = field(default_factory=dict)
    rate: float = 0.0
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The record as JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Saved:
    """A file has been written."""

    path: Path


Event: TypeAlias = StepDone | EpochDone | Saved
Listener: TypeAlias = Callable[[Event], None]


class ProgressBar:
    """A listener that shows one bar with loss, accuracy and time left, and one line an epoch, on stderr.

    Use it as a context manager: ``with ProgressBar() as bar: finetune(..., on_event=bar)``.
    """

    def __init__(self):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("training", total=None, state="")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._progress.update(
                self._task,
                total=event.steps * event.epochs,
                completed=event.epoch * event.steps + event.step,
                description=f"epoch {event.epoch + 1}/{event.epochs}",
                state=_line(event.loss, event.numbers),
            )
        elif isinstance(event, EpochDone):
            self._progress.console.print(_epoch_line(event), highlight=False)


class Lines:
    """A listener for where no bar can move, such as a log file: one line an epoch, and one a minute within, on stderr.

    Args:
        every: seconds between lines within an epoch.
        least: seconds between the lines of epochs, where these are short; the last one always has its line.
    """

    def __init__(self, every: float = 60.0, least: float = 5.0):
        self._every, self._least = every, least
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        since = now - self._last
        if isinstance(event, EpochDone) and (since >= self._least or event.epoch == event.epochs):
            print(_epoch_line(event), file=sys.stderr, flush=True)
        elif isinstance(event, StepDone) and since >= self._every and event.step < event.steps:
            state = f"epoch {event.epoch + 1}/{event.epochs}, step {event.step}/{event.steps}"
            print(f"{state}  {_line(event.loss, event.numbers)}", file=sys.stderr, flush=True)
        else:
            return
        self._last = now


def bar_or_lines(stack: contextlib.ExitStack) -> Listener:
    """What training shows of itself: a bar on a terminal, open as long as ``stack``, and lines where there is none."""
    return stack.enter_context(ProgressBar()) if sys.stderr.isatty() else Lines()


class TensorBoard:
    """A listener that writes scalars for TensorBoard into a folder; use it as a context manager.

    Raises:
        OutputError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as reason:
            raise OutputError("TensorBoard is not installed. Run: pip install 'spikezip[tensorboard]'.") from reason
        self._folder, self._open = str(folder), SummaryWriter
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def __call__(self, event: Event) -> None:
        # Not before the first event: a folder that training refuses is left as it is.
        self._writer = self._writer or self._open(self._folder)
        if isinstance(event, StepDone):
            at = event.epoch * event.steps + event.step
            for name, value in {"loss": event.loss, "rate": event.rate, **event.numbers}.items():
                self._writer.add_scalar(f"train/{name}", value, at)
        elif isinstance(event, EpochDone):
            for name, value in event.validation.items():
                self._writer.add_scalar(f"validation/{name}", value, event.epoch)


def _epoch_line(event: EpochDone) -> str:
    shown = f"epoch {event.epoch}/{event.epochs}  {_line(event.loss, event.numbers)}"
    if event.validation:
        shown += f"  | validation {_line(event.validation['loss'], event.validation)}"
    return f"{shown}  ({event.seconds:.1f} s)"


def _line(loss: float, numbers: dict[str, float]) -> str:
    accuracies = [
        f"{name.removeprefix('accuracy').removeprefix('/') or 'accuracy'} {percent(value)}"
        for name, value in numbers.items()
        if name.startswith("accuracy")
    ]
    return "  ".join([f"loss {loss:.4f}", *accuracies])
