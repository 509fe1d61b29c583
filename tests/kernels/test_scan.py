"""The scan over a block of steps is the neuron layer, step by step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikezip.kernels import SMOOTH, Rows, Smooth, gather, native, scan
from spikezip.levels import Levels
from spikezip.spike import STBIF

_few = st.tuples(st.integers(-5, 0), st.integers(0, 9)).filter(lambda p: p[0] < p[1]).map(lambda p: Levels(*p))
_ranges = _few | st.sampled_from([Levels(-128, 127), Levels(0, 255), Levels(-3, 200)])  # all that a byte tells apart


@settings(deadline=None, max_examples=80)
@given(
    levels=_ranges,
    slew=st.sampled_from([1, 2, 5, 100]),
    steps=st.integers(1, 9),
    still=st.booleans(),
    shape=st.sampled_from([(1, 3), (3, 5), (2, 2, 3, 3), (4, 1)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_scan_is_the_neuron_step_by_step(levels, slew, steps, still, shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand((), generator=generator, dtype=dtype) + 0.1
    drive = torch.randn((1 if still else steps, *shape), generator=generator, dtype=dtype) * 5 * theta
    # Half of the drives at ties.
    ties = torch.rand(drive.shape, generator=generator) < 0.5
    drive = torch.where(ties, torch.round(2 * drive / theta) / 2 * theta, drive)
    drive = torch.where(torch.rand(drive.shape, generator=generator) < 0.05, torch.nan, drive)
    start = torch.randint(levels.lowest, levels.highest + 1, shape, generator=generator).to(dtype)

    given_drive, given_start = drive.clone(), start.clone()
    images = torch.arange(shape[0])
    map = images.expand(steps, -1) if still else torch.arange(steps * shape[0]).reshape(steps, -1)
    what = scan(Rows(drive.flatten(0, 1), map, dtype), start, theta, levels, slew)
    codes = (
        gather(what.codes.rows, what.codes.map.flatten()).to(dtype).unflatten(0, (steps, shape[0])) - what.codes.zero
    )
    values = gather(what.codes.value, what.codes.map.flatten()).unflatten(0, (steps, shape[0]))
    assert torch.equal(drive.nan_to_num(0.3), given_drive.nan_to_num(0.3))
    assert torch.equal(start, given_start)

    assert what.codes.rows.shape[0] == shape[0] + int((what.moves.spikes[1:] > 0).sum()), "no row for nothing"
    neuron, now = STBIF(levels, theta, slew), start
    for k in range(steps):
        u = drive[0 if still else k]
        after = neuron(u, now)
        move = (after - now).flatten(1)
        assert torch.equal(codes[k], after)
        assert torch.equal(values[k], after * theta)
        assert torch.equal(what.moves.spikes[k], move.abs().sum(1).long())
        assert torch.equal(what.moves.negative[k], (-move).clamp(min=0).sum(1).long())
        assert torch.equal(what.moves.behind[k], (after != neuron.target(u)).flatten(1).any(1))
        now = after
    assert torch.equal(what.moves.last.to(dtype), now)
    assert (what.moves.last.shape, what.moves.last.dtype, what.codes.value.dtype) == (shape, levels.storage, dtype)


@pytest.mark.parametrize("slew", [1, 3])
def test_tracers_that_begin_past_their_limits_come_back(monkeypatch, slew):
    monkeypatch.setattr(native, "_WORTH_COMPILING", 0)
    start = torch.tensor([[40, 0, 100], [0, 0, 0]], dtype=torch.int8)
    drive = Rows(torch.tensor([[0.0, 7.0, 7.0], [0.0, 7.0, 0.0]]), torch.arange(2).expand(120, -1), torch.float32)
    found = scan(drive, start, torch.tensor(1.0), Levels(-2, 7), slew)
    assert found.moves.last.tolist() == [[0, 7, 7], [0, 7, 0]]
    assert found.moves.spikes.sum(0).tolist() == [40 + 7 + 93, 7]
    assert found.moves.behind.sum(0).tolist() == [-(-93 // slew) - 1, -(-7 // slew) - 1]


def check_estimated(smooth, drive, levels):
    """That the kernel takes a function, and gives what torch's gives; which is returned."""
    assert native.suits([drive], None)
    assert native.suits_smooth(smooth, [drive], 1.0, levels)
    found = scan(drive, None, torch.tensor(1.0), levels, 100, smooth=smooth)
    wanted = scan(smooth(drive), None, torch.tensor(1.0), levels, 100)
    assert torch.equal(found.codes.rows, wanted.codes.rows)
    assert torch.equal(found.moves.spikes, wanted.moves.spikes)
    return wanted


@pytest.mark.parametrize("factor", [0.31, 1.0, 5.875, 700.0])
@pytest.mark.parametrize("name", [name for name in SMOOTH if name != "softmax"])
def test_a_function_that_is_estimated_gives_the_codes_of_the_exact_one(monkeypatch, name, factor):
    """Values of all sizes, and the nearest neighbours of each at which the code changes."""
    monkeypatch.setattr(native, "_WORTH_COMPILING", 0)
    if native.library() is None:
        pytest.skip("no C++ compiler here")
    smooth, levels = Smooth(name, factor, 12, 2**23), Levels(-3, 12)
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(4000, generator=generator) * 10 ** torch.empty(4000).uniform_(-6, 6, generator=generator)
    fine = torch.linspace(-8, 8, 1 << 18)
    code = (getattr(torch.nn.functional, name)(fine.double()) * factor + 0.5).floor().clamp(-3, 12)
    edges = [fine[:-1][code.diff() != 0]]
    for step in range(1, 200):  # past 2**-13 of a code where the function is steep
        for towards in (torch.inf, -torch.inf):
            edges.append(edges[0] + step * 1e-6 * torch.tensor(towards).sign())
    for end in (torch.nan, torch.inf, -torch.inf, 0.0):
        wide = torch.cat([wide, torch.tensor([end])])
    x = torch.cat([wide, *edges])
    x = x[: len(x) // 8 * 8].reshape(2, -1, 4)
    map = torch.arange(2)[:, None]
    scale, bias = torch.tensor([0.5, 0.25, 1.0, 2.0]), torch.tensor([0.0, 1.0, -0.5, 0.125])
    drives = [
        Rows(x, map, torch.float32),
        Rows((x - bias) / scale, map, torch.float32, scale=scale, bias=bias, channels=2),
    ]
    for drive in drives:
        check_estimated(smooth, drive, levels)


@pytest.mark.parametrize("factor", [1.0, 12.5, 1080.0])
@pytest.mark.parametrize("span", [1, 7, 197, 700])
def test_a_softmax_that_is_estimated_gives_the_codes_of_the_exact_one(monkeypatch, factor, span):
    """Rows of all widths; flat, spread and one-sided ones; masked values, and what is no number."""
    monkeypatch.setattr(native, "_WORTH_COMPILING", 0)
    if native.library() is None:
        pytest.skip("no C++ compiler here")
    softmax, levels = Smooth("softmax", factor, 12, 2**23), Levels(-1, 12)
    generator = torch.Generator().manual_seed(span)
    x = torch.randn(2, 300, span, generator=generator) * torch.logspace(-3, 2, 300)[:, None]
    x[:, :20] = 0.25
    x[:, 20:40] = x[:, 20:40].masked_fill(torch.rand(2, 20, span, generator=generator) < 0.5, -torch.inf)
    x[:, 40:44, :: max(1, span // 3)] = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38])[:, None]
    x[:, 44] = -torch.inf
    map = torch.arange(2)[:, None]
    for drive in (
        Rows(x, map, torch.float32),
        Rows(x, map, torch.float32, scale=0.3),
        Rows(x[:, None], map, torch.float32),
    ):
        wanted = check_estimated(softmax, drive, levels)
    assert len(wanted.codes.rows.unique()) > (1 if span == 1 or factor == 1 else 3)
