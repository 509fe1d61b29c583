"""8-bit convolutions of every kind add up what float64's do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikezip.graph import capture
from spikezip.kernels import Rows, pack
from spikezip.kernels import synapse as synapse_module
from spikezip.kernels.synapse import Synapse, _trusted


def packed(layer: nn.Module, x: Tensor) -> Synapse | None:
    """What is made of a layer, whose weights become bytes."""
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randint(-127, 128, parameter.shape, generator=generator) * 2.0**-5
    graph = capture(nn.Sequential(layer), x).graph
    return pack(next(n for n in graph.nodes if n.op == "call_function" and "conv" in n.name))


def inputs(layer: nn.Module, zero: int) -> Rows:
    """Codes from -zero to 7 - zero, of five rows."""
    generator = torch.Generator().manual_seed(1)
    dims = layer.weight.dim() - 2  # type: ignore[union-attr,operator]
    shape = (5, layer.in_channels, *(7, 6, 5)[:dims])
    rows = torch.randint(0, 8, shape, generator=generator).to(torch.uint8)  # type: ignore[arg-type]
    return Rows(rows, torch.arange(5).unsqueeze(0), torch.float32, zero, top=7)


needs_bytes = pytest.mark.skipif(not (_trusted(128) and _trusted(128, 3)), reason="no exact 8-bit kernels here")
TAKEN = [
    nn.Conv1d(8, 12, 3),
    nn.Conv1d(8, 12, 3, stride=2, padding=2, dilation=2, bias=False),
    nn.Conv1d(8, 8, 5, padding=2, groups=8),
    nn.Conv3d(8, 12, 3, padding=1),
    nn.Conv3d(8, 12, (1, 3, 2), stride=(1, 2, 1), padding=(0, 2, 1), dilation=(1, 2, 1), groups=4),
]


@needs_bytes
@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize("layer", TAKEN, ids=repr)
def test_every_convolution_adds_up_what_float64_does(layer, zero):
    codes = inputs(layer, zero)
    synapse = packed(layer, codes.value)
    assert synapse is not None and synapse.takes(codes)
    found, wanted = synapse(codes), layer.double()(codes.value.double())
    assert found.rows.shape == wanted.shape
    assert torch.equal(found.value.double(), wanted)


def test_windows_that_see_nothing_are_left_to_torch():
    layer = nn.Conv1d(8, 12, 1, padding=1)
    assert packed(layer, inputs(layer, 0).value) is None


@needs_bytes
def test_a_shape_that_is_misread_is_left_to_torch(monkeypatch):
    """Found on a few rows, before any sum is believed; other shapes are taken."""
    layer = nn.Conv2d(8, 12, 3)
    right = synapse_module._sums

    def wrong(rows: Tensor, *how: Any) -> Tensor:
        found = right(rows, *how)
        return found + 1 if rows.shape[-1] == 6 else found

    codes = inputs(layer, 3)
    synapse = packed(layer, codes.value)
    monkeypatch.setattr(synapse_module, "_sums", wrong)
    assert synapse is not None and not synapse.takes(codes)
    assert synapse.takes(codes.with_rows(codes.rows[..., :5]))


@pytest.mark.parametrize(
    ("layer", "of"),
    [
        (nn.Conv2d(8, 16, 3, stride=(1, 2), padding=1, groups=8), slice(None)),
        (nn.Conv2d(1, 4, (2, 5), stride=(1, 2), padding=(1, 0)), slice(None)),
        (nn.Conv3d(8, 8, 3, padding=1, groups=8), slice(1)),
    ],
    ids=repr,
)
def test_narrow_groups_that_may_be_misread_are_left_to_torch(layer, of):
    """With uneven strides, or in volumes of depth 1: oneDNN does for some of them, with some numbers of rows."""
    codes = inputs(layer, 0)
    synapse = packed(layer, codes.value)
    assert synapse is not None and not synapse.takes(codes.with_rows(codes.rows[:, :, of]))
