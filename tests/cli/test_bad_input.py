"""Every mistake is one message that says what next, exit code 2, no traceback, and leaves nothing behind."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spikezip import cli, convert
from spikezip.cli import screen
from spikezip.models import resolve

CONVERT = ("convert", "spikezip:digits", "--data", "digits", "--out", "x.spikezip")


def refused(done, *words: str) -> None:
    assert done.exit_code == 2, (done.exit_code, done.stdout, done.stderr, done.exception)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(("error: ", "Usage: ")), done.stderr
    for word in words:
        assert word in " ".join(done.stderr.split()), (word, done.stderr)
    assert list(Path().iterdir()) == [], "something was left behind"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("inspect", "spikezip:digitz"), ("Did you mean 'digits'?",)),
        (("inspect", "timm:resnet5O"), ("Did you mean", "'resnet50'")),
        (("inspect", "torchvision:resnet180"), ("Did you mean", "'resnet18'")),
        (("inspect", "digits"), ("spikezip:digits",)),
        (("inspect", "nowhere.py:build"), ("There is no file nowhere.py",)),
        (("inspect", "spikezip:digits", "--weights", "nowhere.safetensors"), ("nowhere.safetensors",)),
        (("inspect", "spikezip:digits", "--shape", "8 by 8"), ("--shape '8 by 8'", "3,32,32")),
        (
            ("inspect", "spikezip:digits", "--shape", "3,8,8"),
            ("spikezip:digits does not take images of 3x8x8", "It was made for 1x8x8"),
        ),
        (("inspect", "spikezip:digits", "--levels", "1..7"), ("1..7 are not admissible", "Levels(0, 7)")),
        (("inspect", "spikezip:digits", "--levels", "1"), ("needs 2 levels or more",)),
        (("inspect", "spikezip:digits", "--levels", "many"), ("0..7",)),
        (("inspect", "spikezip:digits", "--residual", "rcrr"), ("rcr",)),
        (("inspekt", "spikezip:digits"), ("Did you mean 'inspect'?",)),
        ((*CONVERT, "--data", "cifar11"), ("Did you mean 'cifar10'",)),
        ((*CONVERT, "--data", "nowhere/images"), ("There is no file or folder nowhere/images",)),
        ((*CONVERT, "--data", ""), ("There is no data set", "''")),
        ((*CONVERT, "--seed", str(2**70)), ("--seed",)),
        (("demo", "--seed", "-1"), ("--seed",)),
        ((*CONVERT, "--encoding", "odd:3"), ("no encoding 'odd:3'", "even:N")),
        ((*CONVERT, "--encoding", "even:0"), ("even:8",)),
        ((*CONVERT, "--weight-bits", "float"), ("--weight-bits 'float'", "none")),
        ((*CONVERT, "--calibration", "0"), ("--calibration",)),
        ((*CONVERT, "--out", "/proc/x.spikezip"), ("cannot be written",)),
        (("demo", "--out", "/proc/demo"), ("cannot be written",)),
        (("train", "nowhere.yaml", "--out", "o"), ("'nowhere.yaml' cannot be read",)),
        (("report", "nowhere.json"), ("nowhere.json",)),
        (("run", "nowhere.spikezip", "--data", "digits"), ("nowhere.spikezip",)),
        (("verify", "nowhere.spikezip", "--data", "digits"), ("nowhere.spikezip",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) and value[0].islower() and len(value) > 1 else "",
)
def test_refused(spikezip, args, words):
    refused(spikezip(*args), *words)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("biuld", ("Did you mean 'build'?",)),
        ("mixes", ("mixes the samples of a batch",)),
        ("branches", ("torch.export could not capture Branches", "Control flow")),
        ("broken", ("'head.weight' holds NaN",)),
        ("two", ("mine.py:two cannot be called with images alone", "missing a required argument: 'b'", "in Python")),
    ],
)
def test_a_users_file_that_cannot_be_used(spikezip, model_file, function, words):
    refused(spikezip("convert", f"{model_file}:{function}", "--data", "digits", "--out", "x.spikezip"), *words)


def test_a_users_model_that_does_not_take_the_data(spikezip, model_file, tmp_path):
    np.savez(tmp_path / "wide.npz", images=np.zeros((40, 10, 10, 3), np.uint8), labels=np.arange(40) % 10)
    done = spikezip("convert", f"{model_file}:build", "--data", tmp_path / "wide.npz", "--out", "x.spikezip")
    refused(done, "Mine does not take the example, [2, 3, 10, 10] float32, at 'first', conv.py")


def test_data_with_nan_or_without_images(spikezip, tmp_path):
    images = np.zeros((40, 8, 8), np.float32)
    images[3, 2, 2] = np.nan
    np.savez(tmp_path / "nan.npz", images=images, labels=np.arange(40) % 10)
    np.savez(tmp_path / "none.npz", images=images[:0], labels=np.arange(0))
    for name, words in (("nan.npz", "holds NaN"), ("none.npz", "no images")):
        refused(spikezip(*CONVERT, "--data", tmp_path / name), words)


def test_a_network_beside_that_is_not_the_bundles(spikezip, tmp_path, model_file):
    source = resolve("spikezip:digits")
    convert(source.module, source.example, source.example).save(tmp_path / "a.spikezip")
    run = ("run", tmp_path / "a.spikezip", "--data", "digits", "--out", "x.json")
    (tmp_path / "wide.py").write_text("import torch\ndef build():\n    return torch.nn.Linear(7, 10)\n")
    other = spikezip(*run, "--ann", f"{tmp_path / 'wide.py'}:build")
    refused(other, "does not take the images of the spiking network")
    refused(spikezip(*run, "--weights", "pretrained"), "--ann")
    refused(
        spikezip(*run, "--ann", f"{model_file}:five"),
        "answers a batch of one image with [1, 5], the spiking network with [1, 10]",
    )
    maps = spikezip(*run, "--ann", f"{model_file}:maps")
    refused(maps, "with [1, 10, 8, 8], the spiking network with [1, 10]")
    np.savez(tmp_path / "many.npz", images=np.zeros((80, 8, 8), np.uint8), labels=np.arange(80) % 20)
    many = spikezip("run", tmp_path / "a.spikezip", "--data", tmp_path / "many.npz", "--out", "x.json")
    refused(many, "a.spikezip gives 10 answers, and", "many.npz has 20 classes")


def test_weights_of_another_model(spikezip, tmp_path):
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    refused(spikezip("inspect", "spikezip:digits", "--weights", tmp_path / "other.safetensors"), "other")


@pytest.mark.parametrize("content", [b"", b"not a bundle", b"\x80\x04N.", b"PK\x03\x04broken"])
def test_a_corrupt_or_foreign_bundle(spikezip, tmp_path, content):
    (tmp_path / "bad.spikezip").write_bytes(content)
    for verb in ("run", "verify"):
        refused(spikezip(verb, tmp_path / "bad.spikezip", "--data", "digits"), "bad.spikezip")


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"format": "other/1"})])
def test_a_corrupt_or_foreign_record(spikezip, tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    refused(spikezip("report", tmp_path / "bad.json"), "bad.json")


def test_a_recipe_with_mistakes_names_each(spikezip, tmp_path):
    (tmp_path / "bad.yaml").write_text(
        "name: x\nstage: pet\nmodel: spikezip:digits\ndata: digits\nepoch: 3\nbatch: 0\n"
    )
    refused(spikezip("train", tmp_path / "bad.yaml", "--out", "o"), "2 problem(s)", "did you mean epochs?", "batch")


def test_results_that_are_there_are_not_overwritten(spikezip, tmp_path):
    for name in ("x.spikezip", "record.json", "certificate.json", "report.html"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "any").write_text("")
    for args in (
        (*CONVERT, "--out", tmp_path / "x.spikezip"),
        ("run", tmp_path / "any", "--data", "digits", "--out", tmp_path / "record.json"),
        ("verify", tmp_path / "any", "--data", "digits", "--out", tmp_path / "certificate.json"),
        ("report", tmp_path / "any", "--out", tmp_path / "report.html"),
        ("demo", "--out", tmp_path),
    ):
        refused(spikezip(*args), "--overwrite")
    assert all((tmp_path / name).read_text() == "mine" for name in ("x.spikezip", "record.json", "report.html"))


def test_a_locale_without_a_character_is_no_error(monkeypatch):
    there = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in there.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(cli, "app", lambda: (screen.say("naïve…"), screen.error("naïve…")))
    cli.main()
    for stream in there.values():
        stream.flush()
        assert b"na?ve?" in stream.buffer.getvalue()  # type: ignore[attr-defined]  # a BytesIO


def test_the_traceback_is_there_for_who_asks(spikezip, monkeypatch):
    """The exit code stays: 1 would say that networks differ."""
    for args in (("--traceback", "inspect", "spikezip:digitz"), ("inspect", "spikezip:digitz", "--traceback")):
        done = spikezip(*args)
        assert done.exit_code == 2
        assert "Traceback" in done.stderr and "UnknownNameError: " in done.stderr
    monkeypatch.setenv("SPIKEZIP_TRACEBACK", "1")
    assert "UnknownNameError: " in spikezip("inspect", "spikezip:digitz").stderr
