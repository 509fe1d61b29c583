"""How each operation of an integer network adds up: float32 where that is exact, float64 where it must be, and said."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import fx

from spikezip.graph import network, ops, rewrite, shapes
from spikezip.graph.ops import Kind
from spikezip.quantize.grid import FLOAT32_BITS, FixedPoint, Grids, has_width, is_complex
from spikezip.quantize.quantizer import Quantizer

_aten = torch.ops.aten


class _Point(NamedTuple):
    """Where the point of a fixed point is, if values on the calibration data do not ask for another place."""

    steps: int  #: binary digits behind the point
    digits: int  #: before and behind
    room: int  #: digits before the point that values beyond those seen have at least
    most: int  #: digits behind the point at most

    def for_values(self, reach: float | None) -> FixedPoint:
        """For values up to a reach: before the point it has room, and of it ``steps`` digits are kept."""
        steps = self.steps
        if reach and math.isfinite(reach):
            before = math.ceil(math.log2(reach))
            steps = max(min(steps, self.digits - before - self.room), min(steps - before, self.most))
        return FixedPoint(steps, 1 << self.digits)


_INNER = _Point(12, 23, 1, 36)  #: of a function's result; float32 holds it
_OUTPUT = _Point(24, 48, 12, 126)  #: of a result that the network returns, in real units, or that says what is chosen

#: Kinds that do arithmetic on their operands.
_ARITHMETIC = {Kind.SYNAPTIC, Kind.SUM, Kind.AVERAGE, Kind.PRODUCT, Kind.SCALE}
#: Kinds that hand float64 on.
_WIDE_TOO = {Kind.SHAPE, Kind.MAXIMUM, Kind.AVERAGE, Kind.SUM, Kind.SCALE, Kind.PRODUCT}


@dataclass(frozen=True)
class Exactness:
    """How one operation of an integer network adds up.

    Attributes:
        name: the author's name of the operation.
        op: what it is.
        bits: binary digits its greatest sum may need (static, from the weights); infinite off the grid.
        arithmetic: ``float32`` or ``float64`` where nothing is rounded; ``rounded`` for a general function, computed in
            float64 and rounded to fixed point; ``inexact`` for a synaptic operation whose sums are on no grid.
    """

    name: str
    op: str
    bits: float
    arithmetic: str


def choose_arithmetic(gm: fx.GraphModule, reaches: Mapping[fx.Node, float]) -> tuple[Exactness, ...]:
    """Round general functions to fixed point, put float64 where float32 might round, in place; say what was chosen.

    Values off the grid are computed in float64 up to where they reach a neuron, a synaptic operation, an output or an
    operation that jumps (``sign``, a comparison); there they are rounded to fixed point (:class:`FixedPoint`), so that
    every sum behind is a sum on a grid, and every jump the same in every engine.
    ``reaches`` says how far values go.
    """
    grids = Grids(gm, all_nodes=False)
    report: list[Exactness] = []
    wide: dict[fx.Node, None] = {}  # in the graph's order, which a set has not
    fixed: dict[tuple[fx.Node, _Point], fx.Node] = {}
    for node in list(gm.graph.nodes):
        for operand in sorted(_exits(gm, node), key=lambda n: grids.get(n) is not None):  # those on none first
            if grids.get(operand) is None or _is_too_long(operand, node, grids):
                point = _INNER if node.op == "call_module" or ops.kind(node) is Kind.SYNAPTIC else _OUTPUT
                if (operand, point) not in fixed:
                    module = point.for_values(reaches.get(operand))
                    fixed[operand, point] = _fix(gm, operand, module)
                    grids.add(fixed[operand, point])
                    bits = math.log2(module.limit)
                    report.append(Exactness(network.origin(operand), network.op_name(operand), bits, "rounded"))
                node.replace_input_with(operand, fixed[operand, point])
        grid = grids.add(node)
        if not _computes(node):
            continue
        kind = ops.kind(node)
        if grid is None:
            wide[node] = None
            if kind is Kind.SYNAPTIC:
                report.append(Exactness(network.origin(node), network.op_name(node), math.inf, "inexact"))
        elif kind in _ARITHMETIC or network.op_name(node) in ("leaky_relu", "prelu"):
            arithmetic = "float32" if grid.bits < FLOAT32_BITS else "float64"
            report.append(Exactness(network.origin(node), network.op_name(node), round(grid.bits, 2), arithmetic))
            if arithmetic == "float64":
                wide[node] = None
    for node in wide:
        _widen(gm, node)
    if wide:
        _narrow(gm, wide)
    rewrite.tidy(gm)
    shapes.annotate(gm, anew=False)
    if wide:
        shapes.retype(gm)
    return tuple(report)


def first_rounded(gm: fx.GraphModule, known: Collection[str] = ()) -> fx.Node | None:
    """The first operation of an integer network whose sums its type does not hold exactly; None where there is none.

    ``known``: names of operations that are said to be on no grid.
    """
    grids = Grids(gm)
    for node in gm.graph.nodes:
        if not _computes(node) or ops.kind(node) is not Kind.SYNAPTIC or network.origin(node) in known:
            continue
        grid = grids[node]
        if grid is None or (grid.bits >= FLOAT32_BITS and network.spec(node).dtype is torch.float32):
            return node
    return None


def _exits(gm: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The operands of a node that must be on a grid."""
    if node.op == "call_module" and isinstance(gm.get_submodule(str(node.target)), Quantizer):
        return list(node.all_input_nodes)
    reads = node.op == "call_function" and ops.is_signal(node) and (ops.kind(node) is Kind.SYNAPTIC or ops.jumps(node))
    if node.op == "output" or reads:
        return [n for n in node.all_input_nodes if ops.is_signal(n) and not ops.is_constant(n) and has_width(n)]
    return []


def _is_too_long(operand: fx.Node, node: fx.Node, grids: Grids) -> bool:
    """Whether an operand on a grid has so many digits that float64 does not hold the sums of what reads it."""
    grid = grids.get(operand)
    if node.op != "call_function" or ops.kind(node) is not Kind.SYNAPTIC or grid is None or grid.bits < FLOAT32_BITS:
        return False
    return grids.add(node) is None


def _computes(node: fx.Node) -> bool:
    """Whether a node makes a value of an image from numbers."""
    if node.op != "call_function" or not ops.is_signal(node) or ops.is_constant(node):
        return False
    return any(ops.is_signal(n) and has_width(n) for n in node.all_input_nodes)


def _fix(gm: fx.GraphModule, source: fx.Node, rounding: FixedPoint) -> fx.Node:
    name = rewrite.free_name(gm, f"{source.name}_grid")
    gm.add_submodule(name, rounding)
    with gm.graph.inserting_after(source):
        node = gm.graph.call_module(name, (source,))
    node.meta = {"origin": network.origin(source), "spec": source.meta["spec"]}
    return node


def output_rounding(gm: fx.GraphModule, node: fx.Node) -> FixedPoint | None:
    """How an output of an integer network is rounded to fixed point; None where it is on a grid by itself."""
    while network.op_name(node) == "to":
        node = node.all_input_nodes[0]
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, FixedPoint) else None


def _widen(gm: fx.GraphModule, node: fx.Node) -> None:
    """Compute a node in float64: its constants stored so, its streams converted."""
    for operand in list(node.all_input_nodes):
        if "spec" not in operand.meta or not has_width(operand):
            continue
        with gm.graph.inserting_before(node):
            tensor = network.constant(operand)
            if tensor is not None:
                double = tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)
                new = rewrite.new_constant(gm, str(operand.target), double, like=node)
            else:
                new = _to(gm, operand, torch.float64)
        new.meta["spec"] = operand.meta["spec"]
        node.replace_input_with(operand, new)


def _narrow(gm: fx.GraphModule, wide: Collection[fx.Node]) -> None:
    """Behind each neuron, before an operation that stays in float32, and at the outputs, values lose their width."""
    dtype = next((s.dtype for s in network.info(gm).inputs if s.dtype.is_floating_point), torch.float32)
    double = set(wide)
    for node in list(gm.graph.nodes):
        received = [n for n in node.all_input_nodes if n in double and has_width(n)]
        if node in wide or not received:
            continue
        if node.target is _aten.to.dtype:
            if node.args[1] in (torch.float64, torch.complex128):
                double.add(node)
        elif node.op == "call_module":
            with gm.graph.inserting_after(node):
                narrow = _to(gm, node, dtype)
            node.replace_all_uses_with(narrow, delete_user_cb=lambda user, own=narrow: user is not own)
        elif node.op == "output" or ops.kind(node) not in _WIDE_TOO:
            for stream in received:
                with gm.graph.inserting_before(node):
                    node.replace_input_with(stream, _to(gm, stream, dtype))
        else:
            double.add(node)


def _to(gm: fx.GraphModule, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    dtype = dtype.to_complex() if is_complex(node) else dtype
    new = rewrite.call(gm, _aten.to.dtype, (node, dtype), like=node)
    new.meta["spec"] = node.meta["spec"]
    return new
