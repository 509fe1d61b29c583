"""Which values lie on a dyadic grid, and whether sums of them are exact: the static side of bit-exactness.

A value is *on a grid* when it is a whole number of steps ``2**-exponent`` and at most ``bound`` in magnitude. While
``bound * 2**exponent < 2**24`` float32 holds it, and every partial sum of a synaptic operation, exactly, whatever the
order of summation, batch size, thread count, memory layout or device. Past that, float64 (``2**53``) is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.graph import network, ops
from spikezip.graph.ops import Kind
from spikezip.quantize.quantizer import Quantizer

FLOAT32_BITS, FLOAT64_BITS = 24, 53
#: Where operations take what says which values they hand on (places, a mask, a shape) and puts none in itself.
_CHOICES = {
    "gather": 2, "index_select": 2, "index": 1, "masked_fill": 1, "repeat_interleave": 1, "expand_as": 1, "view_as": 1,
}  # fmt: skip


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


class _Rounding(nn.Module):
    """Rounds to whole steps of ``2**-exponent``, at most ``limit`` of them."""

    def __init__(self, exponent: int, limit: int):
        super().__init__()
        self.exponent = exponent
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        return to_fixed_point(x, self.exponent, self.limit)

    def extra_repr(self) -> str:
        return f"steps of 2**-{self.exponent}, at most {self.limit}"


class InputGrid(_Rounding):
    """Rounds the network's input to whole steps of ``2**-exponent``, at most ``limit`` of them: a fixed-point input.

    Args:
        exponent: log2 of the steps per unit.
        limit: greatest count of steps, either sign.

    >>> InputGrid(3, 16)(torch.tensor([0.3, 9.0, -0.0624]))
    tensor([0.2500, 2.0000, 0.0000])
    """


class FixedPoint(_Rounding):
    """The fixed-point result of a general function (an activation, a normalisation, an uneven average).

    The function is computed in float64 and rounded to whole steps of ``2**-exponent``, at most ``limit`` of them, as
    hardware does with a table. The last bits of a float64 function may depend on the processor and on the place in a
    vector; rounding removes them unless the value lies within them of the middle of two steps (about once in 10**11).

    Args:
        exponent: log2 of the steps per unit.
        limit: greatest count of steps, either sign.

    >>> FixedPoint(3, 16)(torch.tensor([0.3, 9.0], dtype=torch.float64)).tolist()
    [0.25, 2.0]
    """


def to_fixed_point(x: Tensor, exponent: int, limit: int) -> Tensor:
    """``x`` (complex: each part) rounded to whole steps of ``2**-exponent``, ties up, at most ``limit`` steps."""
    if x.is_complex():
        return torch.complex(*(to_fixed_point(part, exponent, limit) for part in (x.real, x.imag)))
    steps = x * 2.0**exponent  # ours: the rest is done in place, as fresh memory costs more than arithmetic
    return steps.add_(0.5).floor_().clamp_(-limit, limit).mul_(2.0**-exponent)


def dyadic_exponent(values: Tensor) -> Tensor:
    """Per element, the least ``e`` such that ``value * 2**e`` is whole (0 for 0); float64."""
    mantissa, exponent = torch.frexp(values.double())
    whole = (mantissa * 2.0**53).to(torch.int64)
    last = torch.frexp((whole & -whole).double()).exponent - 1  # the last binary digit that is set
    return torch.where(values == 0, 0, 53 - exponent - last).double()


class Grids:
    """The grid of every node of an integer QANN; None where a value is on none."""

    def __init__(self, gm: fx.GraphModule, *, all_nodes: bool = True):
        self._gm = gm
        self._known: dict[fx.Node, Grid | None] = {}
        for node in gm.graph.nodes if all_nodes else ():
            self.add(node)

    def __getitem__(self, node: fx.Node) -> Grid | None:
        return self._known[node]

    def get(self, node: fx.Node) -> Grid | None:
        """The grid, or None for a node made after the analysis."""
        return self._known.get(node)

    def add(self, node: fx.Node) -> Grid | None:
        """Analyse a node whose operands are known."""
        found = self._of(node) if node.op != "output" else None
        if found is not None and not bool(found.bound.any()):
            found = _grid(0, 0.0)  # nothing but zeros: any ratio keeps them
        # Past float64's digits a grid helps nobody.
        self._known[node] = found if found is not None and found.bits < FLOAT64_BITS else None
        return self._known[node]

    def _of(self, node: fx.Node) -> Grid | None:
        if node.op == "call_module":
            module = self._gm.get_submodule(str(node.target))
            if isinstance(module, _Rounding):
                return _grid(module.exponent, module.limit * 2.0**-module.exponent)
            if isinstance(module, Quantizer):
                scale = module.scale.detach().double()
                top = module.levels.magnitude
                return Grid(dyadic_exponent(scale), scale * top) if float(scale) == 1.0 else None
            return None
        constant = network.constant(node)
        if constant is not None:
            return None if constant.is_complex() else _constant_grid(constant)
        if node.op != "call_function" or not ops.is_signal(node):
            return None
        if any(is_complex(n) for n in (node, *node.all_input_nodes)):
            return None
        return self._operation(node, ops.kind(node))

    def _operation(self, node: fx.Node, kind: Kind) -> Grid | None:
        name = network.op_name(node)
        if name in ("zeros", "zeros_like", "new_zeros"):
            return _grid(0, 0)
        # Of whole numbers no bound is known: neither of a value, nor of what is joined with real numbers.
        operands = [n for n in _values(node) if ops.is_signal(n)] if is_floating(node) else []
        grids = [g for g in map(self._known.get, operands) if g is not None]
        if len(grids) < len(operands) or not grids:
            return None
        if kind is Kind.SYNAPTIC:
            return self._synaptic(node)
        if name in ("to", "_to_copy"):
            narrow = "spec" in node.meta and network.spec(node).dtype not in (torch.float32, torch.float64)
            return None if narrow else grids[0]
        if name in ("relu", "neg", "abs") or (kind is Kind.MAXIMUM and name.startswith("max_pool")):
            return grids[0]
        if name == "clamp":
            limits = [self._operand(v) for v in node.args[1:3] if v is not None]
            return None if None in limits else _union([g.flat() for g in (*grids, *limits) if g is not None])
        if name in ("leaky_relu", "prelu"):
            slope = self._operand(node.args[1])
            return None if slope is None else _union([grids[0].flat(), _product(grids[0].flat(), slope.flat())])
        if kind in (Kind.SHAPE, Kind.MAXIMUM):
            put_in = fill_value(node)
            filled = [_constant_grid(torch.tensor(put_in, dtype=torch.float64))] if put_in else []
            return None if None in filled else _union([g.flat() for g in (*grids, *filled) if g is not None])
        if kind is Kind.SUM:
            return _sum([self._operand(a) for a in node.args[:2]], node.kwargs.get("alpha", 1))
        if kind is Kind.PRODUCT or (kind is Kind.SCALE and name == "mul"):
            first, second = (self._operand(a) for a in node.args[:2])
            return None if first is None or second is None else _product(first, second)
        flat = grids[0].flat()
        if name in ("sum", "avg_pool2d", "avg_pool3d") and (name == "sum" or node.args[6:7] == (1,)):
            return Grid(flat.exponent, flat.bound * _window(node))
        if name == "cumsum":
            shape = network.spec(node).shape
            return Grid(flat.exponent, flat.bound * shape[node.args[1]])  # type: ignore[index]
        return None

    def _operand(self, value: Any) -> Grid | None:
        if isinstance(value, int | float):
            return _constant_grid(torch.tensor(float(value), dtype=torch.float64))
        return self._known.get(value)

    def _synaptic(self, node: fx.Node) -> Grid | None:
        weight_node = ops.weight_of(node)
        streams = ops.data_operands(node)
        if weight_node is None or len(streams) != 1:
            if network.op_name(node) not in ("matmul", "bmm", "mm"):
                return None
            left, right = (self._known.get(n) for n in node.args[:2])  # type: ignore[arg-type]
            if left is None or right is None:
                return None
            terms = network.spec(node.args[0]).shape[-1]  # type: ignore[arg-type]
            product = _product(left.flat(), right.flat())
            return Grid(product.exponent, product.bound * terms)
        grid = self._known.get(streams[0])
        weight = network.constant(weight_node)
        if grid is None or weight is None:
            return None
        grid = grid.flat()
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


def _values(node: fx.Node) -> list[fx.Node]:
    """The operands whose values an operation reads or hands on."""
    choice = _CHOICES.get(network.op_name(node))
    found: list[fx.Node] = []
    values = [a for i, a in enumerate(node.args) if i != choice]
    fx.map_arg((values, node.kwargs), lambda n: found.append(n) or n)
    return found


def is_floating(node: fx.Node) -> bool:
    """Whether a node holds floating-point values (one of several results counts as such)."""
    stored = network.constant(node)
    if stored is not None:
        return stored.is_floating_point()
    spec = node.meta.get("spec")
    return spec is None or spec.dtype.is_floating_point


def is_complex(node: fx.Node) -> bool:
    """Whether a node holds complex numbers."""
    stored = network.constant(node)
    if stored is not None:
        return stored.is_complex()
    return "spec" in node.meta and network.spec(node).dtype.is_complex


def has_width(node: fx.Node) -> bool:
    """Whether a node holds numbers that come in single and double precision: real ones, or complex ones."""
    return is_floating(node) or is_complex(node)


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
    return weight.transpose(0, ops.out_channel_dim(node)) if weight.dim() > 1 else weight.unsqueeze(0)


def channels_back(node: fx.Node, weight: Tensor) -> Tensor:
    """The inverse of :func:`channels_first`."""
    name = network.op_name(node)
    if name.startswith("conv_transpose"):
        groups = int(node.args[6]) if len(node.args) > 6 else 1  # type: ignore[arg-type]
        grouped = weight.unflatten(0, (groups, weight.shape[0] // groups))
        return grouped.transpose(1, 2).flatten(0, 1).contiguous()
    return weight.transpose(0, ops.out_channel_dim(node)).contiguous()


def padding_value(node: fx.Node) -> float:
    """The number that a padding puts around a value; 0 for any other operation."""
    position = {"pad": 3, "constant_pad_nd": 2}.get(network.op_name(node))
    return _number(node, position) if position is not None else 0.0


def fill_value(node: fx.Node) -> float:
    """The number that a padding or a mask puts in; 0 for any other operation."""
    return _number(node, 2) if network.op_name(node) == "masked_fill" else padding_value(node)


def _number(node: fx.Node, position: int) -> float:
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


def _sum(grids: list[Grid | None], alpha: Any) -> Grid | None:
    first, second = grids
    if first is None or second is None or not isinstance(alpha, int | float):
        return None
    if alpha != 1:
        factor = _constant_grid(torch.tensor(float(alpha), dtype=torch.float64))
        assert factor is not None
        second = _product(second, factor)
    try:
        return Grid(torch.maximum(first.exponent, second.exponent), first.bound + second.bound)
    except RuntimeError:  # per-channel grids of different layouts
        first, second = first.flat(), second.flat()
        return Grid(torch.maximum(first.exponent, second.exponent), first.bound + second.bound)


def _product(first: Grid, second: Grid) -> Grid:
    try:
        return Grid(first.exponent + second.exponent, first.bound * second.bound)
    except RuntimeError:  # per-channel grids of different layouts
        first, second = first.flat(), second.flat()
        return Grid(first.exponent + second.exponent, first.bound * second.bound)


def _window(node: fx.Node) -> int:
    """How many values a sum, or a pool that sums, adds."""
    if network.op_name(node) == "sum":
        before, after = network.spec(node.all_input_nodes[0]).numel, network.spec(node).numel
        return max(before // max(after, 1), 1)
    kernel = node.args[1]
    dims = int(network.op_name(node)[-2])
    sizes = list(kernel) if isinstance(kernel, list | tuple) else [kernel]
    return math.prod(sizes * (dims if len(sizes) == 1 else 1))  # type: ignore[arg-type]
