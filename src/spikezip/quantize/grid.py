"""Which values lie on a dyadic grid, and whether sums of them are exact: the static side of bit-exactness.

A value is *on a grid* when it is a whole number of steps ``2**-exponent`` and at most ``bound`` in magnitude. While
``bound * 2**exponent < 2**24`` float32 holds it, and every partial sum of a synaptic operation, exactly, whatever the
order of summation, batch size, thread count, memory layout or device. Past that, float64 (``2**53``) is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from spikezip.graph import network, ops
from spikezip.graph.ops import Kind
from spikezip.quantize.quantizer import Quantizer

FLOAT32_BITS, FLOAT64_BITS = 24, 53


@dataclass(frozen=True)
class Grid:
    """Steps of ``2**-exponent`` and the greatest magnitude, each a float64 tensor: 0-dim, or per channel."""

    exponent: Tensor
    bound: Tensor

    @property
    def bits(self) -> float:
        """Binary digits that the greatest value needs on its grid."""
        return float((torch.log2(self.bound.clamp(min=2.0**-1000)) + self.exponent).max().clamp(min=0))

    def flat(self) -> Grid:
        """One grid for all channels."""
        return Grid(self.exponent.max(), self.bound.max())


class InputGrid(nn.Module):
    """Rounds the network's input to whole steps of ``2**-exponent``, at most ``limit`` of them: a fixed-point input.

    Args:
        exponent: log2 of the steps per unit.
        limit: greatest count of steps, either sign.

    >>> InputGrid(3, 16)(torch.tensor([0.3, 9.0, -0.0624]))
    tensor([0.2500, 2.0000, 0.0000])
    """

    def __init__(self, exponent: int, limit: int):
        super().__init__()
        self.exponent = exponent
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.floor(x * 2.0**self.exponent + 0.5).clamp(-self.limit, self.limit)
        return steps * 2.0**-self.exponent

    def extra_repr(self) -> str:
        return f"steps of 2**-{self.exponent}, at most {self.limit}"


def dyadic_exponent(values: Tensor) -> Tensor:
    """Per element, the least ``e`` such that ``value * 2**e`` is whole (0 for 0); float64."""
    mantissa, exponent = torch.frexp(values.double())
    whole = (mantissa * 2.0**53).to(torch.int64)
    trailing = torch.zeros_like(whole)
    remaining = torch.where(whole == 0, torch.ones_like(whole), whole)
    for shift in (32, 16, 8, 4, 2, 1):
        even = (remaining & ((1 << shift) - 1)) == 0
        trailing += torch.where(even, shift, 0)
        remaining = torch.where(even, remaining >> shift, remaining)
    result = (53 - exponent - trailing).double()
    return torch.where(values == 0, torch.zeros_like(result), result)


#: Averages that change nothing where they keep the count of values (pools with a stride of 1 are not among them).
_AVERAGES_OF_ONE = {"mean", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"}


class Grids:
    """The grid of every node of an integer QANN; None where a value is on none."""

    def __init__(self, gm: fx.GraphModule):
        self._gm = gm
        self._known: dict[fx.Node, Grid | None] = {}
        for node in gm.graph.nodes:
            if node.op != "output":
                self._known[node] = self._of(node)

    def __getitem__(self, node: fx.Node) -> Grid | None:
        return self._known[node]

    def get(self, node: fx.Node) -> Grid | None:
        """The grid, or None for a node made after the analysis."""
        return self._known.get(node)

    def _of(self, node: fx.Node) -> Grid | None:
        if node.op == "call_module":
            module = self._gm.get_submodule(str(node.target))
            if isinstance(module, InputGrid):
                return _grid(module.exponent, module.limit * 2.0**-module.exponent)
            if isinstance(module, Quantizer):
                scale = module.scale.detach().double()
                top = max(module.levels.highest, -module.levels.lowest)
                return Grid(dyadic_exponent(scale), scale * top) if float(scale) == 1.0 else None
            return None
        constant = network.constant(node)
        if constant is not None:
            return _constant_grid(constant)
        if node.op != "call_function" or not ops.is_signal(node):
            return None
        return self._operation(node, ops.kind(node))

    def _operation(self, node: fx.Node, kind: Kind) -> Grid | None:
        operands = [self._known.get(n) for n in node.all_input_nodes if ops.is_signal(n)]
        if any(g is None for g in operands) or not operands:
            return None
        grids = [g for g in operands if g is not None]
        name = network.op_name(node)
        if kind is Kind.SYNAPTIC:
            return self._synaptic(node)
        if name in ("to", "_to_copy", "relu", "neg") or kind is Kind.MAXIMUM:
            return grids[0]
        if kind is Kind.SHAPE:
            put_in = padding_value(node)
            filled = [_constant_grid(torch.tensor(put_in, dtype=torch.float64))] if put_in else []
            return None if None in filled else _union([g.flat() for g in (*grids, *filled) if g is not None])
        if kind is Kind.SUM and len(node.all_input_nodes) == 2 and not node.kwargs.get("alpha"):
            return _sum(grids)
        if kind is Kind.PRODUCT or (kind is Kind.SCALE and name == "mul"):
            if len(grids) == 1:
                other = node.args[1]
                if not isinstance(other, int | float):
                    return None
                factor = _constant_grid(torch.tensor(float(other), dtype=torch.float64))
                if factor is None:
                    return None
                grids.append(factor)
            return Grid(grids[0].exponent + grids[1].exponent, grids[0].bound * grids[1].bound)
        if name in _AVERAGES_OF_ONE and network.spec(node).numel == network.spec(node.all_input_nodes[0]).numel:
            return grids[0]
        if name == "sum" or (name == "avg_pool2d" and len(node.args) > 6 and node.args[6] == 1):
            window = _window(node)
            flat = grids[0].flat()
            return Grid(flat.exponent, flat.bound * window)
        return None

    def _synaptic(self, node: fx.Node) -> Grid | None:
        operands = ops.data_operands(node)
        weight_node = ops.weight_of(node)
        grid = self._known.get(operands[0])
        if grid is None:
            return None
        grid = grid.flat()
        if weight_node is None:
            if len(operands) != 2 or network.op_name(node) not in ("matmul", "bmm", "mm"):
                return None
            other = self._known.get(operands[1])
            if other is None:
                return None
            other = other.flat()
            terms = network.spec(operands[0]).shape[-1]
            return Grid(grid.exponent + other.exponent, grid.bound * other.bound * terms)
        weight = network.constant(weight_node)
        assert weight is not None
        rows, exponents = per_channel(node, weight)
        exponent, bound = grid.exponent + exponents, grid.bound * rows
        index = ops.bias_index(node)
        if index is not None:
            bias = network.constant(node.args[index])
            if bias is None:
                return None
            bias = bias.detach().double().flatten()
            exponent = torch.maximum(exponent, dyadic_exponent(bias))
            bound = bound + bias.abs()
        shape = [-1] + [1] * (len(network.spec(node).shape) - 2) if network.op_name(node).startswith("conv") else [-1]
        return Grid(exponent.reshape(shape), bound.reshape(shape))


def per_channel(node: fx.Node, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Per output channel of a synaptic operation, ``sum |w|`` and the weights' finest dyadic exponent (float64)."""
    weight = channels_first(node, weight.detach().double())
    return weight.abs().flatten(1).sum(1), dyadic_exponent(weight).flatten(1).amax(1)


def channels_first(node: fx.Node, weight: Tensor) -> Tensor:
    """A weight as ``[output channels, ...]``, with the groups of a transposed convolution side by side."""
    name = network.op_name(node)
    if name.startswith("conv_transpose"):
        groups = int(node.args[6]) if len(node.args) > 6 else 1  # type: ignore[arg-type]
        grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        return grouped.transpose(1, 2).flatten(0, 1)
    return weight.transpose(0, 1) if ops.out_channel_dim(node) == 1 else weight


def channels_back(node: fx.Node, weight: Tensor) -> Tensor:
    """The inverse of :func:`channels_first`."""
    name = network.op_name(node)
    if name.startswith("conv_transpose"):
        groups = int(node.args[6]) if len(node.args) > 6 else 1  # type: ignore[arg-type]
        grouped = weight.unflatten(0, (groups, weight.shape[0] // groups))
        return grouped.transpose(1, 2).flatten(0, 1).contiguous()
    return (weight.transpose(0, 1) if ops.out_channel_dim(node) == 1 else weight).contiguous()


def padding_value(node: fx.Node) -> float:
    """The number that a padding puts around a value; 0 for any other operation."""
    name = network.op_name(node)
    if name not in ("pad", "constant_pad_nd"):
        return 0.0
    position = 3 if name == "pad" else 2
    value = node.args[position] if len(node.args) > position else node.kwargs.get("value")
    return float(value) if isinstance(value, int | float) else 0.0


def _grid(exponent: float, bound: float) -> Grid:
    return Grid(torch.tensor(float(exponent), dtype=torch.float64), torch.tensor(float(bound), dtype=torch.float64))


def _constant_grid(values: Tensor) -> Grid | None:
    if not values.is_floating_point() or not bool(torch.isfinite(values).all()):
        return None
    exponents = dyadic_exponent(values.detach())
    return Grid(exponents.max(), values.detach().double().abs().max())


def _union(grids: list[Grid]) -> Grid:
    return Grid(torch.stack([g.exponent for g in grids]).amax(0), torch.stack([g.bound for g in grids]).amax(0))


def _sum(grids: list[Grid]) -> Grid:
    first, second = grids if len(grids) == 2 else (grids[0], grids[0])
    try:
        return Grid(torch.maximum(first.exponent, second.exponent), first.bound + second.bound)
    except RuntimeError:  # per-channel grids of different layouts
        first, second = first.flat(), second.flat()
        return Grid(torch.maximum(first.exponent, second.exponent), first.bound + second.bound)


def _window(node: fx.Node) -> int:
    before, after = network.spec(node.all_input_nodes[0]).numel, network.spec(node).numel
    if network.op_name(node) == "sum":
        return max(before // max(after, 1), 1)
    return math.prod(node.args[1]) if isinstance(node.args[1], list | tuple) else int(node.args[1]) ** 2  # type: ignore[arg-type]
