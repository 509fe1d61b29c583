"""QANN -> integer QANN: codes on the wires, integer weights, every sum exact.

Thresholds are divided out: wires carry whole codes, each layer's weights absorb ``theta_in / theta_out``, and each
output channel's weights are whole multiples of a power of two. The graph stays the same, so every engine runs it as it
is; and as each value is a short dyadic number, QANN, reference, sweep and event form agree to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.errors import StageError
from spikezip.graph import network, ops
from spikezip.graph.network import Stage
from spikezip.graph.ops import Kind
from spikezip.quantize.grid import FLOAT32_BITS, FLOAT64_BITS, Grids, InputGrid, channels_back, channels_first
from spikezip.quantize.quantizer import Quantizer

_aten = torch.ops.aten
_FINEST = 20  #: weights below 2**-20 of a threshold count as 0

#: Operations f with f(c x) = c f(x) for c > 0: they keep whatever unit their operands have.
_HOMOGENEOUS = {"relu", "leaky_relu", "neg", "abs", "prelu"}


@dataclass(frozen=True)
class Exactness:
    """How one operation of an integer network adds up.

    Attributes:
        name: the author's name of the operation.
        op: what it is.
        bits: binary digits its greatest sum may need (static, from the weights); infinite off the grid.
        arithmetic: ``float32`` or ``float64`` where nothing is rounded; ``rounded`` for an element-wise sum that is
            rounded once, the same way everywhere; ``inexact`` for a synaptic operation whose operands are on no grid.
    """

    name: str
    op: str
    bits: float
    arithmetic: str


def to_integer(qann: fx.GraphModule, weight_bits: int = 8, *, input_bits: int = 11) -> fx.GraphModule:
    """Turn a QANN into one whose synaptic sums are sums of integer products.

    Args:
        qann: a calibrated QANN.
        weight_bits: bits of the weights, 2 to 16; each output channel has its own power-of-two scale.
        input_bits: bits (with sign) of the network's fixed-point input.

    Returns:
        A new QANN. Its notes hold ``weight_bits`` and ``exactness`` (a tuple of :class:`Exactness`); all its
        thresholds are 1. It answers nearly as ``qann`` does (weights are rounded): measure its accuracy.

    Raises:
        StageError: not a QANN, already integer, uncalibrated, or the bits are out of range.

    Source: the integer bound is derived in docs/floating-point.md; integer inference as in Jacob et al., CVPR 2018.
    Departs: powers of two instead of a fixed-point multiplier, so that no sum is ever rounded.
    """
    network.expect(qann, Stage.QANN, "to_integer")
    if network.note(qann, "weight_bits"):
        raise StageError("This network is an integer network already.")
    if not 2 <= weight_bits <= 16 or not 2 <= input_bits <= 16:
        raise StageError(f"weight_bits={weight_bits}, input_bits={input_bits}: each must lie in 2..16; 8 is usual.")
    for node, quantizer in network.modules_of(qann, Quantizer):
        if not bool(quantizer.calibrated):
            raise StageError(
                f"The quantizer {network.origin(node)!r} has no scale yet. Call calibrate(qann, data) first."
            )
    new = network.fork(qann).eval().requires_grad_(False)
    _round_inputs(new, input_bits)
    _Rewriter(new, weight_bits).run()
    network.tidy(new)
    network.annotate(new)
    exactness = _choose_arithmetic(new)
    network.remark(new, weight_bits=weight_bits, exactness=exactness)
    return new


def _round_inputs(gm: fx.GraphModule, input_bits: int) -> None:
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    ranges = network.note(gm, "input_range") or [1.0] * len(placeholders)
    for node, top in zip(placeholders, ranges, strict=True):
        if not network.spec(node).dtype.is_floating_point:
            continue
        limit = 2 ** (input_bits - 1)
        exponent = math.floor(math.log2(limit / top)) if top > 0 else 0
        name = network.free_name(gm, f"{node.name}_grid")
        gm.add_submodule(name, InputGrid(exponent, limit))
        with gm.graph.inserting_after(node):
            rounded = gm.graph.call_module(name, (node,))
        rounded.meta = {"origin": name, "spec": node.meta["spec"]}
        node.replace_all_uses_with(rounded, delete_user_cb=lambda user, own=rounded: user is not own)


def snap(values: Tensor, bits: int) -> Tensor:
    """Each value rounded to ``bits`` significant binary digits (float64)."""
    mantissa, exponent = torch.frexp(values.double())
    return torch.ldexp(torch.floor(mantissa * 2.0**bits + 0.5), exponent - bits)


class _Rewriter:
    """Chooses the unit of every value (real = unit * stored) and rewrites constants to match."""

    def __init__(self, gm: fx.GraphModule, bits: int):
        self.gm, self.bits = gm, bits
        self.wanted: dict[fx.Node, float | None] = {}
        self.unit: dict[fx.Node, float] = {}

    def run(self) -> None:
        nodes = list(self.gm.graph.nodes)
        for node in reversed(nodes):
            self.wanted[node] = self._wanted(node)
        for node in nodes:
            if node.op == "output":
                node.args = (fx.map_arg(node.args[0], lambda n, output=node: self._converted(n, 1.0, output)),)
            elif ops.is_signal(node) and not ops.is_constant(node):
                self.unit[node] = self._rewrite(node)
        for _, quantizer in network.modules_of(self.gm, Quantizer):
            quantizer.scale.data.fill_(1.0)

    def _quantizer(self, node: fx.Node) -> Quantizer | None:
        module = self.gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        return module if isinstance(module, Quantizer) else None

    def _keeps_unit(self, node: fx.Node) -> bool:
        if node.op != "call_function" or not ops.is_signal(node):
            return False
        kind = ops.kind(node)
        return kind in (Kind.SHAPE, Kind.MAXIMUM, Kind.SUM, Kind.AVERAGE) or network.op_name(node) in _HOMOGENEOUS

    def _wanted(self, node: fx.Node) -> float | None:
        """The unit that the readers of a value ask for; None where any will do."""
        choices: list[float] = []
        for user in node.users:
            if quantizer := self._quantizer(user):
                return float(quantizer.scale.detach())
            if user.op == "output":
                choices.append(1.0)
            elif self._keeps_unit(user):
                if (unit := self.wanted.get(user)) is not None:
                    choices.append(unit * _window(user))
            elif not self._absorbs(user):
                choices.append(1.0)
        return choices[0] if choices else None

    def _absorbs(self, node: fx.Node) -> bool:
        """Whether a node takes operands of any unit."""
        if node.op != "call_function" or not ops.is_signal(node):
            return node.op == "call_function"
        return ops.kind(node) in (Kind.SYNAPTIC, Kind.SCALE, Kind.PRODUCT)

    def _rewrite(self, node: fx.Node) -> float:
        if node.op == "placeholder":
            return 1.0
        if quantizer := self._quantizer(node):
            theta = float(quantizer.scale.detach())
            self._convert(node, node.all_input_nodes[0], theta)
            return theta
        if node.op == "call_module":
            return self.unit[node.all_input_nodes[0]]
        kind = ops.kind(node)
        streams = [n for n in ops.data_operands(node) if n in self.unit]
        if kind is Kind.SYNAPTIC and ops.weight_of(node) is not None and len(streams) == 1:
            return self._weights(node, streams[0])
        if kind is Kind.SCALE and network.op_name(node) in ("mul", "div") and len(streams) == 1:
            if (unit := self._factor(node, streams[0])) is not None:
                return unit
        if (kind is Kind.PRODUCT or (kind is Kind.SYNAPTIC and ops.bias_index(node) is None)) and len(streams) == 2:
            return self.unit[streams[0]] * self.unit[streams[1]]
        if self._keeps_unit(node):
            return self._kept(node, streams)
        for stream in streams:
            self._convert(node, stream, 1.0)
        return 1.0

    def _kept(self, node: fx.Node, streams: list[fx.Node]) -> float:
        wanted = self.wanted[node]
        if len(streams) == 1 and ops.kind(node) is not Kind.SUM:
            unit = self.unit[streams[0]]
            if network.op_name(node) == "pad" and node.args[3:4] not in ((), (None,), (0,), (0.0,)):
                self._convert(node, streams[0], 1.0)
                return 1.0
            return unit / self._as_sum(node)
        unit = wanted if wanted is not None else self.unit[streams[0]]
        for stream in streams:
            self._convert(node, stream, unit)
        for position, argument in enumerate(node.args[:2]):
            if ops.kind(node) is Kind.SUM and ops.is_constant(argument):
                node.update_arg(position, self._shifted(node, argument, unit))
        return unit

    def _shifted(self, node: fx.Node, constant: Any, unit: float) -> Any:
        tensor = network.constant(constant)
        if isinstance(constant, int | float):
            return float(snap(torch.tensor(constant / unit, dtype=torch.float64), 16))
        if tensor is None:
            with self.gm.graph.inserting_before(node):
                product = network.call(self.gm, _aten.mul.Tensor, (constant, 1.0 / unit), like=node)
            product.meta["spec"] = constant.meta["spec"]
            return product
        with self.gm.graph.inserting_before(node):
            value = snap(tensor.detach().double() / unit, 16).to(tensor.dtype)
            stored = network.new_constant(self.gm, str(constant.target), value, like=node)
        stored.meta["spec"] = constant.meta.get("spec")
        return stored

    def _as_sum(self, node: fx.Node) -> int:
        """Average over a window of n -> sum over it, its unit 1/n: nothing is divided. Returns n; 1 if left alone."""
        count = _window(node)
        if count == 1:
            return 1
        name, x = network.op_name(node), node.args[0]
        if name == "mean":
            dims = node.args[1] if len(node.args) > 1 else None
            keep = node.args[2] if len(node.args) > 2 else False
            node.target, node.args, node.kwargs = _aten.sum.dim_IntList, (x, dims, keep), {}
        elif name == "adaptive_avg_pool2d":
            node.target, node.args, node.kwargs = _aten.sum.dim_IntList, (x, [-2, -1], True), {}
        elif name == "adaptive_avg_pool1d":
            node.target, node.args, node.kwargs = _aten.sum.dim_IntList, (x, [-1], True), {}
        else:
            args = [*node.args, *[[], [0, 0], False, True, None][len(node.args) - 2 :]]
            args[6] = 1
            node.args = tuple(args[:7])
        return count

    def _factor(self, node: fx.Node, stream: fx.Node) -> float | None:
        """Multiplication by a constant: the constant takes the units up."""
        other = node.args[1] if node.args[0] is stream else node.args[0]
        dividing = network.op_name(node) == "div"
        if dividing and (node.args[0] is not stream or node.kwargs or len(node.args) > 2):
            return None
        wanted = self.wanted[node] or 1.0
        ratio = self.unit[stream] / wanted
        tensor = network.constant(other)
        if isinstance(other, int | float):
            if other == 0 or other < 0:
                ratio_value: Any = float(snap(torch.tensor((1 / other if dividing else other) * ratio), self.bits))
                node.target, node.args = _aten.mul.Tensor, (stream, ratio_value)
                return wanted
            # A positive number only changes the unit: nothing is multiplied.
            value = 1 / float(other) if dividing else float(other)
            if self.wanted[node] is None or math.isclose(self.unit[stream] * value, wanted):
                node.replace_all_uses_with(stream)
                return self.unit[stream] * value
            node.target = _aten.mul.Tensor
            node.args = (stream, float(snap(torch.tensor(value * ratio, dtype=torch.float64), self.bits)))
            return wanted
        if tensor is None:
            return None
        values = tensor.detach().double()
        values = snap((1 / values if dividing else values) * ratio, self.bits).to(tensor.dtype)
        with self.gm.graph.inserting_before(node):
            stored = network.new_constant(self.gm, str(other.target), values, like=node)  # type: ignore[union-attr]
        stored.meta["spec"] = other.meta.get("spec")  # type: ignore[union-attr]
        node.target, node.args = _aten.mul.Tensor, (stream, stored)
        return wanted

    def _weights(self, node: fx.Node, stream: fx.Node) -> float:
        """``W * unit_in / unit_out`` on a power-of-two grid per output channel; the bias on a finer one."""
        unit = self.wanted[node] if self.wanted[node] is not None else 1.0
        assert unit is not None
        weight_node = ops.weight_of(node)
        assert weight_node is not None
        weight = network.constant(weight_node)
        assert weight is not None
        scaled = channels_first(node, weight.detach().double()) * (self.unit[stream] / unit)
        most = 2 ** (self.bits - 1) - 1
        top = scaled.flatten(1).abs().amax(1).clamp(min=most * 2.0**-_FINEST)
        exponent = torch.floor(torch.log2(most / top)).clamp(max=_FINEST)
        step = torch.ldexp(torch.ones_like(exponent), -exponent.to(torch.int32))
        step = step.reshape([-1] + [1] * (scaled.dim() - 1))
        whole = torch.floor(scaled / step + 0.5).clamp(-most, most)
        with self.gm.graph.inserting_before(node):
            stored = channels_back(node, whole * step).to(weight.dtype)
            new_weight = network.new_constant(self.gm, str(weight_node.target), nn.Parameter(stored, False), like=node)
            new_weight.meta["spec"] = weight_node.meta.get("spec")
            node.args = tuple(new_weight if a is weight_node else a for a in node.args)
            index = ops.bias_index(node)
            if index is not None:
                bias_node = node.args[index]
                bias = network.constant(bias_node)
                assert bias is not None and isinstance(bias_node, fx.Node)
                values = bias.detach().double() / unit
                fine = step.flatten() * 2.0**-4 if values.numel() == step.numel() else step.min() * 2.0**-4
                values = torch.floor(values / fine + 0.5) * fine
                new_bias = network.new_constant(
                    self.gm, str(bias_node.target), nn.Parameter(values.to(bias.dtype), False), like=node
                )
                new_bias.meta["spec"] = bias_node.meta.get("spec")
                node.update_arg(index, new_bias)
        return unit

    def _convert(self, reader: fx.Node, stream: fx.Node, unit: float) -> None:
        new = self._converted(stream, unit, reader)
        if new is not stream:
            reader.replace_input_with(stream, new)

    def _converted(self, stream: fx.Node, unit: float, reader: fx.Node) -> fx.Node:
        """``stream`` in another unit: multiplied by a short dyadic factor where it is not in it already."""
        if stream not in self.unit or math.isclose(self.unit[stream], unit, rel_tol=1e-12):
            return stream
        ratio = torch.tensor(self.unit[stream] / unit, dtype=torch.float64)
        # Into the real unit of a general function no grid is needed, and none is lost.
        factor = float(ratio) if unit == 1.0 and reader.op != "output" else float(snap(ratio, self.bits))
        with self.gm.graph.inserting_before(reader):
            new = network.call(self.gm, _aten.mul.Tensor, (stream, factor), like=stream)
        new.meta["spec"] = stream.meta["spec"]
        self.unit[new] = unit
        return new


def _window(node: fx.Node) -> int:
    """How many values an averaging operation averages, where it is the same for each result; 1 otherwise."""
    if node.op != "call_function" or "spec" not in node.meta or ops.kind(node) is not Kind.AVERAGE:
        return 1
    name = network.op_name(node)
    before, after = network.spec(node.all_input_nodes[0]), network.spec(node)
    if name in ("adaptive_avg_pool2d", "adaptive_avg_pool1d"):
        spatial = 2 if name.endswith("2d") else 1
        return math.prod(before.shape[-spatial:]) if math.prod(after.shape[-spatial:]) == 1 else 1
    if name == "mean":
        return max(before.numel // max(after.numel, 1), 1)
    if name == "avg_pool2d":
        args = [*node.args, *[[], [0, 0], False, True, None][len(node.args) - 2 :]]
        padding, ceil, include, override = args[3], args[4], args[5], args[6]
        padded = any(padding) if isinstance(padding, list | tuple) else bool(padding)
        if ceil or override is not None or (padded and not include):
            return 1
        kernel = node.args[1]
        return math.prod(kernel) if isinstance(kernel, list | tuple) else int(kernel) ** 2  # type: ignore[arg-type]
    return 1


def _choose_arithmetic(gm: fx.GraphModule) -> tuple[Exactness, ...]:
    """Put float64 where float32 might round, in place, and say for each operation that adds what it needs."""
    grids = Grids(gm)
    report: list[Exactness] = []
    wide: set[fx.Node] = set()
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or "spec" not in node.meta or ops.is_constant(node):
            continue
        kind = ops.kind(node)
        if kind not in (Kind.SYNAPTIC, Kind.SUM) and network.op_name(node) != "sum":
            continue
        grid = grids.get(node)
        if grid is None:
            if kind is Kind.SYNAPTIC:
                report.append(Exactness(network.origin(node), network.op_name(node), math.inf, "inexact"))
            continue
        bits = grid.bits
        arithmetic = "float32" if bits < FLOAT32_BITS else "float64"
        if bits >= FLOAT64_BITS:
            arithmetic = "inexact" if kind is Kind.SYNAPTIC else "rounded"
        report.append(Exactness(network.origin(node), network.op_name(node), round(bits, 2), arithmetic))
        if arithmetic in ("float64", "inexact"):
            wide.add(node)
    for node in wide:
        _widen(gm, node)
    if wide:
        _narrow(gm, wide)
        network.tidy(gm)
        network.annotate(gm)
    return tuple(report)


def _widen(gm: fx.GraphModule, node: fx.Node) -> None:
    """Compute a node in float64: its constants stored so, its streams converted."""
    for operand in list(node.all_input_nodes):
        if "spec" not in operand.meta or not network.spec(operand).dtype.is_floating_point:
            continue
        with gm.graph.inserting_before(node):
            tensor = network.constant(operand)
            if tensor is not None:
                new = network.new_constant(gm, str(operand.target), tensor.detach().double(), like=node)
            else:
                new = _to(gm, operand, torch.float64)
        new.meta["spec"] = operand.meta["spec"]
        node.replace_input_with(operand, new)


def _narrow(gm: fx.GraphModule, wide: set[fx.Node]) -> None:
    """Behind each neuron, before an operation that stays in float32, and at the outputs, values lose their width."""
    dtype = next((s.dtype for s in network.info(gm).inputs if s.dtype.is_floating_point), torch.float32)
    double = set(wide)
    for node in list(gm.graph.nodes):
        received = [n for n in node.all_input_nodes if n in double]
        if node in wide or not received:
            continue
        if node.target is _aten.to.dtype:
            if node.args[1] is torch.float64:
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


#: Kinds that hand float64 on.
_WIDE_TOO = {Kind.SHAPE, Kind.MAXIMUM, Kind.AVERAGE, Kind.SUM, Kind.SCALE, Kind.PRODUCT}


def _to(gm: fx.GraphModule, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    new = network.call(gm, _aten.to.dtype, (node, dtype), like=node)
    new.meta["spec"] = node.meta["spec"]
    return new
