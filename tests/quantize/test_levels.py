"""Levels: what may be, and the numbers that follow."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from spikezip.errors import StageError
from spikezip.levels import Levels


@pytest.mark.parametrize(
    ("levels", "lowest", "highest", "count", "range_"),
    [
        (Levels.unsigned(8), 0, 7, 8, 7),
        (Levels.unsigned(2), 0, 1, 2, 1),
        (Levels.signed(8), -4, 3, 8, 7),
        (Levels.signed(9), -4, 4, 9, 8),
        (Levels.signed(2), -1, 0, 2, 1),
        (Levels(-3, 5), -3, 5, 9, 8),
        (Levels(-2, 0), -2, 0, 3, 2),
    ],
    ids=str,
)
def test_numbers(levels: Levels, lowest: int, highest: int, count: int, range_: int):
    assert (levels.lowest, levels.highest, levels.count, levels.range) == (lowest, highest, count, range_)
    assert all(type(n) is int for n in (levels.lowest, levels.highest, levels.count, levels.range))


@pytest.mark.parametrize(("lowest", "highest"), [(0, 0), (1, 2), (-2, -1), (3, 1), (1, 0), (0, -1)])
def test_a_range_that_is_empty_or_without_zero_is_refused(lowest: int, highest: int):
    with pytest.raises(StageError, match=f"levels {lowest}\\.\\.{highest} are not admissible"):
        Levels(lowest, highest)


@pytest.mark.parametrize(("lowest", "highest"), [(0, 7.5), (0, 7.0), (-1.0, 1), (0, True), (None, 7)])
def test_ends_are_whole_numbers(lowest, highest):
    with pytest.raises(StageError, match=rf"levels {lowest}\.\.{highest}: give whole numbers"):
        Levels(lowest, highest)


def test_levels_are_a_value():
    assert Levels(0, 7) == Levels.unsigned(8)
    assert len({Levels(0, 7), Levels.unsigned(8)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        Levels(0, 7).highest = 8  # type: ignore[misc]


def test_codes_round_ties_up_and_stop_at_both_ends():
    drive = torch.tensor([-9.0, -1.25, -0.75, -0.26, -0.25, 0.0, 0.24, 0.25, 0.75, 1.24, 1.25, 9.0])
    wanted = torch.tensor([-2.0, -2.0, -1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    assert torch.equal(Levels(-2, 3).codes(drive, 0.5), wanted)
    assert torch.equal(Levels(-2, 3).codes(drive, torch.tensor(0.5)), wanted)


@pytest.mark.parametrize(
    ("lowest", "highest", "wanted"),
    [(0, 127, torch.int8), (-128, 127, torch.int8), (0, 128, torch.int16), (-129, 0, torch.int16),
     (0, 32768, torch.int32), (0, 2**31, torch.int64)],
)  # fmt: skip
def test_storage_is_the_shortest_type_that_holds_every_level(lowest, highest, wanted):
    assert Levels(lowest, highest).storage is wanted
