"""Shorter floats than float32 are used nowhere but where they are exact, and sums on GPUs are checked."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.nn import functional as F

import spikezip
from spikezip.kernels import Rows, Synapse, full_precision, precision
from spikezip.kernels.synapse import conv2d_as_product
from spikezip.run import Engine, execute

SETTINGS = {
    "conv": torch.backends.cudnn.conv,
    "matmul": torch.backends.cuda.matmul,
    "cpu": torch.backends.mkldnn.matmul,
}


def now() -> dict[str, str]:
    return {name: place.fp32_precision for name, place in SETTINGS.items()}


@pytest.fixture
def allowed():
    """A user who allows short floats everywhere."""
    before = now()
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    yield
    for name, place in SETTINGS.items():
        place.fp32_precision = before[name]


def test_precision_is_set_within_and_given_back(allowed):
    before = now()
    with full_precision():
        assert set(now().values()) == {"ieee"}
        with precision.tf32():
            assert now() == {"conv": "tf32", "matmul": "tf32", "cpu": "ieee"}
        assert set(now().values()) == {"ieee"}
    assert now() == before
    with pytest.raises(KeyError), full_precision():
        raise KeyError
    assert now() == before


@pytest.mark.parametrize("engine", list(Engine))
def test_engines_run_in_full_precision(allowed, engine):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    images = torch.rand(4, 4)
    snn = spikezip.convert(model, images[:2], images, levels=4)
    before, seen = now(), []
    execute(snn, images, 3, engine=engine, observe=lambda *_: seen.append(now()))
    assert seen
    assert all(set(s.values()) == {"ieee"} for s in seen)
    assert now() == before


def synapse(groups: int = 1) -> Synapse:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (6, 4 // groups, 3, 3), generator=generator).to(torch.int8)
    geometry = ([2, 1], [1, 1], [1, 1], groups)
    reach = int(weight.abs().int().flatten(1).sum(1).max())
    return Synapse(weight, torch.ones(6), None, torch.float32, geometry, reach)


def some_codes(rows: int, zero: int) -> Rows:
    generator = torch.Generator().manual_seed(rows)
    bytes = torch.randint(0, 8, (rows, 4, 7, 6), generator=generator).to(torch.uint8)
    return Rows(bytes, torch.arange(rows).unsqueeze(0), torch.float32, zero, top=7)


@pytest.mark.parametrize("rows", [1, 2, 7, 33, 1025])
@pytest.mark.parametrize("zero", [0, 3])
def test_sums_in_floats_are_exact(rows, zero):
    what, codes = synapse(2), some_codes(rows, zero)
    wanted = F.conv2d(codes.rows.double() - zero, what.weight.double(), None, *what.geometry)
    found = what.in_floats(codes)
    assert found.dtype is torch.float32
    assert torch.equal(found.double(), wanted)
    assert set(what.exact.values()) == {True}


def test_few_shapes_reach_the_library():
    what = synapse()
    for rows in range(1, 130):
        assert what.in_floats(some_codes(rows, 0)).shape[0] == rows
    assert len(what.exact) <= 4 * 8


def test_an_algorithm_that_rounds_is_found_and_left(monkeypatch):
    """As Winograd's transformation would: right to five digits."""
    convolve = F.conv2d

    def rounding(operand, *rest):
        result = convolve(operand, *rest)
        return result if operand.dtype is torch.float64 else result * (1 + 2**-18)

    what, codes = synapse(), some_codes(9, 3)
    monkeypatch.setattr(F, "conv2d", rounding)
    found = what.in_floats(codes)
    monkeypatch.undo()
    assert set(what.exact.values()) == {False}
    assert torch.equal(found.double(), F.conv2d(codes.rows.double() - 3, what.weight.double(), None, *what.geometry))


@pytest.mark.parametrize(("stride", "padding"), [([1, 1], [1, 1]), ([2, 1], [0, 2])])
def test_a_convolution_as_one_product(stride, padding):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-99, 100, (3, 4, 9, 7), generator=generator).float()
    weight = torch.randint(-99, 100, (5, 4, 3, 2), generator=generator).float()
    bias = torch.arange(5.0)
    found = conv2d_as_product(x, weight, bias, stride, padding)
    assert torch.equal(found, F.conv2d(x, weight, bias, stride, padding))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_sums_that_float32_may_round_are_not_taken():
    what, codes = synapse(), some_codes(2, 0)
    assert what.takes(codes) == (what.reach * codes.top < 2**24)
    wide = Synapse(what.weight, what.scale, None, torch.float32, what.geometry, reach=2**24 // 7 + 1)
    assert not wide.takes(codes)


def test_several_threads_within_leave_what_was_before(allowed):
    before, gate = (now(), torch.backends.cudnn.enabled), threading.Barrier(2)

    def work(whole: bool) -> None:
        with full_precision(whole=whole):
            gate.wait(10)  # both are within
            with precision.tf32():
                assert set(now().values()) == {"ieee"}  # the other one has not allowed it
            gate.wait(10)
        gate.wait(10)

    workers = [threading.Thread(target=work, args=(whole,)) for whole in (True, False)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert not gate.broken
    assert (now(), torch.backends.cudnn.enabled) == before


@pytest.mark.parametrize("engine", list(Engine))
def test_autocast_changes_nothing(engine):
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU())
    images = torch.randn(32, 16)
    snn = spikezip.convert(torch.nn.Sequential(model, torch.nn.Linear(32, 5)), images[:1], images)
    truth = snn.qann(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(snn.run(images, engine=engine).logits[-1], truth)
        assert spikezip.verify(snn, images, engine=engine).equal
        assert torch.is_autocast_enabled("cpu")


def test_the_default_device_changes_nothing(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5))
    images, labels = torch.randn(8, 16), torch.arange(8) % 5
    snn = spikezip.convert(model, images[:1], images)
    truth = snn.qann(images)
    with torch.device("meta"):  # of no data: whatever is made there cannot be computed with
        for engine in Engine:
            assert torch.equal(snn.run(images, engine=engine).logits[-1], truth)
            assert spikezip.verify(snn, images, engine=engine).equal
        assert spikezip.measure(snn, images, labels)["agreement"][-1] == 1
        assert spikezip.audit(snn, images).rows
        snn.save(tmp_path / "a.spikezip")
        assert torch.equal(spikezip.load(tmp_path / "a.spikezip").run(images).logits[-1], truth)
        assert torch.get_default_device().type == "meta"
