"""The Triton kernels give the bits of the torch reference: on the CPU, in Triton's interpreter, or on a GPU.

Run by test_triton.py in a process of its own: the interpreter must be chosen before Triton is imported.
"""

from __future__ import annotations

import functools
import importlib
import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from spikezip.kernels import Rows, Sum, native, scan, triton_scan, triton_synapse
from spikezip.levels import Levels

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SCANNING = importlib.import_module("spikezip.kernels.scan")  # the package has a function of the same name


def on_device(drive: Rows | Sum) -> Rows | Sum:
    """The same stream on the device that runs the kernel; maps stay."""
    if isinstance(drive, Sum):
        return replace(drive, terms=tuple(map(on_device, drive.terms)))
    there = {k: v.to(DEVICE) for k in ("rows", "scale", "bias") if isinstance(v := getattr(drive, k), Tensor)}
    return replace(drive, **there)


def by_triton(terms: list[Rows], start: Tensor | None, every: bool):
    """In place of the choice of a kernel."""
    return functools.partial(triton_scan.scan, every=every)


def draw_map(steps: int, images: int, generator: torch.Generator) -> Tensor:
    new = torch.rand((images, steps), generator=generator) < 0.4
    new[:, 0] = True
    return (new.flatten().cumsum(0) - 1).reshape(images, steps).T.contiguous()


class Draw:
    """Streams as the sweep makes them, with ties among them."""

    def __init__(self, seed: int, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format):
        self.generator = torch.Generator().manual_seed(seed)
        self.shape, self.dtype, self.layout = shape, dtype, layout
        self.steps, self.images = 6, 3

    def rows(self, low: int, high: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        map = draw_map(self.steps, self.images, self.generator)
        size = (int(map.max()) + 1, *self.shape)
        rows = torch.randint(low, high, size, generator=self.generator).to(dtype)
        return (rows.contiguous(memory_format=self.layout) if rows.dim() == 4 else rows), map

    def floats(self) -> Rows:
        rows, map = self.rows(-40, 60, self.dtype)
        return Rows(torch.where(rows == 30, torch.nan, rows / 4), map, self.dtype)  # quarters: some at ties

    def sums(self) -> Rows:
        rows, map = self.rows(-4000, 4000, torch.float32)
        channels = 1 if rows.dim() == 4 else rows.dim() - 1
        width = rows.shape[channels]
        scale = torch.rand(width, generator=self.generator, dtype=self.dtype) / 500
        bias = torch.randn(width, generator=self.generator, dtype=self.dtype)
        return Rows(rows, map, self.dtype, 0, scale, bias, channels)

    def last_sums(self) -> Rows:
        """Of a linear layer: channels are the last dimension, and each has a scale of its own."""
        rows, map = self.rows(-4000, 4000, torch.float32)
        scale = torch.rand(rows.shape[-1], generator=self.generator, dtype=self.dtype) / 500
        return Rows(rows, map, self.dtype, 0, scale, None, rows.dim() - 1)

    def codes(self) -> Rows:
        rows, map = self.rows(0, 9, torch.uint8)
        return Rows(rows, map, self.dtype, 4, 0.7, top=8)

    def fixed(self) -> Rows:
        rows, map = self.rows(-400, 600, torch.float64)
        return Rows(rows / 64, map, self.dtype, scale=1.7, grid=(3, 40))

    def rounded(self) -> Rows:
        return replace(self.fixed(), scale=None)

    def scaled(self) -> Rows:
        """Fixed point that the kernel leaves to torch."""
        return replace(self.fixed(), scale=torch.tensor(1.7, dtype=torch.float64))


CASES = [
    # levels, slew, shape, dtype, theta, first, second, started
    (Levels(0, 7), 1, (5, 3, 4), torch.float32, 1.0, "sums", "codes", False),
    (Levels(0, 7), 1, (5, 3, 4), torch.float64, 0.37, "sums", "sums", True),
    (Levels(-4, 3), 2, (64, 7, 7), torch.float32, 0.37, "sums", None, True),
    (Levels(0, 255), 1000, (70,), torch.float32, 0.37, "floats", "codes", False),
    (Levels(-128, 127), 3, (4, 6), torch.float64, 1.0, "sums", "floats", True),
    (Levels(0, 1), 1, (1030,), torch.float32, 2.5, "floats", None, True),
    (Levels(0, 15), 1, (), torch.float32, 1.0, "floats", "floats", False),
    (Levels(0, 7), 1, (70,), torch.float32, 1.0, "fixed", "fixed", False),
    (Levels(-3, 4), 1, (5, 3, 4), torch.float64, 0.37, "rounded", "scaled", True),
    (Levels(-3, 4), 1, (70,), torch.float32, 0.37, "fixed", "rounded", True),
    (Levels(0, 7), 1, (5, 3, 4), torch.float32, 1.0, "sums", "last_sums", False),
    (Levels(0, 7), 1, (5, 3, 4), torch.float32, 1.0, "codes", "last_sums", True),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("every", [False, True], ids=["changed", "every"])
def test_triton_scan_is_the_torch_scan(monkeypatch, case, layout, every):
    levels, slew, shape, dtype, theta, first, second, started = CASES[case]
    draw = Draw(case, shape, dtype, layout)
    drive: Rows | Sum = getattr(draw, first)()
    if second:
        drive = Sum((drive, getattr(draw, second)()), dtype)
    start = None
    if started:
        size = (draw.images, *shape)
        start = torch.randint(levels.lowest, levels.highest + 1, size, generator=draw.generator).to(dtype)
    monkeypatch.setattr(native, "suits", lambda terms, start: False)
    threshold = torch.tensor(theta)
    wanted = scan(drive, start, threshold, levels, slew, every=every)
    monkeypatch.setattr(SCANNING, "_fused", by_triton)
    start = start if start is None else start.to(DEVICE)
    found = scan(on_device(drive), start, threshold.to(DEVICE), levels, slew, every=every)
    assert int(wanted.moves.spikes.sum()) > 0
    for field in ("last", "spikes", "negative", "behind"):
        assert torch.equal(getattr(found.moves, field).cpu(), getattr(wanted.moves, field)), field
    assert torch.equal(found.codes.map, wanted.codes.map)
    assert torch.equal(found.codes.rows.cpu(), wanted.codes.rows)
    assert found.codes.rows.is_contiguous(memory_format=layout) or len(shape) != 3


def test_a_whole_network_through_the_kernel(monkeypatch):
    """Every layer of a residual network with max-pooling, in chunks that settle at different steps."""
    import spikezip
    from spikezip.models import resolve
    from spikezip.run import reference, replay, sweep

    source = resolve("spikezip:digits")
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    snn = spikezip.convert(source.module, source.example, images, levels=4)
    wanted = reference(snn, (images,), 12)
    monkeypatch.setattr(SCANNING, "_fused", by_triton)
    snn.graph.to(DEVICE)
    for found in (
        sweep(snn, (images.to(DEVICE),), 12, block=5, chunk=2),
        replay(snn, (images.to(DEVICE),), 12, block=5),
    ):
        assert torch.equal(found.logits.cpu(), wanted.logits)
        assert torch.equal(found.total_spikes, wanted.total_spikes)
        assert torch.equal(found.settled_at, wanted.settled_at)


def test_only_what_lies_on_a_gpu_suits():
    rows, map = Draw(0, (3,), torch.float32, torch.contiguous_format).rows(0, 3, torch.float32)
    assert not triton_scan.suits([Rows(rows, map, torch.float32)], None)


@pytest.mark.parametrize(
    ("rows", "channels", "side", "outputs", "window", "stride", "padding", "dilation", "zero", "top"),
    [
        (3, 16, 9, 16, 3, 1, 1, 1, 0, 8),
        (5, 48, 7, 40, 3, 2, 1, 1, 3, 8),  # channels that fill no block
        (2, 32, 12, 33, 5, 1, 4, 2, 7, 14),
        (4, 130, 5, 70, 1, 2, 0, 1, 0, 127),
    ],
)
def test_sums_of_a_convolution(rows, channels, side, outputs, window, stride, padding, dilation, zero, top):
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(0, top + 1, (rows, channels, side, side), generator=generator).to(torch.uint8)
    weight = torch.randint(-127, 128, (outputs, channels, window, window), generator=generator).to(torch.int8)
    geometry = ([stride] * 2, [padding] * 2, [dilation] * 2, 1)
    held = Rows(codes.to(DEVICE), torch.zeros((1, 1), dtype=torch.int64), torch.float32, zero, top=top)
    assert triton_synapse.fits(held, weight, geometry)
    found = triton_synapse.sums(held, weight.to(DEVICE), geometry, {})
    wanted = torch.nn.functional.conv2d(codes.double() - zero, weight.double(), None, *geometry)
    assert torch.equal(found.cpu().double(), wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(5, 64), (3, 7, 33)])
def test_sums_of_a_linear_layer(shape):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 9, shape, generator=generator).to(torch.uint8)
    weight = torch.randint(-127, 128, (48, shape[-1]), generator=generator).to(torch.int8)
    held = Rows(codes.to(DEVICE), torch.zeros((1, 1), dtype=torch.int64), torch.float32, 4, top=8)
    found = triton_synapse.sums(held, weight.to(DEVICE), None, {})
    assert torch.equal(found.cpu().double(), torch.nn.functional.linear(codes.double() - 4, weight.double()))


def test_what_the_kernel_for_sums_leaves_to_others():
    weight = torch.ones((8, 16, 3, 3), dtype=torch.int8)
    plain = ([1, 1], [1, 1], [1, 1], 1)

    def codes(**changes) -> Rows:
        rows = torch.zeros((2, 16, 5, 5), dtype=torch.uint8)
        return Rows(rows, torch.zeros((1, 1), dtype=torch.int64), torch.float32, **{"top": 8, **changes})

    assert triton_synapse.fits(codes(), weight, plain)
    assert not triton_synapse.suits(codes(), weight, plain)  # they lie on a CPU
    assert not triton_synapse.fits(codes(top=255), weight, plain)  # more than a signed byte holds
    assert triton_synapse.fits(codes(top=255, zero=128), weight, plain)
    assert not triton_synapse.fits(codes(), weight[:, :3], plain)  # too few channels to pay
    assert not triton_synapse.fits(codes(), weight, (*plain[:3], 2))
