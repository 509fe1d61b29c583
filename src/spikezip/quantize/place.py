"""What reaches each operation: the analog input, spikes, or an analog value that needs a neuron."""

from __future__ import annotations

import enum

import torch
from torch import fx, nn

from spikezip.graph import network, ops
from spikezip.graph.ops import Kind
from spikezip.quantize.grid import fill_value


class Carrier(enum.Enum):
    """What flows along an edge of the QANN's graph."""

    CONSTANT = "constant"
    INPUT = "input"  #: the network's analog input, perhaps shifted, scaled or reshaped
    SPIKES = "spikes"  #: sums, products, averages or maxima of codes
    ANALOG = "analog"  #: anything else: a drive, a normalised value, a probability


_PASS = {Kind.SHAPE, Kind.MAXIMUM, Kind.AVERAGE, Kind.SUM, Kind.SCALE, Kind.PRODUCT}


class Carriers:
    """Classifies the nodes of one graph, each once."""

    def __init__(self, gm: fx.GraphModule, neuron: type[nn.Module]):
        self._gm = gm
        self._neuron = neuron
        self._known: dict[fx.Node, Carrier] = {}

    def __getitem__(self, node: fx.Node) -> Carrier:
        # Iterative: graphs may be deeper than Python's stack.
        todo = [node]
        while todo:
            current = todo[-1]
            if current in self._known:
                todo.pop()
                continue
            missing = [n for n in current.all_input_nodes if n not in self._known]
            if missing:
                todo.extend(missing)
                continue
            self._known[current] = self._classify(current)
            todo.pop()
        return self._known[node]

    def forget(self) -> None:
        """Classify anew after the graph has changed."""
        self._known.clear()

    def _classify(self, node: fx.Node) -> Carrier:
        if node.op == "placeholder":
            return Carrier.INPUT
        if node.op == "call_module":
            module = self._gm.get_submodule(str(node.target))
            if isinstance(module, self._neuron):
                return Carrier.SPIKES
            # InputGrid and FixedPoint round what they hand on.
            return self._known[node.all_input_nodes[0]]
        if ops.is_constant(node):
            return Carrier.CONSTANT
        signals = [n for n in node.all_input_nodes if "spec" in n.meta or ops.kind(n) is not Kind.SIZE]
        below = {self._known[n] for n in signals} - {Carrier.CONSTANT}
        if node.op != "call_function" or ops.kind(node) not in _PASS or not below:
            return Carrier.ANALOG
        if below == {Carrier.INPUT} and ops.kind(node) is not Kind.PRODUCT:
            return Carrier.INPUT
        return Carrier.SPIKES if below == {Carrier.SPIKES} else Carrier.ANALOG


def needs_neuron(gm: fx.GraphModule, carriers: Carriers) -> list[tuple[fx.Node, fx.Node]]:
    """The edges (source, reader) on which a neuron is missing.

    A synaptic operation must receive spikes or the network's input. Where it does not, the edge is followed upwards
    through operations that only move values (and have one reader), so that the neuron sits where the value is made; but
    not past where it becomes a real number.
    """
    missing = []
    for node in gm.graph.nodes:
        if node.op != "call_function" or ops.kind(node) is not Kind.SYNAPTIC:
            continue
        bias = ops.bias_index(node)
        for operand in ops.data_operands(node):
            if carriers[operand] is not Carrier.ANALOG or (bias is not None and operand is node.args[bias]):
                continue
            source, reader = operand, node
            while (
                source.op == "call_function"
                and ops.kind(source) is Kind.SHAPE
                and (len(source.users) == 1 or not network.spec(source).outer)
                and len(ops.data_operands(source)) == 1
                and "spec" in ops.data_operands(source)[0].meta
                and network.spec(ops.data_operands(source)[0]).dtype.is_floating_point
            ):
                source, reader = ops.data_operands(source)[0], source
            missing.append((source, reader))
    return missing


_NEVER_NEGATIVE = {
    "relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "_softmax", "softplus", "abs", "square", "exp",
    "zeros", "ones", "zeros_like", "ones_like", "new_zeros", "new_ones",
}  # fmt: skip
_KEEPS_SIGN = {Kind.SHAPE, Kind.MAXIMUM, Kind.AVERAGE}
#: Which operand says where values come from, or go to, and is no value itself.
_PLACES = {"where": 0, "masked_fill": 1, "index": 1, "gather": 2, "index_select": 2}


def never_negative(node: fx.Node) -> bool:
    """Whether a value is at least 0 whatever the input: its quantizer then starts at 0."""
    todo, seen = [node], set()
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            sources = _signs_from(node)
            if sources is None:
                return False
            todo.extend(sources)
    return True


def _signs_from(node: fx.Node) -> list[fx.Node] | None:
    """The nodes that must not be negative for a value not to be; None where it may be negative all the same."""
    stored = network.constant(node)
    if stored is not None:
        return None if stored.is_complex() or bool((stored < 0).any()) else []
    if node.op != "call_function":
        return None
    name, spec = network.op_name(node), node.meta.get("spec")
    if name == "mul" and node.args[0] is node.args[1]:
        return None if spec and spec.dtype.is_complex else []
    if name in _NEVER_NEGATIVE or (spec and spec.dtype in (torch.bool, torch.uint8)):
        return []
    if name in ("hardtanh", "clamp", "clamp_min"):
        low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min_val", -1)
        return [] if isinstance(low, int | float) and low >= 0 else None
    # Bicubic weights are negative in part.
    keeps = name == "where" or (ops.kind(node) in _KEEPS_SIGN and "bicubic" not in name)
    put_in = [a for a in node.args if isinstance(a, int | float)] if name == "where" else [fill_value(node)]
    if not keeps or any(number < 0 for number in put_in):
        return None
    values: list[fx.Node] = []
    fx.map_arg([a for i, a in enumerate(node.args) if i != _PLACES.get(name)], values.append)
    return [n for n in values if ops.is_signal(n)]
