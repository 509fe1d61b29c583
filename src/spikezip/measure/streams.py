"""Which streams of spikes reach an operation, and how many synapses each of their positions feeds.

From an operation one walks back, through everything linear, to where spikes are made: trackers, max-pools, products.
Each such source is a *stream*, charged by itself. Its *fan-out map* is the adjoint of the way down with every weight
replaced by 1: borders, padding, stride, groups and dilation are in it exactly, for any linear operation.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.graph import network, ops
from spikezip.graph.ops import Kind
from spikezip.measure.windows import summed, windows_per_position
from spikezip.quantize.grid import FixedPoint, InputGrid
from spikezip.spike.neuron import STBIF
from spikezip.spike.swap import SpikingNetwork


class Carries(enum.Enum):
    """What one stream carries from step to step."""

    TERNARY = "ternary"  #: -1, 0 or +1 times a threshold
    GRADED = "graded"  #: several levels at once (a slew above 1, a maximum of sums)
    FIXED_POINT = "fixed point"  #: a sum rounded to fixed point, or an average that no weights can absorb
    PRODUCT = "product"  #: the product of two streams
    ANALOG = "analog"  #: a general function (LayerNorm, softmax, ...), or a drive no neuron has turned into spikes
    INPUT = "analog input"  #: the network's own input


class Reader(enum.Enum):
    """What an operation does with the streams that reach it."""

    SYNAPSES = "weights them (convolution, linear, matmul)"
    PRODUCT = "multiplies them by other streams (element by element, or as matrices)"
    NEURONS = "adds them to membranes"
    MAXIMUM = "compares them"
    FUNCTION = "adds them up and applies a general function"
    OUTPUT = "adds them up: the network's answer"


@dataclass(frozen=True, eq=False)
class Stream:
    """One source on its way to one operand.

    Attributes:
        source: the node that makes the spikes.
        carries: what it sends.
        fanout: for each position of the source, how many synapses it feeds; of the source's shape for one image.
        averaged: whether an average lies on the way; it is folded into the weights (each window passes the spike on).
        drive: whether it is the sum of a synaptic operation, not yet a spike.
        copied: whether that sum was made in the membranes (or accumulators) of an earlier reader, so that this one has
            to be handed every change of it (membrane shortcuts, pre-activation blocks).
    """

    source: fx.Node
    carries: Carries
    fanout: Tensor
    averaged: bool
    drive: bool = False
    copied: bool = False

    @property
    def name(self) -> str:
        """The neuron layer's name, or that of the operation."""
        return _name(self.source)

    @property
    def spikes(self) -> bool:
        """Whether it is made of spikes: ternary, or a tracker's levels one by one."""
        graded = self.carries is Carries.GRADED and self.source.op == "call_module"
        return self.carries is Carries.TERNARY or graded


@dataclass(frozen=True, eq=False)
class Operand:
    """All streams that reach one operand of one operation.

    Attributes:
        reader: the operation.
        role: what it does with them.
        node: the operand.
        streams: what it is made of.
        overlap: the most streams that meet at one position.
        fanout: for each position of the operand itself, how many synapses it feeds.
    """

    reader: fx.Node
    role: Reader
    node: fx.Node
    streams: tuple[Stream, ...]
    overlap: int
    fanout: Tensor

    @property
    def name(self) -> str:
        """The author's name of the operation."""
        return "output" if self.role is Reader.OUTPUT else _name(self.reader)

    @property
    def averaged(self) -> bool:
        """Whether an average lies between the spikes and the operation."""
        return any(stream.averaged for stream in self.streams)

    @property
    def kind(self) -> str:
        """What arrives: ``ternary``, ``streams:k``, ``fractional``, ... (``MEANING`` in measure/audit.py)."""
        carried = {stream.carries for stream in self.streams}
        for worst in (Carries.ANALOG, Carries.PRODUCT, Carries.FIXED_POINT, Carries.GRADED):
            if worst in carried:
                return worst.value
        if not carried:
            return "none"
        if Carries.INPUT in carried:
            return Carries.INPUT.value if carried == {Carries.INPUT} else Carries.ANALOG.value
        if self.averaged:
            return "fractional"
        return "ternary" if self.overlap <= 1 else f"streams:{self.overlap}"


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else network.origin(node)


#: Linear operations that a walk back goes through.
_LINEAR = {Kind.SHAPE, Kind.SUM, Kind.SCALE, Kind.AVERAGE}
_FOLDABLE = {"sum", "cumsum", "mean", *(f"{a}avg_pool{d}d" for a in ("", "adaptive_") for d in (1, 2, 3))}
#: Readers that add what reaches them up in memories of their own.
_HOLD = (Reader.NEURONS, Reader.OUTPUT, Reader.FUNCTION)
_CASTS = {"to", "_to_copy", "type_as", "contiguous"}


class Streams:
    """The streams of one SNN."""

    def __init__(self, snn: SpikingNetwork):
        self._gm = snn.graph
        self._place = {node: i for i, node in enumerate(snn.graph.graph.nodes)}
        self._values = _values_of_one_image(snn.graph)
        self._carried: dict[fx.Node, Carries] = {}
        self._stairs: dict[fx.Node, tuple[Tensor, Tensor]] = {}
        self._made: set[fx.Node] = set()
        self._holders = self._first_readers()

    def operands(self) -> Iterator[Operand]:
        """Every operand of every operation that costs something, in order of execution."""
        self._made.clear()
        for node in self._gm.graph.nodes:
            role = self.role(node)
            if role is None:
                continue
            if role in (Reader.SYNAPSES, Reader.PRODUCT):
                factors = _factors(node)
                for i, operand in enumerate(factors):
                    yield self._operand(node, role, operand, factors[:i].count(operand))
                continue
            for operand in network.outputs(self._gm) if role is Reader.OUTPUT else ops.data_operands(node):
                found = self._operand(node, role, operand)
                yield self._with_copies(found) if role in _HOLD else found

    def _with_copies(self, operand: Operand) -> Operand:
        """The first to read a sum holds it; who reads it later is handed copies."""
        streams = []
        for stream in operand.streams:
            again = stream.drive and (stream.source in self._made or not self._is_made(stream.source))
            streams.append(replace(stream, copied=again))
            self._made.add(stream.source)
        return replace(operand, streams=tuple(streams))

    def _is_made(self, node: fx.Node) -> bool:
        return ops.kind(node) is Kind.SYNAPTIC

    def role(self, node: fx.Node) -> Reader | None:
        """What a node does with streams; None for one that only passes them on, or has none."""
        if node.op == "output":
            return Reader.OUTPUT
        if node.op == "call_module":
            module = self._gm.get_submodule(str(node.target))
            if isinstance(module, FixedPoint):
                return Reader.FUNCTION if self._feeds_synapses(node) else None
            return Reader.NEURONS if isinstance(module, STBIF) else None
        if node.op != "call_function" or not ops.is_signal(node) or ops.is_constant(node) or self._passes(node):
            return None
        if network.op_name(node) == "getitem":
            return None
        kind = ops.kind(node)
        if kind is Kind.SYNAPTIC:
            return Reader.SYNAPSES if len(_factors(node)) == 1 else Reader.PRODUCT
        return {Kind.PRODUCT: Reader.PRODUCT, Kind.MAXIMUM: Reader.MAXIMUM}.get(kind, Reader.FUNCTION)

    def carries(self, node: fx.Node) -> Carries:
        """What a source sends."""
        if node not in self._carried:
            self._carried[node] = self._classify(node)
        return self._carried[node]

    def is_drive(self, node: fx.Node) -> bool:
        """Whether a source is the sum of a synaptic operation, or one that a reader before has added up."""
        return node.op == "call_function" and ops.is_signal(node) and ops.kind(node) in (Kind.SYNAPTIC, Kind.SUM)

    def _first_readers(self) -> dict[fx.Node, fx.Node]:
        """The sums that stand, whole, in some reader's membranes, each with the first such reader."""
        found: dict[fx.Node, fx.Node] = {}
        for reader in self._gm.graph.nodes:
            if self.role(reader) not in _HOLD:
                continue
            for node in network.outputs(self._gm) if reader.op == "output" else ops.data_operands(reader):
                while self._rounds(node) or _same_sum(node):
                    node = ops.data_operands(node)[0]
                if node.op == "call_function" and ops.is_signal(node) and ops.kind(node) is Kind.SUM:
                    found.setdefault(node, reader)
        return found

    # -- the walk back ------------------------------------------------------------------------------------------------

    def _passes(self, node: fx.Node) -> bool:
        if node.op != "call_function" or not ops.is_signal(node):
            return False
        kind = ops.kind(node)
        if network.op_name(node) == "getitem":
            return self._passes(node.args[0]) if isinstance(node.args[0], fx.Node) else False
        if kind is Kind.AVERAGE:
            return network.op_name(node) in _FOLDABLE
        return kind in _LINEAR and not _looks(node)

    def _classify(self, node: fx.Node) -> Carries:
        if node.op == "placeholder":
            return Carries.INPUT
        if node.op == "call_module":
            module = self._gm.get_submodule(str(node.target))
            if isinstance(module, STBIF):
                return Carries.TERNARY if module.slew == 1 else Carries.GRADED
            if isinstance(module, InputGrid):
                return Carries.INPUT
            # Looked at as something that holds nothing itself: a sum that others hold is still a sum of spikes.
            rounded = self._operand(node, Reader.MAXIMUM, node.all_input_nodes[0], count=False).kind
            kept = {"analog": Carries.ANALOG, "analog input": Carries.INPUT}
            return kept.get(rounded, Carries.FIXED_POINT)
        if network.op_name(node) == "getitem" and isinstance(node.args[0], fx.Node):
            return self.carries(node.args[0]) if node.args[1] == 0 else Carries.ANALOG
        kind = ops.kind(node)
        if kind not in (Kind.MAXIMUM, Kind.PRODUCT, Kind.AVERAGE):
            return Carries.ANALOG
        # A maximum, a product or an average of spikes is a stream; of anything else it is a value like any other.
        found = [self._operand(node, Reader.MAXIMUM, operand, count=False) for operand in ops.data_operands(node)]
        kinds = {operand.kind for operand in found}
        if kinds & {"analog", "none"}:
            return Carries.ANALOG
        if kinds == {"analog input"}:
            return Carries.ANALOG if kind is Kind.PRODUCT else Carries.INPUT
        if kind is Kind.AVERAGE:
            return Carries.FIXED_POINT
        if kind is Kind.PRODUCT:
            return Carries.PRODUCT
        if kinds == {"ternary"} and self._is_one_staircase(node):
            return Carries.TERNARY
        return Carries.PRODUCT if "product" in kinds else Carries.GRADED

    def _is_one_staircase(self, node: fx.Node) -> bool:
        """Whether, in each window of a maximum, all values climb by one and the same step from one and the same value.

        Only then is the greatest of ternary streams ternary. Where no stream arrives (padding) there is no step.
        """
        (operand,) = ops.data_operands(node)
        sources, between = self._region(node, operand, Reader.MAXIMUM)
        starts, ends = ({s: self._stair(s)[code] for s in sources} for code in (0, 1))
        start, end = (self._real(between, values, operand) for values in (starts, ends))
        step = torch.nan_to_num(end - start)  # -inf, as a mask of stored values leaves, is never the greatest
        lowest, alike = self._greatest(node, start, start > -torch.inf)
        climbs, alike_too = self._greatest(node, step, step != 0)
        self._stairs[node] = lowest, lowest + torch.nan_to_num(climbs, neginf=0.0)
        return alike and alike_too

    def _stair(self, source: fx.Node) -> tuple[Tensor, Tensor]:
        """What a ternary source sends at code 0 and at code 1, for one image."""
        if network.op_name(source) == "getitem":
            source = source.all_input_nodes[0]
        if source.op == "call_module":
            neuron = self._gm.get_submodule(str(source.target))
            assert isinstance(neuron, STBIF)
            start = torch.zeros(network.spec(source).shape, dtype=torch.float64)
            return start, start + neuron.threshold.cpu()
        return self._stairs[source]  # a maximum, looked at before

    def _real(self, between: list[fx.Node], values: dict[fx.Node, Any], operand: fx.Node) -> Tensor:
        """What arrives, with the constants that there are."""
        for node in between:
            if network.op_name(node) in _CASTS:
                values[node] = values[ops.data_operands(node)[0]]
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values.get(n, _double(self._values[n])))  # type: ignore[misc]
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return values[operand]

    def _greatest(self, node: fx.Node, values: Tensor, there: Tensor) -> tuple[Tensor, bool]:
        """What a maximum makes of those values that are there, and whether in each window these are all the same."""
        args, kwargs = fx.map_arg((node.args[1:], node.kwargs), self._values.__getitem__)  # type: ignore[misc]

        def taken(values: Tensor) -> Tensor:
            found = node.target(torch.where(there, values, -torch.inf), *args, **kwargs)  # type: ignore[operator]
            return found[0] if isinstance(found, tuple) else found

        most = taken(values)
        return most, bool(((most == -taken(-values)) | most.isneginf()).all())

    def _rounds(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self._gm.get_submodule(str(node.target)), FixedPoint)

    def _feeds_synapses(self, node: fx.Node) -> bool:
        """Whether a rounded value is multiplied, and not only added to membranes."""
        todo = list(node.users)
        while todo:
            user = todo.pop()
            if user.op == "call_function" and ops.kind(user) in (Kind.SYNAPTIC, Kind.PRODUCT, Kind.MAXIMUM):
                return True
            if self._passes(user):
                todo.extend(user.users)
        return False

    def _region(self, reader: fx.Node, operand: fx.Node, role: Reader) -> tuple[list[fx.Node], list[fx.Node]]:
        """(sources, linear nodes in order) between an operand and where its spikes are made.

        Rounding to fixed point costs nothing where a membrane or an accumulator is rounded; what synapses read of it is
        no spike any more.
        """
        through = role in _HOLD
        sources: set[fx.Node] = set()
        between: set[fx.Node] = set()
        todo = [operand]
        while todo:
            node = todo.pop()
            if node in sources or node in between or ops.is_constant(node) or not ops.is_signal(node):
                continue
            if through and self._holders.get(node, reader) is not reader:
                sources.add(node)
            elif self._passes(node) or (through and self._rounds(node)):
                between.add(node)
                todo.extend(ops.data_operands(node))
            else:
                sources.add(node)
        return sorted(sources, key=self._place.__getitem__), sorted(between, key=self._place.__getitem__)

    # -- the adjoint --------------------------------------------------------------------------------------------------

    @torch.enable_grad()
    def _operand(self, reader: fx.Node, role: Reader, operand: fx.Node, before: int = 0, count: bool = True) -> Operand:
        sources, between = self._region(reader, operand, role)
        averaged = self._averaged(sources, between, operand)
        ones = {s: self._ones(s).requires_grad_() for s in sources}
        arrived = self._forward(between, dict(ones), operand)
        overlap = 0
        if sources and not any(averaged.values()):
            overlap = int(arrived.detach().max()) if arrived.numel() else 0
        if not sources or not count:
            streams = tuple(Stream(s, self.carries(s), torch.zeros(()), averaged[s], self.is_drive(s)) for s in sources)
            return Operand(reader, role, operand, streams, overlap, torch.zeros(()))
        # The operand's own fan-out first, then each source's, through what lies between.
        leaf = torch.ones_like(arrived).requires_grad_()
        (own,) = torch.autograd.grad(self._read(reader, role, operand, before, leaf).sum(), leaf)
        found = torch.autograd.grad(arrived, list(ones.values()), own, allow_unused=True)
        streams = tuple(
            Stream(s, self.carries(s), torch.zeros_like(ones[s]) if f is None else f, averaged[s], self.is_drive(s))
            for s, f in zip(sources, found, strict=True)
        )
        return Operand(reader, role, operand, streams, overlap, own)

    def _ones(self, node: fx.Node) -> Tensor:
        return torch.ones(network.spec(node).shape, dtype=torch.float64)

    def _averaged(self, sources: list[fx.Node], between: list[fx.Node], operand: fx.Node) -> dict[fx.Node, bool]:
        """Whether a way from each source to the operand leads through an average (of more than one value)."""
        after: dict[fx.Node, bool] = {operand: False}  # is there an average between this node (excluded) and the end?
        for node in reversed(between):
            here = after.get(node, False) or (
                network.op_name(node) != "getitem" and ops.kind(node) is Kind.AVERAGE and _averages(node)
            )
            for before in ops.data_operands(node):
                after[before] = after.get(before, False) or here
        return {s: after.get(s, False) for s in sources}

    def _forward(self, between: list[fx.Node], values: dict[fx.Node, Any], operand: fx.Node) -> Tensor:
        for node in between:
            values[node] = self._linear(node, values)
        result = values.get(operand)
        return result if isinstance(result, Tensor) else torch.zeros(network.spec(operand).shape, dtype=torch.float64)

    def _linear(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """A linear node with every weight 1; signs are dropped, so that nothing cancels."""
        carried = [values[n] for n in ops.data_operands(node) if n in values]
        if network.op_name(node) in _CASTS or node.op == "call_module":
            return carried[0]
        if network.op_name(node) != "getitem":
            kind = ops.kind(node)
            if kind is Kind.SUM or kind is Kind.SCALE:
                twice = len([a for a in node.args[:2] if a in values]) > len(carried)  # x + x
                total = torch.zeros(network.spec(node).shape, dtype=torch.float64)
                for value in carried:
                    total = total + value * (2 if twice else 1)
                return total
            if kind is Kind.AVERAGE:
                result = summed(node, carried[0])
                assert result is not None
                return result
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._shaped(n, values))  # type: ignore[misc]
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _shaped(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """An argument of an operation that moves values about: constants beside the streams are no streams."""
        if node in values:
            return values[node]
        value = self._values[node]
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return torch.zeros_like(value, dtype=torch.float64) if floating else value

    def _read(self, reader: fx.Node, role: Reader, operand: fx.Node, before: int, value: Tensor) -> Tensor:
        """What a reader makes of its operand (which came ``before`` so often) when every weight, and every other
        operand, is 1."""
        if role in (Reader.NEURONS, Reader.OUTPUT, Reader.FUNCTION):
            return value
        if role is Reader.MAXIMUM:
            return value * windows_per_position(reader)
        seen = 0

        def argument(node: fx.Node) -> Any:
            nonlocal seen
            if node is operand:
                seen += 1
                return value if seen == before + 1 else torch.ones_like(value)
            other = self._values[node]
            floating = isinstance(other, Tensor) and other.is_floating_point()
            return torch.ones_like(other, dtype=torch.float64) if floating else other

        args = fx.map_arg(reader.args, argument)
        kwargs = {k: v for k, v in reader.kwargs.items() if k not in ("alpha", "beta", "dtype", "out_dtype")}
        return reader.target(*args, **fx.map_arg(kwargs, argument))  # type: ignore[operator,return-value]


def _same_sum(node: fx.Node) -> bool:
    """Whether a node hands a sum on value for value: scaled, or in another format."""
    if node.op != "call_function" or not ops.is_signal(node) or len(ops.data_operands(node)) != 1:
        return False
    return network.op_name(node) in _CASTS or ops.kind(node) is Kind.SCALE


def _looks(node: fx.Node) -> bool:
    """Whether an operation that moves values about looks at some: at a mask or at places, or to cut off fractions."""
    if ops.kind(node) is not Kind.SHAPE:
        return False
    if network.op_name(node) in _CASTS:
        return _is_whole(node) and not _is_whole(ops.data_operands(node)[0])
    moved: list[fx.Node] = []
    fx.map_arg(node.args[:1], lambda n: moved.append(n) or n)
    return any(n not in moved and _is_whole(n) for n in ops.data_operands(node))


def _is_whole(node: fx.Node) -> bool:
    dtype = network.spec(node).dtype
    return not (dtype.is_floating_point or dtype.is_complex)


def _averages(node: fx.Node) -> bool:
    """Whether a window of an average holds more than one value."""
    total = summed(node, torch.ones(network.spec(node.all_input_nodes[0]).shape, dtype=torch.float64))
    return total is None or bool((total > 1).any())


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _factors(node: fx.Node) -> list[fx.Node]:
    """The signals that a synaptic operation, or a product, multiplies: one that is multiplied by itself comes twice."""
    bias = ops.bias_index(node)
    bare = node.args[bias] if bias is not None else None
    return [n for n in ops.appearances(node) if n is not bare]


@torch.no_grad()
def _values_of_one_image(gm: fx.GraphModule) -> dict[fx.Node, Any]:
    """Every node's value for a batch of one (sizes and constants are needed; values are not looked at)."""
    found: dict[fx.Node, Any] = {}

    class Values(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n.op == "call_module" and isinstance(self.fetch_attr(str(n.target)), STBIF):
                result = self.fetch_args_kwargs_from_env(n)[0][0]
            else:
                result = super().run_node(n)
            found[n] = result.cpu() if isinstance(result, Tensor) else result
            return result

    device = network.device(gm)
    inputs = [torch.zeros((1, *s.shape), dtype=s.dtype, device=device) for s in network.info(gm).inputs]
    interpreter = Values(gm, garbage_collect_values=False)
    interpreter.extra_traceback = False
    interpreter.run(*inputs)
    return found
