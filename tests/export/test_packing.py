"""Weights of few bits take few bits in a file, and come back to the bit."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from bundle_nets import apart
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from spikezip.errors import BundleError
from spikezip.export import load_snn, save_bundle
from spikezip.export.packing import pack, unpack
from spikezip.graph import capture
from spikezip.graph.weights_hash import weights_sha256
from spikezip.morph import Morph, morph
from spikezip.quantize import quantize, to_integer
from spikezip.spike import SpikingNetwork, spike

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def _codes(shape: tuple[int, ...], bits: int, seed: int) -> Tensor:
    """Whole numbers that need exactly so many bits, in every row and column."""
    most = 2 ** (bits - 1) - 1
    codes = torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed))
    codes[:, 0] = codes[0] = most
    return codes


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@given(
    st.sampled_from(DTYPES),
    st.integers(2, 8),
    st.integers(0, 1),
    st.lists(st.integers(-5, 5), min_size=24, max_size=24),
    st.integers(0, 2**16),
)
def test_whole_numbers_with_a_step_for_each_channel(dtype, bits, axis, steps, seed):
    shape = (24, 25) if axis == 0 else (25, 24)
    sizes = 2.0 ** torch.tensor(steps).double().reshape((-1, 1) if axis == 0 else (1, -1))
    values = (_codes(shape, bits, seed) * sizes).to(dtype)
    facts, stored = pack(values) or ({}, values)
    assert facts["bits"] == bits
    assert stored.numel() == (600 if bits == 8 else (600 * bits + 7) // 8)
    assert stored.element_size() == 1
    assert _same(unpack(facts, stored, "w"), values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_floats_stay_as_they_are(dtype):
    generator = torch.Generator().manual_seed(0)
    assert pack(torch.randn(40, 40, generator=generator, dtype=torch.float64).to(dtype)) is None


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (-0.0, "its sign"),
        (math.inf, "no number"),
        (float("nan"), "no number"),
        (129.0, "nine bits"),
        (0.3, "a part"),
    ],
)
def test_one_value_that_is_no_code_keeps_all(value, why):
    values = _codes((20, 20), 8, 0).float()
    assert pack(values) is not None
    values[3, 4] = value
    assert pack(values) is None, why


def test_few_values_whole_numbers_and_extremes():
    assert pack(torch.ones(5, 51)) is None
    assert pack(torch.ones(300)) is None, "an exponent for each value takes more than the value"
    assert pack(torch.ones(300, 3)) is not None, "one for each column"
    assert pack(torch.ones(15, 15, 15)) is not None
    assert pack(torch.ones(16, 16, dtype=torch.int64)) is None
    for values in (
        torch.zeros(3, 100),
        torch.full((3, 100), -1.0),
        torch.full((3, 100), 2.0**-149),  # the least float32
        torch.full((3, 100), 2.0**-1000, dtype=torch.float64),
        torch.full((3, 100), -(2.0**999), dtype=torch.float64),
        torch.ones(3, 1, 5, 1, 7, 5),
        torch.ones(1, 300),
    ):
        facts, stored = pack(values) or ({}, values)
        assert _same(unpack(facts, stored, "w"), values)
    assert pack(torch.full((3, 100), 2.0**-1074, dtype=torch.float64)) is None


def test_depthwise_weights_are_packed():
    steps = 2.0 ** torch.arange(-10, 10).repeat(3).reshape(60, 1, 1, 1)
    facts, stored = pack(_codes((60, 9), 8, 0).reshape(60, 1, 3, 3) * steps) or ({}, torch.empty(0))
    assert (facts["axis"], facts["bits"], stored.shape) == (0, 8, (60, 1, 3, 3))


def test_long_tensors_are_packed_in_parts(monkeypatch):
    monkeypatch.setattr("spikezip.export.packing._PART", 64)
    values = _codes((30, 30), 5, 1).float()
    facts, stored = pack(values) or ({}, values)
    assert _same(unpack(facts, stored, "w"), values)


# -- in a bundle ------------------------------------------------------------------------------------------------------


def _snn(bits: int) -> SpikingNetwork:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 32, 3), nn.ReLU(), nn.ConvTranspose2d(32, 48, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(48 * 36, 5),
    )  # fmt: skip
    images = torch.rand(8, 2, 6, 6)
    ann = morph(capture(model.eval(), images[:1]), Morph())
    return spike(to_integer(quantize(ann, 8, images).to(memory_format=torch.channels_last), bits))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_network_of_few_bits_is_a_small_file(bits: int, tmp_path: Path):
    snn = _snn(bits)
    path = save_bundle(snn, tmp_path / "a.spikezip")
    weights = sum(t.numel() for t in snn.graph.parameters() if t.dim() > 1)
    with safe_open(path, framework="pt") as file:
        header = len(file.metadata()["spikezip"])
    assert os.path.getsize(path) < weights * bits / 8 + header * 1.2 + 4096
    loaded = load_snn(path)
    assert weights_sha256(loaded.graph) == weights_sha256(snn.graph)
    for name, before in snn.graph.named_parameters():
        after = loaded.graph.get_parameter(name)
        assert before.dtype == after.dtype, name
        assert before.stride() == after.stride(), name
        assert _same(before.detach().contiguous(), after.detach().contiguous()), name
    assert save_bundle(loaded, tmp_path / "b.spikezip").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 0}, {"bits": 3}, {"bits": 8}, {"bits": 9}, {"bits": True}, {"axis": -1}, {"axis": 4}, {"axis": 2},
        {"dtype": "int8"}, {"dtype": "complex64"}, {"dtype": ""}, {"shape": [1 << 40]}, {"shape": []},
        {"shape": [32, 2, 3, 4]}, {"shape": [1 << 30, 1 << 30, 1 << 30]}, {"shape": [0, 2, 3, 3]},
        {"shape": [32.0, 2, 3, 3]}, {"exponents": []}, {"exponents": [1001] * 32}, {"exponents": [0.5] * 32},
        {"exponents": None}, {"more": 1},
    ],
)  # fmt: skip
def test_what_is_not_packed_as_it_states_is_refused(change, tmp_path: Path):
    parts = apart(save_bundle(_snn(4), tmp_path / "good.spikezip"))
    name = next(n for n, row in parts.document["tensors"].items() if row.get("packed", {}).get("axis") == 0)
    parts.document["tensors"][name]["packed"].update(change)
    parts.write(tmp_path / "evil.spikezip")
    with pytest.raises(BundleError, match=r"the tensor '.*weight.*'"):
        load_snn(tmp_path / "evil.spikezip")


def test_another_step_is_damage(tmp_path: Path):
    parts = apart(save_bundle(_snn(4), tmp_path / "good.spikezip"))
    row = next(row for row in parts.document["tensors"].values() if "packed" in row)
    row["packed"]["exponents"][0] += 1
    parts.write(tmp_path / "evil.spikezip")
    with pytest.raises(BundleError, match="tensors are damaged"):
        load_snn(tmp_path / "evil.spikezip")


def test_files_of_the_first_version_are_read(tmp_path: Path):
    snn = _snn(8)
    parts = apart(save_bundle(snn, tmp_path / "new.spikezip"))
    for name, row in parts.document["tensors"].items():
        if packed := row.pop("packed", None):
            parts.tensors[name] = unpack(packed, parts.tensors[name], name)
    parts.document["format"] = "spikezip.bundle/1"
    parts.write(tmp_path / "old.spikezip")
    assert weights_sha256(load_snn(tmp_path / "old.spikezip").graph) == weights_sha256(snn.graph)
