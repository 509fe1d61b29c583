"""The folder a training writes into; only the main process touches it, and all processes learn how that went."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from spikezip.errors import OutputError, SpikezipError
from spikezip.train import checkpoint as files
from spikezip.train.checkpoint import Checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


class Folder:
    """``checkpoint.safetensors``, ``history.json``, ``network.safetensors`` and, where BatchNorm was live,
    ``live.safetensors`` of one training.

    The bundle ``snn.spikezip`` that ``spikezip train`` makes of them, and TensorBoard's events beside them, go when
    they are replaced: at the first checkpoint, so that a training that is refused or fails before costs nothing.
    """

    _files = ("checkpoint.safetensors", "network.safetensors", "live.safetensors", "history.json")

    def __init__(self, path: Path, accelerator: Accelerator):
        self.path = path
        self.checkpoint = path / "checkpoint.safetensors"
        self._accelerator = accelerator
        self._replaced: list[Path] = []

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Let no other training write here meanwhile, where the system has such locks; it ends with the process.

        Raises:
            OutputError: another training writes here, or the folder cannot be made.
        """
        locks: list[int] = []

        def on_main() -> None:
            if self.path.exists() and not self.path.is_dir():
                raise OutputError(f"'{self.path}' is a file; give the name of a folder.")
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as reason:
                raise self._unwritable(reason) from reason
            with contextlib.suppress(ImportError, OSError):
                import fcntl

                locks.append(os.open(self.path, os.O_RDONLY))
                try:
                    fcntl.flock(locks[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as reason:
                    raise OutputError(
                        f"Another training is writing to '{self.path}'. Give another out folder, or wait for it to end."
                    ) from reason

        try:
            self._agree(on_main)
            yield
        finally:
            for lock in locks:
                os.close(lock)

    def open(self, *, resume: bool, overwrite: bool) -> Checkpoint | None:
        """Make sure that the claimed folder may be written to, and read the checkpoint to go on from, if any."""

        def on_main() -> Checkpoint | None:
            found = resume and self.checkpoint.is_file()
            drafts = [path for file in self._files for path in self.path.glob(f".{file}-*")]
            # Of a run that was killed before its first checkpoint there may be these, and nothing to resume.
            started = {*drafts, self.path / "tensorboard"} if resume else set()
            if not found and not overwrite and set(self.path.iterdir()) - started:
                advice = "there is no checkpoint in it to resume; " if resume else ""
                raise OutputError(
                    f"'{self.path}' is not empty: {advice}give another folder, or say resume (go on from its "
                    "checkpoint) or overwrite (start anew)."
                )
            try:
                for draft in drafts:  # what an earlier run that was killed left half-written
                    draft.unlink()
            except OSError as reason:
                raise self._unwritable(reason) from reason
            # A run that was killed as it replaced an earlier one may have left some of that.
            self._replaced = [self.path / f for f in ("network.safetensors", "live.safetensors", "snn.spikezip")]
            if found:
                return files.read(self.checkpoint)
            self._replaced += self.path.glob("tensorboard/events.out.tfevents.*")
            return None

        return self._agree(on_main)

    def save(self, state: Checkpoint) -> None:
        """Write the checkpoint, and the history for people; what is left of an earlier training goes."""

        def on_main() -> None:
            files.write(state, self.checkpoint)
            files.write_json(state.facts["history"], self.path / "history.json")
            for path in self._replaced:
                with contextlib.suppress(OSError):
                    path.unlink()
            self._replaced = []

        self._agree(on_main)

    def finish(
        self,
        network: nn.Module,
        live: dict[str, Tensor] | None,
        history: list[dict[str, Any]],
        pixels: dict[str, list[float]],
    ) -> None:
        """Write the trained weights, under the network's own names, as they were before BatchNorm was folded too if it
        was ``live``, and the history, which a checkpoint that training stopped right after is ahead of. Learned bias
        shares, which are no weights, stand in the header, and so does how ``pixels`` were normalised."""

        def on_main() -> None:
            files.write_json(history, self.path / "history.json")
            header = {"bias_shares": shares} if (shares := files.shares_of(network)) else {}
            if pixels:
                header["pixels"] = json.dumps(pixels)
            files.write_tensors(dict(network.state_dict()), self.path / "network.safetensors", header or None)
            if live is not None:
                files.write_tensors(live, self.path / "live.safetensors", header or None)

        self._agree(on_main)

    def _unwritable(self, reason: OSError) -> OutputError:
        return OutputError(f"'{self.path}' cannot be written: {reason.strerror}. Give another out folder.")

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
