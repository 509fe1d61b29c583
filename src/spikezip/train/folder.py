"""The folder a training writes into; only the main process touches it, and all processes learn how that went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from spikezip.errors import OutputError, SpikezipError
from spikezip.train import checkpoint as files
from spikezip.train.checkpoint import Checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


class Folder:
    """``checkpoint.safetensors``, ``history.json`` and ``network.safetensors`` of one training.

    The bundle ``snn.spikezip`` that ``spikezip train`` makes of them goes when they are replaced.
    """

    _files = ("checkpoint.safetensors", "network.safetensors", "history.json")

    def __init__(self, path: Path, accelerator: Accelerator):
        self.path = path
        self.checkpoint = path / "checkpoint.safetensors"
        self._accelerator = accelerator

    def open(self, *, resume: bool, overwrite: bool) -> Checkpoint | None:
        """Make sure that the folder can be written, and read the checkpoint to go on from, if any."""

        def on_main() -> Checkpoint | None:
            if self.path.exists() and not self.path.is_dir():
                raise OutputError(f"'{self.path}' is a file; give the name of a folder.")
            found = resume and self.checkpoint.is_file()
            drafts = [path for file in self._files for path in self.path.glob(f".{file}-*")]
            # Of a run that was killed before its first checkpoint there may be these, and nothing to resume.
            started = {*drafts, self.path / "tensorboard"} if resume else set()
            if not found and not overwrite and self.path.is_dir() and set(self.path.iterdir()) - started:
                advice = "there is no checkpoint in it to resume; " if resume else ""
                raise OutputError(
                    f"'{self.path}' is not empty: {advice}give another folder, or say resume (go on from its "
                    "checkpoint) or overwrite (start anew)."
                )
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                # What an earlier run that was killed left half-written, and what is about to be replaced.
                for draft in drafts:
                    draft.unlink()
                if not found:
                    for name in (*self._files, "snn.spikezip"):
                        (self.path / name).unlink(missing_ok=True)
            except OSError as reason:
                raise OutputError(
                    f"'{self.path}' cannot be written: {reason.strerror}. Give another out folder."
                ) from reason
            return files.read(self.checkpoint) if found else None

        return self._agree(on_main)

    def save(self, state: Checkpoint) -> None:
        """Write the checkpoint, and the history for people."""

        def on_main() -> None:
            files.write(state, self.checkpoint)
            files.write_json(state.facts["history"], self.path / "history.json")

        self._agree(on_main)

    def finish(self, network: nn.Module) -> None:
        """Write the trained weights, under the network's own names."""

        def on_main() -> None:
            files.write_tensors(dict(network.state_dict()), self.path / "network.safetensors")

        self._agree(on_main)

    def _agree(self, action: Callable[[], T]) -> T:
        from accelerate.utils import broadcast_object_list

        outcome: list[T | SpikezipError | None] = [None]
        if self._accelerator.is_main_process:
            try:
                outcome[0] = action()
            except SpikezipError as error:
                outcome[0] = error
        if self._accelerator.num_processes > 1:
            broadcast_object_list(outcome)
        if isinstance(outcome[0], SpikezipError):
            raise outcome[0]
        return outcome[0]  # type: ignore[return-value]
