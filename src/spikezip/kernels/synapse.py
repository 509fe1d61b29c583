"""Convolutions and linear layers with integer weights on integer codes, in the shortest numbers that stay exact.

On CPUs these are oneDNN's 8-bit kernels, on GPUs one of our own (:mod:`~spikezip.kernels.triton_synapse`), or, for what
it does not take, float32 multiplied as TF32: every weight and every code is a whole number of at most 8 binary digits,
and their sums are proven to stay below 2^24.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from spikezip.graph import network, ops
from spikezip.kernels import events
from spikezip.kernels.alone import is_alone
from spikezip.kernels.precision import TF32_WHOLE, tf32
from spikezip.kernels.rows import DIGITS, Coming, Joined, Rows, Sum
from spikezip.quantize.grid import Grid, dyadic_exponent, per_channel

_aten, _onednn = torch.ops.aten, torch.ops.onednn
_CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)
_EXACT = 2**24  #: whole numbers up to here are float32s
_WINDOWS = 1 << 26  #: values of windows that are written out at once
_TRIED = 3  #: rows of each new shape that oneDNN is tried on
_CHECKED = 8  #: rows of each new shape that are computed once more in float64


@dataclass(frozen=True)
class Synapse:
    """A convolution or linear layer whose weights are bytes times a power of two per output channel.

    Attributes:
        weight: the whole numbers, ``[out, ...]`` int8; of a convolution along a line, as of images of height 1.
        scale: the power of two of each output channel.
        bias: of each output channel, or None.
        dtype: of the result.
        geometry: stride, padding, dilation and groups of a convolution; None for a linear layer.
        reach: the greatest ``sum |w|`` of an output channel.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    geometry: tuple[list[int], list[int], list[int], int] | None
    reach: int
    packed: dict[Any, Any] = field(default_factory=dict)  # by what stands for 0: oneDNN folds it into the weights
    exact: dict[torch.Size, bool] = field(default_factory=dict)  # found for shapes of rows, or (on GPUs) of operands

    def takes(self, codes: Rows) -> bool:
        """Whether the sums over these codes are exact here."""
        if not codes.is_code or not codes.rows_are_bytes or codes.rows.device != self.weight.device:
            return False
        if self.reach * codes.top >= _EXACT:
            return False
        if codes.rows.device.type != "cpu":
            return codes.top < TF32_WHOLE
        volume = self.weight.dim() == 5
        if is_alone() or not _trusted(128 if codes.top <= 128 else 255, 3 if volume else 2):
            return False
        if self.geometry and self.weight.shape[1] == 1:  # one channel in each group: some misread
            flat = volume and codes.rows.shape[2] == 1
            if flat or len(set(self.geometry[0])) > 1:
                return False
        return self._adds_up(codes)

    def _adds_up(self, codes: Rows) -> bool:
        """Whether oneDNN's sums over rows of this shape are right: tried once, on a few rows of drawn codes."""
        shape = codes.rows.shape[1:]
        if shape not in self.exact:
            generator = torch.Generator().manual_seed(0)
            rows = torch.randint(codes.top + 1, (_TRIED, *shape), generator=generator, dtype=torch.uint8)
            rows = rows.unsqueeze(2) if self._is_line(codes) else rows
            operation = {2: F.linear, 4: F.conv2d, 5: F.conv3d}[self.weight.dim()]
            wanted = operation(rows.float() - codes.zero, self.weight.float(), None, *(self.geometry or ()))
            self.exact[shape] = torch.equal(self._dense(rows, codes.zero), wanted)
        return self.exact[shape]

    def _is_line(self, codes: Rows) -> bool:
        return self.geometry is not None and codes.rows.dim() == 3

    def _dense(self, rows: Tensor, zero: int) -> Tensor:
        """oneDNN's sums."""
        if zero not in self.packed:
            self.packed[zero] = _pack(self.weight, self.geometry, zero)
        return _sums(rows, self.packed[zero], self.weight.shape[0], self.geometry, zero)

    def __call__(self, codes: Rows, *, bias: bool = True, later: bool = False) -> Rows:
        """Sums of weight times code, still to be scaled; with their bias or without. If ``later``, they may be computed
        by whoever reads them."""
        along, pending = self._is_line(codes), None
        if along:
            codes = codes.with_rows(codes.rows.unsqueeze(2))
        if codes.rows.device.type == "cpu":
            dense = functools.partial(self._dense, zero=codes.zero)
            begun = events.begin(codes, self.weight, self.geometry, self.packed, dense)
            if later and isinstance(begun, events.Pending) and begun.may_scan:
                pending, sums = begun, begun.room("meta")
            else:
                sums = begun.sums() if isinstance(begun, events.Pending) else begun
        else:
            from spikezip.kernels import triton_synapse  # imports Triton

            if triton_synapse.suits(codes, self.weight, self.geometry):
                sums = triton_synapse.sums(codes, self.weight, self.geometry, self.packed)
            else:
                sums = self.in_floats(codes)
        if along:
            sums = sums.squeeze(2)
        channels = 1 if self.geometry else sums.dim() - 1
        found = (sums, codes.map, self.dtype, 0, self.scale, self.bias if bias else None, channels)
        return Rows(*found) if pending is None else Coming(*found, pending=pending)

    def of_each(self, codes: Sum | Joined, *, bias: bool = True) -> Sum | None:
        """The sums over codes that are added or joined, from those over each; None if any are not exact here."""
        terms, channels = codes.terms, 1 if self.geometry else codes.terms[0].rows.dim() - 1
        if isinstance(codes, Joined) and (codes.channels != channels or (self.geometry and self.geometry[3] != 1)):
            return None
        sizes = [c.rows.shape[channels] for c in terms]
        key = ("parts", *zip(codes.first, sizes, ((c.ratio, c.zero, c.top) for c in terms), strict=True))
        if key not in self.packed:
            self.packed[key] = self._parts(codes, sizes)
        parts = self.packed[key]
        whole = [replace(c, scale=None) for c in terms]
        if parts is None or not all(part.takes(c) for part, c in zip(parts, whole, strict=True)):
            return None
        sums = [part(c, bias=bias and i == 0) for i, (part, c) in enumerate(zip(parts, whole, strict=True))]
        scaled = (replace(s, scale=self.scale * c.ratio) for s, c in zip(sums, terms, strict=True))
        return Sum(tuple(scaled), self.dtype)

    def _parts(self, codes: Sum | Joined, sizes: list[int]) -> Sequence[Synapse] | None:
        """For each of several codes the layer that reads them; None if their sums, scaled and added, may be rounded."""
        parts = [self] * len(sizes)
        if isinstance(codes, Joined):
            slices = [self.weight.narrow(1, *part).contiguous() for part in zip(codes.first, sizes, strict=True)]
            parts = [replace(self, weight=w, reach=int(_reach(w).max()), packed={}, exact={}) for w in slices]
        ratios = torch.tensor([c.ratio for c in codes.terms], dtype=torch.float64)
        exponent = dyadic_exponent(ratios).max() - self.scale.double().log2()
        farthest = sum(abs(c.ratio) * c.farthest * _reach(p.weight) for c, p in zip(codes.terms, parts, strict=True))
        bound = self.scale.double() * farthest
        if self.bias is not None:
            exponent = torch.maximum(exponent, dyadic_exponent(self.bias))
            bound += self.bias.double().abs()
        return parts if Grid(exponent, bound).bits < DIGITS.get(self.dtype, 0) else None

    def in_floats(self, codes: Rows) -> Tensor:
        """The sums through float32 operations (TF32 on GPUs), checked.

        A library may choose an algorithm that transforms its operands with fractions (Winograd, FFT), and chooses by
        shape. So rows are padded to few different numbers, the first sums of each shape are compared with float64's on
        some rows, and a shape that fails is computed in float64 from then on.
        """
        operand = _padded(codes)
        if operand.shape not in self.exact:
            some = torch.linspace(0, codes.rows.shape[0] - 1, _CHECKED, device=operand.device).long().unique()
            wanted = self._apply(operand[some].double())
            self.exact[operand.shape] = torch.equal(self._apply(operand)[some].double(), wanted)
        sums = self._apply(operand if self.exact[operand.shape] else operand.double()).to(torch.float32)
        return sums[: codes.rows.shape[0]]

    def _apply(self, operand: Tensor) -> Tensor:
        if operand.dtype not in self.packed:
            weight = self.weight.to(operand.dtype)
            layout = torch.channels_last if self.geometry else torch.contiguous_format
            self.packed[operand.dtype] = weight.contiguous(memory_format=layout)
        weight = self.packed[operand.dtype]
        with tf32():
            return F.conv2d(operand, weight, None, *self.geometry) if self.geometry else F.linear(operand, weight)


def _reach(weight: Tensor) -> Tensor:
    """``sum |w|`` of each output channel."""
    return weight.double().abs().flatten(1).sum(1)


def _padded(codes: Rows) -> Tensor:
    """Codes as float32, with rows of zeros up to the next of four numbers per power of two."""
    rows = codes.rows
    count = rows.shape[0]
    step = 1 << max((count - 1).bit_length() - 3, 0)
    layout = torch.channels_last if rows.dim() == 4 else torch.contiguous_format
    size = (-(-count // step) * step, *rows.shape[1:])
    operand = torch.empty(size, dtype=torch.float32, device=rows.device, memory_format=layout)
    operand[:count].copy_(rows)
    if codes.zero:
        operand[:count] -= codes.zero
    operand[count:] = 0
    return operand


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: list[int] = (1, 1),  # type: ignore[assignment]
    padding: list[int] = (0, 0),  # type: ignore[assignment]
    dilation: list[int] = (1, 1),  # type: ignore[assignment]
    groups: int = 1,
) -> Tensor:
    """torch's convolution, whose own kernel for GPUs without cuDNN takes one image after the other."""
    plain = x.dim() == 4 and groups == 1 and max(dilation) == 1
    if x.device.type != "cuda" or torch.backends.cudnn.enabled or not plain:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    each = x[0].numel() * weight[0, 0].numel()
    parts = [
        conv2d_as_product(part, weight, bias, ops.of_each_dim(stride), ops.of_each_dim(padding))
        for part in x.split(max(_WINDOWS // each, 1))
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def conv2d_as_product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    """A convolution as one matrix product over windows that are written out; channels last."""
    high, wide = weight.shape[2:]
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    windows = x.unfold(2, high, stride[0]).unfold(3, wide, stride[1])
    return F.linear(windows.permute(0, 2, 3, 1, 4, 5).flatten(3), weight.flatten(1), bias).permute(0, 3, 1, 2)


def pack(node: fx.Node) -> Synapse | None:
    """The :class:`Synapse` of a node; None if it is another operation, or its weights are not bytes."""
    if node.target not in (_aten.linear.default, *_CONVOLUTIONS) or node.kwargs:
        return None
    weight_node = ops.weight_of(node)
    weight = network.constant(weight_node) if weight_node is not None else None
    index = ops.bias_index(node)
    bias = network.constant(node.args[index]) if index is not None else None
    if weight is None or weight.device.type not in ("cpu", "cuda") or (index is not None and bias is None):
        return None
    _, exponents = per_channel(node, weight)
    steps = torch.exp2(exponents)
    whole = weight.detach().double() * steps.reshape(-1, *[1] * (weight.dim() - 1))
    if float(whole.abs().max()) > 127 or not torch.equal(whole, whole.round()):
        return None
    geometry = None
    if node.target in _CONVOLUTIONS:
        size, dims = network.spec(node.args[0]).shape[2:], weight.dim() - 2  # type: ignore[arg-type]
        stride, padding, dilation, groups = ops.geometry(node, dims)
        if len(size) != dims or not all(map(_windows_see, size, weight.shape[2:], stride, padding, dilation)):
            return None
        if dims == 3 and weight.device.type != "cpu":
            return None
        if dims == 1:
            whole, stride, padding, dilation = whole.unsqueeze(2), [1, *stride], [0, *padding], [1, *dilation]
        geometry = (stride, padding, dilation, groups)
    return Synapse(
        weight=whole.to(torch.int8),
        scale=(1 / steps).to(weight.dtype),
        bias=None if bias is None else bias.detach(),
        dtype=weight.dtype,
        geometry=geometry,  # type: ignore[arg-type]
        reach=int(_reach(whole).max()),
    )


def _windows_see(size: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether every window sees some of the image, along one dimension; others make oneDNN add what is not there."""
    last = size + 2 * padding - dilation * (kernel - 1) - 1
    return all(
        any(0 <= first + i * dilation < size for i in range(kernel))
        for first in range(-padding, last - padding + 1, stride)
    )


def _pack(weight: Tensor, geometry: Any, zero: int) -> Any:
    ones = torch.ones(weight.shape[0], dtype=torch.float32)
    if geometry is None:
        return _onednn.qlinear_prepack(weight, None)
    stride, padding, dilation, groups = geometry
    return _onednn.qconv_prepack(weight, ones, 1.0, zero, stride, padding, dilation, groups, None)


def _sums(codes: Tensor, packed: Any, out: int, geometry: Any, zero: int) -> Tensor:
    ones, zeros = torch.ones(out, dtype=torch.float32), torch.zeros(out, dtype=torch.int64)
    tail = (1.0, 0, torch.float32, "none", [], "")
    if geometry is None:
        return _onednn.qlinear_pointwise(codes.contiguous(), 1.0, zero, packed, ones, zeros, None, *tail)
    flat = codes.dim() == 4
    convolve = _onednn.qconv2d_pointwise if flat else _onednn.qconv3d_pointwise
    codes = codes.contiguous(memory_format=torch.channels_last if flat else torch.channels_last_3d)
    return convolve(codes, 1.0, zero, packed, ones, zeros, None, *geometry, *tail)


@functools.cache
def _trusted(top: int, dims: int = 2) -> bool:
    """Whether oneDNN's 8-bit kernels for so many dimensions are here, and add exactly codes up to ``top``: tried,
    compared to the bit.

    They are internal operations of torch, and on processors without dot products of bytes sums of pairs may saturate.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    try:
        for zero in (0, min(top, 4)):
            codes = draw(0, top, 3, 16, *[6] * dims).to(torch.uint8)
            codes[0] = top
            weight = draw(-127, 127, 32, 16, *[3] * dims).to(torch.int8)
            weight[0], weight[1] = 127, -127
            geometry = ([2] * dims, [1] * dims, [1] * dims, 1)
            convolve = F.conv2d if dims == 2 else F.conv3d
            wanted = convolve(codes.double() - zero, weight.double(), None, *geometry)
            found = _sums(codes, _pack(weight, geometry, zero), 32, geometry, zero)
            flat = codes.movedim(1, -1).contiguous()
            linear = weight.flatten(1)[:, :16].contiguous()
            found_linear = _sums(flat, _pack(linear, None, zero), 32, None, zero)
            wanted_linear = F.linear(flat.double() - zero, linear.double())
            if not (torch.equal(found.double(), wanted) and torch.equal(found_linear.double(), wanted_linear)):
                return False
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
    return True
