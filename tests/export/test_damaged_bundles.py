"""Files that are damaged, or of another kind: each gives a BundleError that says what is wrong, and nothing else."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_nets import KEY, loads_or_is_refused, refused
from safetensors.torch import save, save_file

from spikezip.errors import BundleError
from spikezip.export import load_bundle


def _header_of(data: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


def _with_header(data: bytes, header: Any) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _changed(data: bytes, tensor: str, **change: Any) -> bytes:
    header = _header_of(data)
    header[tensor].update(change)
    return _with_header(data, header)


def _text(data: bytes, text: str) -> bytes:
    header = _header_of(data)
    header["__metadata__"][KEY] = text
    return _with_header(data, header)


FILES: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("empty", lambda d: b"", "no sound safetensors"),
    ("of one byte", lambda d: b"\0", "no sound safetensors"),
    ("cut in its length", lambda d: d[:7], "no sound safetensors"),
    ("cut in its header", lambda d: d[:200], "no sound safetensors"),
    ("cut in its tensors", lambda d: d[: -len(d) // 8], "no sound safetensors"),
    ("cut by one byte", lambda d: d[:-1], "no sound safetensors"),
    ("one byte longer", lambda d: d + b"\0", "no sound safetensors"),
    ("header of 2**64 bytes", lambda d: b"\xff" * 8 + d[8:], "no sound safetensors"),
    ("header of 2**63 bytes", lambda d: struct.pack("<Q", 2**63) + d[8:], "no sound safetensors"),
    ("header of 99 MB", lambda d: struct.pack("<Q", 99_000_000) + d[8:], "no sound safetensors"),
    ("header of no bytes", lambda d: struct.pack("<Q", 0) + d[8:], "no sound safetensors"),
    ("header not JSON", lambda d: _with_header(d, b"{]"), "no sound safetensors"),
    ("header not text", lambda d: _with_header(d, b"\xff\xfe\xfd"), "no sound safetensors"),
    ("header a list", lambda d: _with_header(d, []), "no sound safetensors"),
    ("header deep", lambda d: _with_header(d, b"[" * 100_000), "no sound safetensors"),
    ("pickle", lambda d: b"\x80\x04\x95" + d, "no sound safetensors"),
    ("zip", lambda d: b"PK\x03\x04" + d, "no sound safetensors"),
    ("zeros", lambda d: bytes(4096), "no sound safetensors|none that spikezip wrote"),
    ("text", lambda d: b"hello, this is no network" * 20, "no sound safetensors"),
    ("tensor type unknown", lambda d: _changed(d, "fc.weight", dtype="PICKLE"), "no sound safetensors"),
    ("tensor type of another size", lambda d: _changed(d, "fc.weight", dtype="F64"), "no sound safetensors"),
    ("tensor type of the same size", lambda d: _changed(d, "fc.weight", dtype="I32"), "computed|SHA-256|trained"),
    ("tensor shape larger", lambda d: _changed(d, "fc.weight", shape=[4000, 16]), "no sound safetensors"),
    ("tensor shape past 64 bits", lambda d: _changed(d, "fc.weight", shape=[2**62, 2**62]), "no sound safetensors"),
    ("tensor shape negative", lambda d: _changed(d, "fc.weight", shape=[-3, -16]), "no sound safetensors"),
    ("tensor place outside", lambda d: _changed(d, "fc.weight", data_offsets=[10**9, 10**9 + 192]), "no sound"),
    ("tensor place reversed", lambda d: _changed(d, "fc.weight", data_offsets=[192, 0]), "no sound safetensors"),
    ("tensor place of another", lambda d: _changed(d, "fc.weight", data_offsets=[0, 192]), "no sound safetensors"),
    ("document not JSON", lambda d: _text(d, "{"), "header is not JSON"),
    ("document empty", lambda d: _text(d, ""), "header is not JSON"),
    ("document NaN", lambda d: _text(d, '{"format": NaN}'), "holds NaN"),
    ("document Infinity", lambda d: _text(d, '{"format": -Infinity}'), "holds -Infinity"),
    ("document too large a float", lambda d: _text(d, '{"format": 1e999}'), "too large for a float"),
    ("document endless number", lambda d: _text(d, '{"format": ' + "9" * 100_000 + "}"), "more than 64 bits"),
    ("document key twice", lambda d: _text(d, '{"format": 1, "format": 2}'), "a key twice"),
    ("document deep", lambda d: _text(d, "[" * 1_000_000), "nested too deeply|not JSON"),
    ("document deep objects", lambda d: _text(d, '{"a":' * 300_000), "nested too deeply|not JSON"),
    ("document long", lambda d: _text(d, " " * (1 << 25) + "{}"), "longer than"),
    ("no document", lambda d: _with_header(d, {**_header_of(d), "__metadata__": {}}), "none that"),
    ("another document", lambda d: _with_header(d, {**_header_of(d), "__metadata__": {"pickle": "gASV"}}), "none that"),
    ("document not text", lambda d: _with_header(d, {**_header_of(d), "__metadata__": {KEY: {}}}), "no sound"),
    ("metadata of another", lambda d: save({"a": torch.zeros(1)}, {"format": "pt"}), "none that spikezip wrote"),
    ("no metadata", lambda d: save({"a": torch.zeros(1)}), "none that spikezip wrote"),
    ("checkpoint", lambda d: save({"a": torch.zeros(1)}, {KEY: '{"format": "spikezip.checkpoint/1"}'}), "its format"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "match"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_damaged_file(good: bytes, tmp_path: Path, damage: Callable[[bytes], bytes], match: str):
    path = tmp_path / "damaged.spikezip"
    path.write_bytes(damage(good))
    refused(path, match)


def test_cut_anywhere(good: bytes, tmp_path: Path):
    path = tmp_path / "cut.spikezip"
    for length in range(0, len(good), max(len(good) // 150, 1)):
        path.write_bytes(good[:length])
        with pytest.raises(BundleError):
            load_bundle(path)


def test_places_that_are_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path, "it is no file")
    refused(tmp_path / "none", "no such file")
    refused(tmp_path / "pipe", "it is no file")


def test_a_checkpoint_of_another_library(tmp_path: Path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "no sound safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "none that spikezip wrote")


def test_flipped_bytes(good: bytes, tmp_path: Path):
    """One to four bytes changed anywhere: refused, all of them, as everything lies under one of the two SHA-256."""
    dice = random.Random(7)
    path = tmp_path / "flipped.spikezip"
    for _ in range(300):
        data = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(data))
            data[place] = (data[place] + dice.randrange(1, 256)) % 256
        path.write_bytes(data)
        assert not loads_or_is_refused(path)
