"""The rows of a count: each operation with its operands, and its work in the two networks that know no time."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import fx

from spikezip.graph import network, ops
from spikezip.graph.ops import Kind
from spikezip.measure.functions import NO_RULE, cost_of
from spikezip.measure.streams import Carries, Operand, Reader, Streams
from spikezip.measure.windows import result_of, summed
from spikezip.measure.work import EVENTS_QUEUED, FLOAT_BITS, MEMBRANE_BITS, Work
from spikezip.quantize.grid import InputGrid
from spikezip.spike.neuron import STBIF
from spikezip.spike.swap import SpikingNetwork


@dataclass
class Layer:
    """A row in the making.

    Attributes:
        node: the operation.
        role: what it does with streams; None for sums, averages and scalings.
        name: the author's name.
        kind: the operation's name.
        operands: what reaches it.
        size: values of its result per image.
        maps: whether it is a convolution (a spike's first synapse then has to be found).
        bias: values of its result that a bias is added to.
        constant: values a constant is added to, once.
        function: counts of one evaluation, for a general function.
        unknown: whether it is a function of spikes (or of what is computed from them) that no rule counts.
        scaled: the node, if it multiplies by a constant that cannot be folded.
    """

    node: fx.Node
    role: Reader | None
    name: str
    kind: str
    operands: list[Operand] = field(default_factory=list)
    size: int = 0
    maps: bool = False
    bias: int = 0
    constant: int = 0
    function: dict[str, float] | None = None
    unknown: bool = False
    scaled: fx.Node | None = None
    snn: Work = field(default_factory=Work)
    qann: Work = field(default_factory=Work)
    ann: Work = field(default_factory=Work)

    @property
    def input(self) -> str:
        """What synapses receive; of the operands of a product, each. Empty for other operations."""
        if self.role not in (Reader.SYNAPSES, Reader.PRODUCT):
            return ""
        return " x ".join(operand.kind for operand in self.operands)


def layers_of(snn: SpikingNetwork) -> tuple[list[Layer], tuple[str, ...]]:
    """(rows in order of execution with everything static counted, what is not counted)."""
    streams = Streams(snn)
    layers: dict[fx.Node, Layer] = {}
    uncounted: list[str] = []
    neurons = {name for name, _ in snn.layers}
    behind: set[fx.Node] = set()  # neurons, and what is computed from their spikes
    for node in snn.graph.graph.nodes:
        if str(node.target) in neurons or not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
        role = streams.role(node)
        if role is not None:
            layers[node] = _layer(node, role)
        elif node.op == "call_function" and "spec" in node.meta and not ops.is_constant(node):
            if (layer := _in_between(node)) is not None:
                layers[node] = layer
    for operand in streams.operands():
        layers[operand.reader].operands.append(operand)
    bits = network.note(snn.graph, "weight_bits") or FLOAT_BITS
    for layer in layers.values():
        if layer.role is Reader.SYNAPSES or layer.role is Reader.PRODUCT:
            _multiplies(layer, bits)
        elif layer.role is Reader.MAXIMUM:
            compared = sum(float(operand.fanout.sum()) for operand in layer.operands) - layer.size
            _both(layer, compare=compared, activation_read=compared + layer.size, activation_write=float(layer.size))
            layer.snn.store("spike", EVENTS_QUEUED, _address(layer.size))
        elif layer.role is Reader.NEURONS:
            _fires(layer, snn)
        elif layer.role is Reader.FUNCTION:
            if missing := _evaluates(layer):
                uncounted.append(f"{layer.name} ({layer.kind}): {missing}")
                layer.unknown = missing.endswith(NO_RULE) and layer.node in behind
        if layer.role in (Reader.FUNCTION, Reader.OUTPUT):
            layer.snn.store("membrane", sum(network.spec(o.node).numel for o in layer.operands), MEMBRANE_BITS)
        _stores_what_it_reads(layer, snn)
    said = Counter(uncounted)
    return list(layers.values()), tuple(f"{what} ({n} of these)" if n > 1 else what for what, n in said.items())


def _layer(node: fx.Node, role: Reader) -> Layer:
    if role is Reader.OUTPUT:
        return Layer(node, role, "output", "output")
    size = network.spec(node).numel if "spec" in node.meta else 0
    if role is Reader.NEURONS:
        return Layer(node, role, str(node.target), "ST-BIF", size=size)
    kind = network.op_name(node)
    if role is Reader.MAXIMUM:
        made = result_of(node)
        return Layer(made, role, network.origin(node), kind, size=network.spec(made).numel)
    if node.op == "call_module":
        return Layer(node, role, network.origin(node), kind, size=size)
    layer = Layer(node, role, network.origin(node), kind, size=size, maps=kind.startswith("conv"))
    index = ops.bias_index(node)
    layer.bias = size if index is not None and role in (Reader.SYNAPSES, Reader.PRODUCT) else 0
    return layer


def _in_between(node: fx.Node) -> Layer | None:
    """Sums, averages and scalings: free in an SNN, as the streams run through them, but not in the other two."""
    kind, size = ops.kind(node), network.spec(node).numel
    if kind not in (Kind.SUM, Kind.AVERAGE, Kind.SCALE):
        return None
    layer = Layer(node, None, network.origin(node), network.op_name(node), size=size)
    if kind is Kind.SUM:
        _both(layer, add=float(size), activation_read=float(size))
        if len(ops.data_operands(node)) == 1 and any(ops.is_constant(a) for a in node.args[:2]):
            layer.constant = size
    elif kind is Kind.AVERAGE:
        total = summed(node, torch.ones(network.spec(node.all_input_nodes[0]).shape, dtype=torch.float64))
        if total is None:
            return None
        _both(layer, add=float(total.sum()) - size, activation_read=float(total.sum()))
        _both(layer, activation_write=float(size))
        if layer.kind not in ("sum", "cumsum"):
            _both(layer, mul=float(size))
    elif not _folds(node):
        _both(layer, mul=float(size))
        layer.scaled = node
    return layer if layer.qann.operations else None


def _folds(node: fx.Node) -> bool:
    """Whether a constant factor is one for all, or one per channel, so that weights can absorb it."""
    for operand in node.all_input_nodes:
        if ops.is_constant(operand) and "spec" in operand.meta:
            if sum(n > 1 for n in network.spec(operand).shape) > 1:
                return False
    return True


def _evaluates(layer: Layer) -> str | None:
    """Count a general function: its arithmetic, what it reads and what it writes. Returns what cannot be counted."""
    read = float(sum(network.spec(o.node).numel for o in layer.operands))
    size = float(layer.size) or read  # normalisations give several results; the first is as large as what they read
    rounds = layer.node.op == "call_module"  # to fixed point: an addition and a shift a value
    arithmetic, missing = ({"add": size}, None) if rounds else cost_of(layer.node)
    _both(layer, **arithmetic, activation_read=read, activation_write=size)
    # In the SNN it reads the accumulators that its streams were added into.
    layer.function = {**arithmetic, "membrane_read": read, "activation_write": size}
    layer.snn.store("activation", int(size), MEMBRANE_BITS)
    return missing


def _both(layer: Layer, **counts: float) -> None:
    layer.qann.add(**counts)
    layer.ann.add(**counts)


def _multiplies(layer: Layer, bits: int) -> None:
    if not layer.operands:
        return
    first = layer.operands[0]
    dense, received = float(first.fanout.sum()), sum(network.spec(o.node).numel for o in layer.operands)
    name = "mul" if ops.kind(layer.node) is Kind.PRODUCT else "mac"
    stored = layer.role is Reader.SYNAPSES
    read = dense * (1 if stored else len(layer.operands)) if layer.maps or not stored else float(received)
    _both(layer, **{name: dense, "activation_read": read, "address_add": float(received + layer.size)})
    if layer.bias:
        _both(layer, add=float(layer.bias), bias_read=float(layer.bias))
    weight = network.constant(ops.factor_of(layer.node)) if stored else None
    if stored:
        # A weight that is computed from stored tensors counts as stored.
        values = weight.numel() if weight is not None else int(dense / max(received, 1))
        _both(layer, weight_read=dense)
        streams = sum(s.carries is not Carries.INPUT for s in first.streams)
        layer.snn.store("weight", values * max(streams, 1), bits)
        layer.qann.store("weight", values, bits)
        layer.ann.store("weight", values, FLOAT_BITS)
    for work, wide in ((layer.snn, MEMBRANE_BITS), (layer.qann, bits), (layer.ann, 32)):
        if layer.bias:
            work.store("bias", network.spec(layer.node).shape[1 if layer.maps else -1], wide)
    layer.snn.store("membrane", layer.size, MEMBRANE_BITS)


def _stores_what_it_reads(layer: Layer, snn: SpikingNetwork) -> None:
    for operand in layer.operands if layer.role is not Reader.NEURONS else ():
        values, width = network.spec(operand.node).numel, _activation_bits(operand, snn)
        layer.snn.store("activation", values, width)
        layer.qann.store("activation", values, width)
        layer.ann.store("activation", values, 32)
    if layer.role is None:  # a sum, an average: of accumulators
        values = max(network.spec(n).numel for n in layer.node.all_input_nodes if "spec" in n.meta)
        layer.qann.store("activation", values, MEMBRANE_BITS)
        layer.ann.store("activation", values, 32)
    for operand in layer.operands:
        for stream in operand.streams:
            values = network.spec(stream.source).numel
            layer.snn.store("spike", EVENTS_QUEUED, _address(values))
            if not stream.spikes and layer.role is Reader.NEURONS:
                layer.snn.store("activation", values, MEMBRANE_BITS)


def _fires(layer: Layer, snn: SpikingNetwork) -> None:
    neuron = dict(snn.layers)[str(layer.node.target)]
    size, width = float(layer.size), max(math.ceil(math.log2(neuron.levels.count)), 1)
    layer.qann.add(mul=size, add=size, compare=2 * size, activation_write=size)
    layer.ann.add(compare=size if neuron.levels.lowest == 0 else 0.0, activation_write=size)
    layer.qann.store("activation", layer.size, width)
    layer.ann.store("activation", layer.size, 32)
    layer.snn.store("membrane", layer.size, MEMBRANE_BITS)
    layer.snn.store("tracer", layer.size, width)
    layer.snn.store("spike", EVENTS_QUEUED, _address(layer.size))


def _address(neurons: int) -> int:
    """Bits of an event: which neuron, and the sign."""
    return max(math.ceil(math.log2(max(neurons, 2))), 1) + 1


def _activation_bits(operand: Operand, snn: SpikingNetwork) -> int:
    """Bits of the QANN's activation where the SNN has these streams."""
    most = 1
    for stream in operand.streams:
        source = stream.source
        while source.op == "call_function" and (  # as wide as what a maximum chooses from
            ops.kind(source) is Kind.MAXIMUM or network.op_name(source) == "getitem"
        ):
            source = next(n for n in source.all_input_nodes if ops.is_signal(n))
        module = snn.graph.get_submodule(str(source.target)) if source.op == "call_module" else None
        if isinstance(module, STBIF):
            bits = math.ceil(math.log2(module.levels.count * max(operand.overlap, 1)))
        elif isinstance(module, InputGrid):
            bits = math.ceil(math.log2(module.limit)) + 1
        else:
            bits = 8 if stream.carries is Carries.INPUT else MEMBRANE_BITS
        most = max(most, bits)
    return most
