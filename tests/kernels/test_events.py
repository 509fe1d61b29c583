"""The event-driven kernel gives the dense sums, to the bit, for any window, change of codes, and order of rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spikezip.kernels import Rows, Sum, events, native, scan
from spikezip.kernels.rows import Coming
from spikezip.levels import Levels


def costs(**others: float) -> dict[Any, Any]:
    """What a layer keeps once it has been timed; by default nothing but dense rows costs anything."""
    free = dict.fromkeys(("apart", "looked", "fixed", "change"), 0.0)
    return {("costs", torch.get_num_threads()): events.Costs(**{"dense": 1.0, **free, **others})}


# Input and output channels, size of the image, window, stride, padding.
WINDOWS = [
    (8, 5, (6, 7), (3, 3), [1, 1], [1, 1]),
    (16, 64, (9, 5), (3, 2), [2, 1], [0, 1]),
    (64, 130, (4, 4), (3, 3), [2, 2], [1, 1]),
    (8, 70, (5, 5), (1, 1), [2, 2], [0, 0]),
    (8, 3, (2, 3), (5, 7), [1, 3], [4, 5]),
    (256, 64, (3, 4), (3, 3), [1, 1], [1, 1]),  # a line of the window is more than the fastest cache holds,
    (1024, 5, (3, 3), (1, 2), [1, 2], [0, 1]),  # and here a pixel
    (8, 4, (2, 70), (2, 3), [1, 1], [0, 1]),  # a line of sums is more than is held at once
    (16, 16, (6, 6), (3, 3), [1, 1], [1, 1]),  # as many outputs as the kernel takes at a time: 16,
    (24, 17, (5, 6), (3, 3), [2, 2], [1, 1]),  # 32, not all of them used,
    (512, 32, (3, 5), (1, 3), [1, 1], [0, 1]),  # and all
    (8, 4, (3, 3), (2, 1), [1, 1], [3, 3]),  # windows that lie beside the image
    (40, 9, (4, 6), (3, 3), [1, 1], [1, 1]),  # changes are looked for in 32 channels, then in the 8 that are left
]

GEOMETRY = ([1, 1], [1, 1], [1, 1], 1)  #: of a window of 3 x 3 that leaves the size as it is

#: As on processors that lack what this one may have; what it lacks is told alike.
LACKING = [(), ("-U__AVX512VNNI__",), ("-U__AVX512VBMI2__",)]


@pytest.fixture(autouse=True, params=LACKING, ids=lambda flags: " ".join(flags) or "native")
def compiled(request, monkeypatch):
    monkeypatch.setattr(events, "_WORTH", 0)
    monkeypatch.setattr(native, "_FLAGS", [*native._FLAGS, *request.param])
    monkeypatch.setattr(native, "_loaded", {})
    native._path.cache_clear()
    if not hasattr(native.library(), "spikezip_events"):
        pytest.skip("no C++ compiler, or no AVX2, here")
    yield
    native._path.cache_clear()


def draw(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))


def codes(steps: int, images: int, shape: tuple[int, ...], top: int, zero: int, share: float) -> Rows:
    """Codes in which a share of the neurons jumps at every step, rows in an order that is nobody's."""
    jumps = torch.rand((steps, images, *shape), generator=torch.Generator().manual_seed(1)) < share
    values = draw(0, top, steps, images, *shape)
    for t in range(1, steps):
        values[t] = torch.where(jumps[t], values[t], values[t - 1])
    places = torch.randperm(steps * images, generator=torch.Generator().manual_seed(2)).reshape(steps, images)
    rows = torch.empty((steps * images, *shape), dtype=torch.uint8)
    rows[places.flatten()] = values.flatten(0, 1).to(torch.uint8)
    # Nothing happens at the second step.
    map = torch.cat([places[:1], places])
    return Rows(rows, map, torch.float32, zero, top=top)


def computed(given: Rows, weight: Tensor, geometry: Any, packed: dict[Any, Any], dense: events.Dense) -> Tensor:
    """Sums, whoever computes them."""
    begun = events.begin(given, weight, geometry, packed, dense)
    return begun.sums() if isinstance(begun, events.Pending) else begun


def groups_of(given: Rows, weight: Tensor) -> events.Groups:
    """How rows are taken together."""
    found = events._changes(native.library(), events._shape(given.rows, weight, GEOMETRY), given)
    assert found is not None
    return found


def work_of(differ: int, rows: int, outputs: int) -> int:
    """What some rows cost in which so many neurons differ, by the kernel's own measure; 3 x 3 windows."""
    if native.library().spikezip_together() == 2:
        return differ
    return differ * [30, 35, 40, 48, 56, 66][rows - 1] + int(outputs / 9 * (3000 + 650 * rows))


def never(rows: Tensor) -> Tensor:
    raise AssertionError("no row was to be computed densely")


@pytest.mark.parametrize("window", WINDOWS, ids=repr)
@pytest.mark.parametrize(("top", "zero"), [(1, 0), (7, 3), (64, 64)])
def test_convolutions(window, top, zero):
    inputs, outputs, size, kernel, stride, padding = window
    weight = draw(-127, 127, outputs, inputs, *kernel).to(torch.int8)
    weight[0], weight[-1] = 127, -127
    given = codes(3, 2, (inputs, *size), top, zero, 0.5)
    found = computed(given, weight, (stride, padding, [1, 1], 1), costs(), never)
    wanted = F.conv2d(given.rows.double() - zero, weight.double(), None, stride, padding)
    assert torch.equal(found.double(), wanted)


@pytest.mark.parametrize("places", [(), (5,), (2, 3)])
def test_linear_layers(places):
    weight = draw(-127, 127, 70, 24).to(torch.int8)
    given = codes(4, 3, (*places, 24), 7, 2, 0.3)
    found = computed(given, weight, None, costs(), never)
    assert torch.equal(found.double(), F.linear(given.rows.double() - 2, weight.double()))


@pytest.mark.parametrize(("tokens", "rows"), [(2, 1 << 14), (6, 6), (9, 6)])
def test_linear_layers_whose_images_lie_along_the_second_dimension(tokens, rows):
    """Seen along the first, a row of so many would lie gigabytes behind the last."""
    weight = draw(-127, 127, 3, 16).to(torch.int8)
    values = draw(0, 7, tokens, rows, 16).to(torch.uint8)
    map = torch.arange(rows).reshape(-1, 2)
    wanted = F.linear(values.float() - 2, weight.float())

    def dense(rows: Tensor) -> Tensor:
        return F.linear(rows.float() - 2, weight.float())

    found = computed(Rows(values, map, torch.float32, 2, top=7), weight, None, costs(), dense)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("outputs", [16, 32, 64])
def test_sums_of_many_changes_do_not_overflow(outputs):
    """All that can change, by as much as it can, in one direction: sums pass 16 bits many times over."""
    weight = torch.full((outputs, 512, 3, 3), -127, dtype=torch.int8)
    rows = torch.stack([torch.zeros(512, 3, 3), torch.full((512, 3, 3), 64.0)]).to(torch.uint8)
    given = Rows(rows, torch.tensor([[0], [1]]), torch.float32, 0, top=64)
    found = computed(given, weight, GEOMETRY, costs(), never)
    assert torch.equal(found.double(), F.conv2d(rows.double(), weight.double(), None, 1, 1))


def check_scan(drive: Rows | Sum, now: Rows | Sum, images: int, levels: Levels, slew: int) -> None:
    """That neurons do the same, in every block, whether their drive is computed on the way or lies there."""
    start = None
    for _ in range(2):
        found, wanted = (scan(d, start, torch.tensor(1.0), levels, slew) for d in (drive, now))
        assert torch.equal(found.codes.rows, wanted.codes.rows)
        assert found.codes.rows.is_contiguous() == wanted.codes.rows.is_contiguous()
        assert torch.equal(found.codes.map, wanted.codes.map)
        for name in ("last", "spikes", "negative", "behind"):
            assert torch.equal(getattr(found.moves, name), getattr(wanted.moves, name)), name
        start = found.moves.last
    assert int(found.moves.spikes.sum()) > 0, "in the second block too"


def coming(pending: Any, given: Rows, weight: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Coming, Rows]:
    """Sums that are still to be computed, each scaled into the range of a few levels; and the same, computed."""
    assert isinstance(pending, events.Pending)
    if not pending.may_scan:
        pytest.skip("no dot products of bytes here")
    channels = 1 if weight.dim() == 4 else len(pending.size) - 1
    scale = torch.exp2(draw(-12, -9, weight.shape[0])).to(dtype)
    bias = draw(-8, 8, weight.shape[0], seed=3).to(dtype) / 4
    found = Coming(pending.room("meta"), given.map, dtype, 0, scale, bias, channels, pending=pending)
    return found, found.now()


@pytest.mark.parametrize("window", WINDOWS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convolutions_with_the_scan_of_the_neurons_behind(window, dtype):
    inputs, outputs, size, kernel, stride, padding = window
    weight = draw(-127, 127, outputs, inputs, *kernel).to(torch.int8)
    given = codes(5, 3, (inputs, *size), 7, 3, 0.4)
    pending = events.begin(given, weight, (stride, padding, [1, 1], 1), costs(), never)
    check_scan(*coming(pending, given, weight, dtype), 3, Levels(-2, 5), 1)


@pytest.mark.parametrize("places", [(), (5,), (2, 3)])
def test_linear_layers_with_the_scan_of_the_neurons_behind(places):
    weight = draw(-127, 127, 70, 24).to(torch.int8)
    given = codes(4, 3, (*places, 24), 7, 2, 0.3)
    check_scan(*coming(events.begin(given, weight, None, costs(), never), given, weight), 3, Levels(0, 7), 2)


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (2, 1), (3, 2)])
def test_sums_that_are_scanned_part_by_part(stride, kernel):
    """More than is held at once; some rows given, a second term that changes at other steps, and sums of its own."""
    size = 48 * stride
    weight = draw(-127, 127, 24, 16, kernel, kernel).to(torch.int8)
    given = codes(12, 2, (16, size, 40), 7, 0, 0.02)
    geometry = ([stride, 1], [kernel // 2, kernel // 2], [1, 1], 1)

    def dense(rows: Tensor) -> Tensor:
        return F.conv2d(rows.float(), weight.float(), None, *geometry)

    shape = events._shape(given.rows, weight, geometry)
    groups = events._changes(native.library(), shape, given)
    work = groups.work / groups.rows
    middle = float(work.min() + work.max()) / 2
    pending = events.begin(given, weight, geometry, costs(dense=middle, change=1.0), dense)
    found, now = coming(pending, given, weight)
    assert torch.equal(now.rows, dense(given.rows))
    assert pending.given is not None
    assert pending.size[0] * pending.size[1] * pending.size[2] * pending.size[3] > 4 << 16, "many parts"
    check_scan(found, now, 2, Levels(0, 7), 1)
    other = codes(12, 2, tuple(pending.size[1:]), 7, 0, 0.3)
    still = torch.arange(2).expand(13, 2)
    second = Rows(other.rows[:2].contiguous(memory_format=torch.channels_last), still, torch.float32, 1, 0.25, top=7)
    check_scan(Sum((second, found), torch.float32), Sum((second, now), torch.float32), 2, Levels(0, 7), 1)
    check_scan(Sum((found, found), torch.float32), Sum((now, now), torch.float32), 2, Levels(0, 7), 1)


def test_numbers_of_sums_that_are_still_to_be_computed():
    weight = draw(-127, 127, 16, 16, 3, 3).to(torch.int8)
    given = codes(4, 2, (16, 5, 5), 7, 0, 0.2)
    found, now = coming(events.begin(given, weight, GEOMETRY, costs(), never), given, weight)
    assert torch.equal(found.value, now.value)
    assert torch.equal(found.numbers().value, now.value)
    other = Rows(torch.randn(2, 16, 5, 5), torch.arange(2).expand(5, 2), torch.float32)
    assert torch.equal(Sum((found, other), torch.float32).value, Sum((now, other), torch.float32).value)
    wide = Levels(0, 300)  # more than bytes tell apart: torch scans
    what = [scan(drive, None, torch.tensor(1.0), wide, 1).codes.value for drive in (found, now)]
    assert torch.equal(*what)


def test_rows_in_which_much_changed_are_computed_densely():
    weight = draw(-127, 127, 64, 16, 3, 3).to(torch.int8)
    given = codes(16, 2, (16, 5, 5), 7, 0, 0.02)
    asked = []

    def dense(rows: Tensor) -> Tensor:
        asked.append(rows.shape[0])
        return F.conv2d(rows.float(), weight.float(), None, 1, 1)

    groups = groups_of(given, weight)
    work = groups.work / groups.rows  # what an image begins with is more, what follows less
    middle = float(work.min() + work.max()) / 2
    found = computed(given, weight, GEOMETRY, costs(dense=middle, change=1.0), dense)
    much = int(groups.rows[work > middle].sum())
    assert asked == [much]
    assert 0 < much < 16
    wanted = F.conv2d(given.rows.float(), weight.float(), None, 1, 1)
    assert torch.equal(found, wanted)
    assert torch.equal(computed(given, weight, GEOMETRY, costs(dense=0.0), dense), wanted)
    assert asked == [much, 32]


@pytest.mark.parametrize("zero", [0, 3])
def test_rows_are_taken_together_as_they_follow_one_another(zero):
    """Each once, with the row before it, or with none where fewer neurons are active than change."""
    given = codes(16, 2, (16, 5, 5), 7, zero, 0.1)
    given.rows[given.map[7:, 1]] = zero  # the second image falls silent
    groups = groups_of(given, draw(-127, 127, 64, 16, 3, 3).to(torch.int8))
    most = 6 if native.library().spikezip_together() == 4 else 1
    order = [int(row) for b in (0, 1) for row in given.map[1:, b]]
    assert groups.order.tolist() == groups.places().tolist() == order
    assert groups.first.tolist() == [0, *groups.rows.cumsum(0).tolist()[:-1]]
    assert set(groups.rows.tolist()) <= set(range(1, most + 1))
    of_each = (v.tolist() for v in (groups.first, groups.rows, groups.before, groups.work))
    for first, count, before, work in zip(*of_each, strict=True):
        assert before in ({-1} if first % 16 == 0 else {-1, order[first - 1]})
        last = given.rows[before] if before >= 0 else torch.full_like(given.rows[0], zero)
        differ = (given.rows[order[first : first + count]] != last).any(0)
        assert work == work_of(int(differ.sum()), count, 25)
    assert {before >= 0 for before in groups.before[groups.first % 16 > 0].tolist()} == {True, False}


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_rows_are_taken_together_where_that_costs_least(share):
    """Of all ways to part the rows of an image, none costs less."""
    given = codes(7, 1, (16, 4, 4), 7, 0, share)
    order = given.map[1:, 0]
    most = 6 if native.library().spikezip_together() == 4 else 1

    def cost(first: int, end: int) -> int:
        before = [torch.zeros_like(given.rows[0]), *(given.rows[row] for row in order[first - 1 : first])]
        differ = [(given.rows[order[first:end]] != some).any(0).sum() for some in before]
        return work_of(int(min(differ)), end - first, 16)

    def least(end: int) -> int:
        return min((least(first) + cost(first, end) for first in range(max(0, end - most), end)), default=0)

    groups = groups_of(given, draw(-127, 127, 64, 16, 3, 3).to(torch.int8))
    assert int(groups.work.sum()) == least(7)


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_of_many_neurons_a_part_is_counted(share):
    active = torch.rand((1, 64, 32, 32), generator=torch.Generator().manual_seed(0)) < share
    given = Rows(active.to(torch.uint8), torch.zeros((1, 1), dtype=torch.int64), torch.float32, 0, top=1)
    groups = groups_of(given, draw(-127, 127, 64, 64, 3, 3).to(torch.int8))
    assert int(groups.work) == pytest.approx(work_of(int(active.sum()), 1, 1024), rel=0.25)


def test_what_it_does_not_take():
    weight = draw(-127, 127, 8, 8, 3, 3).to(torch.int8)
    given = codes(2, 2, (8, 5, 5), 7, 0, 0.5)

    def taken(given: Rows, weight: Tensor, geometry) -> bool:
        left = torch.empty(0)
        return computed(given, weight, geometry, costs(), lambda rows: left) is not left

    assert taken(given, weight, GEOMETRY)
    assert not taken(given, weight, ([1, 1], [1, 1], [2, 2], 1))
    assert not taken(given, weight[:, :4], ([1, 1], [1, 1], [1, 1], 2))
    assert not taken(codes(2, 2, (8, 5, 5), 65, 0, 0.5), weight, GEOMETRY)
    assert not taken(codes(2, 2, (12, 5, 5), 7, 0, 0.5), draw(-127, 127, 8, 12, 3, 3).to(torch.int8), GEOMETRY)
    shared = given.with_rows(given.rows, given.map[:, :1].expand(-1, 2))  # the second image's rows are nobody's
    assert not taken(shared, weight, GEOMETRY)


def test_rows_are_parted_only_where_that_pays():
    rows, work = [1, 2, 1, 1], [500, 200, 150, 190]
    every = {"dense": 200.0, "change": 1.0}

    def parted(**others: float) -> list[bool] | None:
        choice = costs(**every, **others).popitem()[1].sparse(rows, work)
        return choice and choice[0]

    assert parted() == [False, True, True, True]
    # 260 are saved: not enough for one row apart, or for a look at five, that costs more.
    assert parted(apart=250.0) == [False, True, True, True]
    assert parted(apart=270.0) is None
    assert parted(looked=51.0) == [False, True, True, True]
    assert parted(looked=53.0) is None
    assert parted(fixed=60.0) == [False, True, False, False]
    # 740 were expected, for 1000.
    assert parted(dearer=1.2) == [False, True, True, False]
    assert parted(dearer=1.4) is None
    assert costs(**every).popitem()[1].sparse([1, 1], [300, 200]) is None


def test_first_choices_prefer_changes():
    known = events.Costs(dense=200.0, apart=0.0, looked=0.0, fixed=0.0, change=1.0, trials=2)
    assert [known.sparse([1], [290]) for _ in range(3)] == [([True], 290.0), ([True], 290.0), None]
    known.trials = 1
    assert known.sparse([1], [310]) is None


def test_what_was_expected_is_held_against_what_it_took():
    known = events.Costs(dense=200.0, apart=0.0, looked=0.0, fixed=0.0, change=1.0)
    choice = known.sparse([1, 1], [150, 150])
    assert choice == ([True, True], 300.0)
    for _ in range(4):
        known.took(420.0, 300.0)  # not once: something else may have run
    assert known.dearer == 1.4
    assert known.sparse([1, 1], [150, 150]) is None
    known.took_densely(430.0, 2)
    assert known.dense == 215.0
    assert known.sparse([1, 1], [150, 150]) == ([True, True], 300.0)
    known.took(1e6, 300.0)
    known.took_densely(1e6, 2)
    assert known.dearer == pytest.approx(1.54)
    assert known.dense == pytest.approx(236.5)
    known.took(270.0, 300.0)
    known.took_densely(380.0, 2)
    assert (known.dearer, known.dense) == (0.9, 190.0)


def test_a_layer_is_timed_when_it_is_first_met():
    weight = draw(-127, 127, 64, 64, 3, 3).to(torch.int8)
    given = codes(6, 3, (64, 8, 8), 7, 0, 0.05)
    wanted = F.conv2d(given.rows.float(), weight.float(), None, 1, 1)
    packed: dict[Any, Any] = {}

    def slow(rows: Tensor) -> Tensor:
        """Many times what the kernel needs."""
        for _ in range(50):
            sums = F.conv2d(rows.float(), weight.float(), None, 1, 1)
        return sums

    assert torch.equal(computed(given, weight, GEOMETRY, packed, slow), wanted)
    found = packed["costs", torch.get_num_threads()]
    assert found.dense > found.fixed + 60 * found.change >= found.fixed >= 0
    assert min(found.apart, found.looked, found.change) > 0


def test_first_calls_are_dense_and_say_what_that_costs(monkeypatch):
    weight = draw(-127, 127, 64, 64, 3, 3).to(torch.int8)
    given = codes(6, 3, (64, 8, 8), 7, 0, 0.05)
    trials = events._costs
    monkeypatch.setattr(events, "_costs", lambda *args: replace(trials(*args), dense=800.0, change=0.0))
    monkeypatch.setattr(
        events.Costs, "took_densely", lambda self, seconds, rows: setattr(self, "dense", self.dense / 2)
    )
    left, packed = torch.empty(0), {}
    found = [
        computed(
            given,
            weight,
            GEOMETRY,
            packed,
            lambda rows: F.conv2d(rows.float(), weight.float(), None, 1, 1),
        )
        for _ in range(3)
    ]
    assert packed["costs", torch.get_num_threads()].dense == 100.0
    assert computed(given, weight, GEOMETRY, packed, lambda rows: left) is not left
    assert torch.equal(found[0], found[2])


def test_a_layer_that_gains_nothing_is_looked_at_less_and_less(monkeypatch):
    weight = draw(-127, 127, 16, 16, 3, 3).to(torch.int8)
    given = codes(4, 2, (16, 5, 5), 7, 0, 0.2)
    looks = []
    look = events._changes
    monkeypatch.setattr(events, "_changes", lambda *args: [looks.append(1), look(*args)][1])
    known = costs(dense=1.0, change=1.0)
    left = torch.empty(0)
    monkeypatch.setattr(events.Costs, "took_densely", lambda *seconds: None)
    monkeypatch.setattr(events.Costs, "took", lambda *seconds: None)

    def sums() -> Tensor:
        return computed(given, weight, GEOMETRY, known, lambda rows: left)

    def looked(calls: int) -> list[int]:
        """In which of some calls it looked."""
        found = []
        for call in range(calls):
            before = len(looks)
            assert sums() is left
            found += [call] * (len(looks) - before)
        return found

    assert looked(50) == [0, 3, 8, 17, 34]
    next(iter(known.values())).change = 0.0
    found = [sums() for _ in range(17)]
    assert [f is not left for f in found[-2:]] == [True, True], "it pays now, so it is looked at every time"
    next(iter(known.values())).rest = -1  # two threads counted the last call that was to be left out
    assert sums() is not left
