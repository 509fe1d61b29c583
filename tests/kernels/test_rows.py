"""Rows: values kept once for as long as they do not change; the compiled scan is the torch scan, to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from spikezip.kernels import Rows, Sum, gather, max_pool2d, native, scan, union
from spikezip.kernels.synapse import _pack, _sums, _trusted
from spikezip.levels import Levels


def draw_map(steps: int, images: int, generator: torch.Generator) -> Tensor:
    new = torch.rand((images, steps), generator=generator) < 0.4
    new[:, 0] = True
    return (new.flatten().cumsum(0) - 1).reshape(images, steps).T.contiguous()


def whole(rows: Rows) -> Tensor:
    return gather(rows.value, rows.map.flatten()).unflatten(0, tuple(rows.map.shape))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**31))
def test_union_has_a_row_wherever_either_changes(steps, images, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = [draw_map(steps, images, generator) for _ in range(2)]
    map, picks = union(maps)
    for old, pick in zip(maps, picks, strict=True):
        assert torch.equal(old, map if pick is None else pick[map])
    changes = sum((m[1:] != m[:-1]) for m in maps) > 0 if steps > 1 else torch.zeros(0, images, dtype=torch.bool)
    assert int(map.max()) + 1 == images + int(changes.sum())


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
@settings(deadline=None, max_examples=100)
@given(
    levels=st.sampled_from([Levels(0, 7), Levels(-4, 3), Levels(0, 255), Levels(-128, 127), Levels(0, 1)]),
    slew=st.sampled_from([1, 3, 1000, 2**32]),
    shape=st.sampled_from([(3,), (70,), (5, 3, 4), (64, 7, 7), (4, 6), ()]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    theta=st.sampled_from([1.0, 0.37]),
    second=st.sampled_from(["none", "codes", "sums", "floats", "fixed"]),
    started=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_compiled_scan_is_the_torch_scan(levels, slew, shape, dtype, theta, second, started, seed):
    generator = torch.Generator().manual_seed(seed)
    steps, images = 7, 3

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=dtype)

    def floats() -> Rows:
        map = draw_map(steps, images, generator)
        return Rows(draw(int(map.max()) + 1, *shape) * 3 * levels.range, map, dtype)

    def sums() -> Rows:
        map = draw_map(steps, images, generator)
        rows = torch.randint(-4000, 4000, (int(map.max()) + 1, *shape), generator=generator).float()
        channels = 1 if len(shape) == 3 else len(shape)
        width = rows.shape[channels]
        return Rows(rows, map, dtype, 0, torch.exp2(-draw(width).abs() - 4).round(decimals=3), draw(width), channels)

    def codes() -> Rows:
        map = draw_map(steps, images, generator)
        rows = torch.randint(0, 9, (int(map.max()) + 1, *shape), generator=generator).to(torch.uint8)
        return Rows(rows, map, dtype, 4, 0.7, top=8)

    def fixed() -> Rows:
        map = draw_map(steps, images, generator)
        rows = torch.randn((int(map.max()) + 1, *shape), generator=generator, dtype=torch.float64) * levels.range
        scale = 1.7 if seed % 2 else None
        return Rows(rows, map, dtype, scale=scale, grid=(3, 40))

    kinds = {"floats": floats, "codes": codes, "sums": sums, "fixed": fixed}
    drive: Rows | Sum = floats() if second in ("none", "floats") or not shape else sums()
    if second != "none":
        other = floats() if second == "sums" and not shape else kinds[second]()
        drive = Sum((drive, other), dtype)
    start = None
    if started:
        start = torch.randint(levels.lowest, levels.highest + 1, (images, *shape), generator=generator).to(
            levels.storage
        )
    threshold = torch.tensor(theta)
    found = scan(drive, start, threshold, levels, slew)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "suits", lambda terms, start: False)
        wanted = scan(drive, start, threshold, levels, slew)
    for field in ("last", "spikes", "negative", "behind"):
        assert torch.equal(getattr(found.moves, field), getattr(wanted.moves, field)), field
    assert torch.equal(found.codes.map, wanted.codes.map)
    assert torch.equal(whole(found.codes), whole(wanted.codes))


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
@pytest.mark.parametrize("dims", [(1, 3), (3, 1), (3, 3)])
def test_sums_whose_channels_lie_along_different_dimensions(monkeypatch, dims):
    """As those of a convolution and of a linear layer on the same images."""
    generator = torch.Generator().manual_seed(0)

    def sums(channels: int) -> Rows:
        rows = torch.randint(-20, 40, (12, 5, 2, 5), generator=generator).float()
        scale, bias = torch.rand((2, 5), generator=generator)
        return Rows(rows, torch.arange(12).reshape(4, 3), torch.float32, 0, scale, bias, channels)

    drive = Sum((sums(dims[0]), sums(dims[1])), torch.float32)
    found = scan(drive, None, torch.tensor(1.0), Levels(0, 7), 1)
    monkeypatch.setattr(native, "suits", lambda terms, start: False)
    assert torch.equal(whole(found.codes), whole(scan(drive, None, torch.tensor(1.0), Levels(0, 7), 1).codes))


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
@pytest.mark.parametrize("slew", [2**32, 2**31, 2**70])
def test_a_slew_beyond_all_levels_does_not_wrap(slew):
    rows = Rows(torch.tensor([[9.0, 2.0]]), torch.zeros((1, 1), dtype=torch.int64), torch.float32)
    assert whole(scan(rows, None, torch.tensor(1.0), Levels(0, 7), slew).codes).flatten().tolist() == [7, 2]


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "channels"),
    [((9, 5), 2), ((6, 3, 4), 1), ((3000,), 1), ((9, 5), 1), ((2, 6, 3, 4), 1)],
)
def test_numbers_of_sums_are_what_torch_computes(monkeypatch, shape, channels, dtype):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-4000, 4000, (4, *shape), generator=generator).float().movedim(-1, channels)
    scale, bias = torch.rand((2, rows.shape[channels]), generator=generator, dtype=dtype)
    for b in (bias, None):
        sums = Rows(rows, torch.arange(4).expand(1, 4), dtype, 0, scale, b, channels)
        monkeypatch.setattr(native, "_WORTH_A_PASS", 0)
        found = native.numbers(sums)
        monkeypatch.undo()
        assert found is not None and found.dtype is dtype
        assert torch.equal(found, sums.value)  # so few numbers are left to torch


@pytest.mark.parametrize(
    "window", [([2, 2], [2, 2], [0, 0]), ([3], [2], [1]), ([3, 2], [1, 2], [1, 0]), ([2, 2], [], [0])]
)
def test_pooling_of_bytes(window):
    codes = torch.randint(0, 9, (2, 3, 11, 10), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    wanted = F.max_pool2d(codes.float(), *[tuple(w * 2)[:2] if w else None for w in window])  # type: ignore[arg-type]
    assert torch.equal(max_pool2d(codes, *window).float(), wanted)


@pytest.mark.skipif(not _trusted(128), reason="no exact 8-bit kernels here")
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("zero", [0, 3])
def test_sums_of_bytes_are_exact(groups, zero):
    generator = torch.Generator().manual_seed(groups)
    codes = torch.randint(0, 8, (3, 8, 9, 7), generator=generator).to(torch.uint8)
    weight = torch.randint(-127, 128, (16, 8 // groups, 3, 3), generator=generator).to(torch.int8)
    geometry = ([2, 1], [1, 2], [1, 2], groups)
    found = _sums(codes, _pack(weight, geometry, zero), 16, geometry, zero)
    wanted = F.conv2d(codes.double() - zero, weight.double(), None, *geometry)
    assert torch.equal(found.double(), wanted)
