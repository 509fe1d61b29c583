"""Whoever stops a verb is told what there is, and no draft stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spikezip import cli
from spikezip.cli import screen
from spikezip.cli.target import output_file
from spikezip.train import EpochDone

RECIPE = """
name: short
stage: ann
model: spikezip:digits
data: digits
epochs: 2
train_images: 64
batch: 64
validation_images: 10
"""


def test_ctrl_c_is_told_and_ends_with_130(spikezip, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spikezip.cli.sources.open_both", stop)
    done = spikezip("convert", "spikezip:digits", "--data", "digits", "--out", "x.spikezip")
    assert done.exit_code == 130
    assert done.stderr.splitlines() == ["Nothing was written to 'x.spikezip'.", "Stopped."]
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("words", "code"), [(["-m", "spikezip"], 130), (["spikezip"], 130), (["mine.py", "spikezip"], -signal.SIGINT)]
)
def test_ctrl_c_while_torch_is_imported_is_told_too(words, code, tmp_path):
    """It printed where in torch that was. A program of one's own keeps its KeyboardInterrupt."""
    (tmp_path / "torch.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    for script in ("spikezip", "mine.py"):
        (tmp_path / script).write_text("from spikezip.cli import main\nmain()")
    command = [sys.executable, *words, "--version"]
    source = str(Path(cli.__file__).parents[2])
    path = os.pathsep.join([str(tmp_path), source])
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr == "Stopped.\n" if code == 130 else "KeyboardInterrupt" in done.stderr


def test_a_training_that_is_stopped_says_how_to_go_on(spikezip, monkeypatch, tmp_path):
    def stop(event: object) -> None:  # before the checkpoint of that epoch
        if isinstance(event, EpochDone) and event.epoch == stopped_at:
            raise KeyboardInterrupt

    monkeypatch.setattr("spikezip.train.loop.bar_or_lines", lambda stack: stop)
    (tmp_path / "short.yaml").write_text(RECIPE)
    train = ("train", tmp_path / "short.yaml", "--out", "short")
    none, some = "No checkpoint was written to 'short' yet.", "'short' holds the last checkpoint: go on from it"
    for stopped_at, words in ((1, none), (2, some), (1, none)):  # noqa: B007  # stop reads it
        done = spikezip(*train, "--overwrite")
        assert done.exit_code == 130
        assert words in done.stderr


def test_sigterm_ends_with_143_and_removes_drafts(monkeypatch, tmp_path):
    def terminated() -> None:
        with output_file(tmp_path / "x.json") as draft:
            draft.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cli, "app", terminated)
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: None)  # were main() to set none, the tests would end here
    try:
        with pytest.raises(SystemExit, match="143"):
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [("inspect", "spikezip:digits"), ("inspect", "spikezip:digits", "--json"), ("--help",), ("--version",)]
)
def test_a_reader_who_has_seen_enough_is_no_error(words):
    """A closed pipe ended with 1, which of verify means that networks differ."""
    command = [sys.executable, "-m", "spikezip", *words]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [("inspect", "spikezip:digits"), ("--version",)])
def test_a_full_disk_behind_the_output_is_told(words):
    command = [sys.executable, "-m", "spikezip", *words]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: What was to be printed cannot be written: No space left")


def test_a_bundle_is_written_before_anything_is_printed(spikezip, monkeypatch, tmp_path):
    def closed(text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(screen, "say", closed)
    monkeypatch.setattr(screen, "discard", lambda: None)
    (tmp_path / "short.yaml").write_text(RECIPE.replace("stage: ann", "stage: qat"))
    done = spikezip("train", tmp_path / "short.yaml", "--out", "short")
    assert done.exit_code == 141
    assert Path("short/snn.spikezip").exists()
