"""What can be known of an SNN before it sees an image; found once per network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.errors import StageError
from spikezip.graph import network, ops
from spikezip.graph.network import Spec
from spikezip.graph.ops import Kind
from spikezip.kernels import SMOOTH, Smooth, Synapse, pack
from spikezip.quantize.grid import FLOAT32_BITS, FixedPoint
from spikezip.run.step import bias_of, scattered
from spikezip.spike.neuron import STBIF
from spikezip.spike.swap import SpikingNetwork, tracer_shape

_aten = torch.ops.aten
#: Operations that leave codes apart, as layers of integer weights read them.
_APART = {"cat", "add", "mul", "to", "max_pool2d", "upsample_nearest2d"}

#: Operations that leave numbers between two ends as they are, and give the nearer end for others.
_CLAMPS = {"clamp", "clamp_min", "clamp_max", "hardtanh", "relu", "relu6"}


@dataclass(frozen=True)
class Plan:
    """How the sweep goes over a graph.

    Attributes:
        nodes: the nodes to compute, in order.
        dependent: those that lie behind a neuron, or are one.
        frontier: those that do not, but are read by one that does (or returned): they are worth keeping.
        free: the nodes that nobody reads after a node.
        synapses: what integer arithmetic can do.
        apart: what joins or adds codes, or hands them on, for one of these to read.
        columns: what multiplies, or adds, stored numbers in float64, one of each channel: these, and the dimension of
            the channels.
        constants: stored tensors; weights of convolutions with their channels fastest.
        neurons: the layers of neurons.
        thresholds: theta of each; to ask a GPU for it would wait for all it computes.
        smooth: of neurons that read a sum through a smooth function alone, the sum's node and that function; what lies
            between is in none of the above.
        clamps: those that change no code of the neurons that alone read them: neither are they.
        starting: those whose tracers start at another code than 0.
        widest: how many neurons the largest layer has for one image.
        average: how many a layer has on average.
        most_levels: how many levels a neuron has at most.
        captured: blocks that were recorded (see :mod:`spikezip.run.replay`), by their form.
    """

    nodes: tuple[fx.Node, ...]
    dependent: frozenset[fx.Node]
    frontier: frozenset[fx.Node]
    free: dict[fx.Node, list[fx.Node]]
    synapses: dict[fx.Node, Synapse]
    apart: frozenset[fx.Node]
    columns: dict[fx.Node, tuple[Tensor, int]]
    constants: dict[fx.Node, Tensor]
    neurons: dict[fx.Node, STBIF]
    thresholds: dict[fx.Node, float]
    smooth: dict[fx.Node, tuple[fx.Node, Smooth]]
    clamps: frozenset[fx.Node]
    starting: frozenset[fx.Node]
    widest: int
    average: int
    most_levels: int
    captured: dict[Any, Any] = field(default_factory=dict)


class _Known:
    """A plan beside the graph it belongs to; copies of the graph start without one."""

    def __init__(self, mark: Any = None, plan: Plan | None = None):
        self.mark, self.plan = mark, plan

    def __deepcopy__(self, memo: Any) -> _Known:
        return _Known()

    def __reduce__(self) -> tuple[type[_Known], tuple[()]]:
        return _Known, ()


def plan_of(snn: SpikingNetwork) -> Plan:
    """The plan of a network, made anew only when its tensors have changed.

    Raises:
        StageError: time cannot be folded into the batch (see :func:`unfoldable`).
    """
    mark = [(id(t), t.data_ptr(), None if t.is_inference() else t._version, t.device) for t in _tensors(snn.graph)]
    known = vars(snn.graph).get("_sweep_plan", _Known())
    if known.plan is None or known.mark != mark:
        known = _Known(mark, _plan(snn.graph))
        vars(snn.graph)["_sweep_plan"] = known
    assert known.plan is not None
    return known.plan


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Those of a module and what it holds; torch's own walk, which names them all, takes milliseconds."""
    for held in (module._parameters, module._buffers):
        yield from (tensor for tensor in held.values() if tensor is not None)
    for child in module._modules.values():
        if child is not None:
            yield from _tensors(child)


def _plan(gm: fx.GraphModule) -> Plan:
    nodes = [n for n in gm.graph.nodes if n.op != "output" and not is_size(n)]
    if (reason := unfoldable(gm)) is not None:
        raise StageError(
            f"{reason}, so time steps cannot be folded into the batch. Run this network with the reference engine."
        )
    neurons = dict(network.modules_of(gm, STBIF))
    dependent = _from(nodes, neurons.__contains__)
    # What depends on no neuron is computed once, and so left as it is.
    chains = {node: found for node in neurons if (found := _smooth(gm, node)) is not None and found[1] in dependent}
    clamps = frozenset(n for n in dependent if _changes_no_code(n, neurons))
    within = {n for between, _, _ in chains.values() for n in between} | clamps
    drives: dict[fx.Node, Any] = {u: n.args[0] for n in clamps for u in n.users} | {
        u: before for u, (_, before, _) in chains.items()
    }
    frontier = {
        n
        for n in nodes
        if n.op != "get_attr" and n not in dependent and any(u in dependent or u.op == "output" for u in n.users)
    }
    # Sizes read nothing: they follow from the number of rows.
    readers = [n for n in gm.graph.nodes if not is_size(n) and n not in within]
    last = {
        value: user
        for user in readers
        for value in ([drives[user]] if user in drives else user.all_input_nodes)
        if not is_size(value)
    }
    free: dict[fx.Node, list[fx.Node]] = {}
    for value, user in last.items():
        free.setdefault(user, []).append(value)
    # Whole weights say nothing of what they are multiplied with; only in an integer network is every sum proven exact.
    exact = bool(network.note(gm, "weight_bits"))
    synapses = {n: s for n in dependent if exact and (s := pack(n)) is not None}
    constants = _constants(gm)
    sizes = [tracer_shape(network.spec(node)).numel() for node in neurons] or [1]
    return Plan(
        nodes=tuple(n for n in nodes if n not in within),
        dependent=frozenset(dependent - within),
        frontier=frozenset(frontier),
        free=free,
        synapses=synapses,
        apart=_apart(nodes, synapses),
        columns={n: found for n in dependent if (found := _column(n, constants)) is not None},
        constants=constants,
        neurons=neurons,
        thresholds={node: float(neuron.threshold) for node, neuron in neurons.items()},
        smooth={node: (before, smooth) for node, (_, before, smooth) in chains.items()},
        clamps=clamps,
        starting=frozenset(node for node, neuron in neurons.items() if neuron.starts_elsewhere),
        widest=max(sizes),
        average=max(1, sum(sizes) // len(sizes)),
        most_levels=max((neuron.levels.count for neuron in neurons.values()), default=1),
    )


def _changes_no_code(node: fx.Node, neurons: dict[fx.Node, STBIF]) -> bool:
    """Whether a node is a clamp that neurons alone read, and these have the same codes without it.

    Codes never fall where the drive rises, in floating point too. So if the clamp's ends have the outermost codes, all
    that lies past them has these as well. NaN has the lowest code, with a clamp and without.
    """
    if node.op != "call_function" or network.op_name(node) not in _CLAMPS or len(node.all_input_nodes) != 1:
        return False
    dtype, readers = network.spec(node).dtype, [neurons.get(user) for user in node.users]
    if not dtype.is_floating_point or network.spec(node.all_input_nodes[0]).dtype is not dtype:
        return False

    def keeps(neuron: STBIF) -> bool:
        least_and_most = torch.tensor([-torch.inf, torch.inf], dtype=dtype, device=neuron.threshold.device)
        ends = node.target(least_and_most, *node.args[1:], **node.kwargs)  # type: ignore[operator]
        return neuron.levels.codes(ends, neuron.threshold).tolist() == [neuron.levels.lowest, neuron.levels.highest]

    return bool(readers) and all(neuron is not None and keeps(neuron) for neuron in readers)


def _apart(nodes: list[fx.Node], synapses: dict[fx.Node, Synapse]) -> frozenset[fx.Node]:
    found: set[fx.Node] = set()
    for node in reversed(nodes):
        takes = node.op == "call_function" and network.op_name(node) in _APART
        if takes and any(user in synapses or user in found for user in node.users):
            found.add(node)
    return frozenset(found)


def _column(node: fx.Node, constants: dict[fx.Node, Tensor]) -> tuple[Tensor, int] | None:
    if node.target not in (_aten.mul.Tensor, _aten.add.Tensor) or node.kwargs or not is_plain(network.spec(node)):
        return None
    stored, shape = constants.get(node.args[1]), network.spec(node).shape  # type: ignore[call-overload]
    if stored is None or stored.dtype is not torch.float64 or network.spec(node.args[0]).shape != shape:  # type: ignore[arg-type]
        return None
    along = [dim for dim, size in enumerate(stored.shape, len(shape) - stored.dim()) if size != 1]
    return (stored.flatten(), along[0]) if along in ([1], [len(shape) - 1]) else None


def _smooth(gm: fx.GraphModule, neuron: fx.Node) -> tuple[list[fx.Node], fx.Node, Smooth] | None:
    """A smooth function that these neurons alone read: its nodes, the node before them, and what they compute.

    Its nodes are those of ``to_integer``: to float64, function, to float64, times a number, fixed point, to float32.
    """
    between: list[Any] = []
    node: Any = neuron.args[0]
    while len(between) < 6 and isinstance(node, fx.Node) and node.args and not node.kwargs and len(node.users) == 1:
        between.append(node)
        node = node.args[0]
    if len(between) < 6 or not isinstance(node, fx.Node) or not is_plain(network.spec(neuron)):
        return None
    narrow, rounding, times, still_wide, function, wide = between
    if any(n.target is not _aten.to.dtype for n in (narrow, still_wide, wide)) or rounding.op != "call_module":
        return None
    name = _function(function)
    if times.target is not _aten.mul.Tensor or name is None:
        return None
    grid, factor = gm.get_submodule(str(rounding.target)), times.args[1]
    types = [wide.args[1], still_wide.args[1], narrow.args[1], network.spec(node).dtype]
    if not isinstance(grid, FixedPoint) or grid.limit >= 2**FLOAT32_BITS or not isinstance(factor, float):
        return None
    if factor <= 0 or types != [torch.float64, torch.float64, torch.float32, torch.float32]:
        return None
    return between, node, Smooth(name, factor, grid.exponent, grid.limit)


def _function(node: fx.Node) -> str | None:
    """Which of the functions that a scan may estimate."""
    last, name = len(network.spec(node).shape) - 1, network.op_name(node)
    if node.target is _aten.softmax.int and len(node.args) == 2 and node.args[1] in (-1, last) and last > 0:
        return name
    return name if name in SMOOTH and len(node.args) == 1 else None


def unfoldable(gm: fx.GraphModule) -> str | None:
    """Why time steps cannot be folded into the batch of an SNN; None where they can.

    Places in the batch do no harm where there is one row for each image still: causal language models pick each image's
    own line of a mask by ``arange(B)``. A value that is not ``placed`` is the same among any images.
    """
    moving = _from(gm.graph.nodes, _may_move)
    placed = [n for n in gm.graph.nodes if "spec" in n.meta and network.spec(n).placed]
    if any(not moving.isdisjoint((node, *node.users)) for node in placed):
        where = network.describe(placed[0])
        return f"The node {where} depends on an image's place in the batch, or on the others in it"
    for node, neuron in network.modules_of(gm, STBIF):
        if type(neuron) is not STBIF:
            return f"The neurons of {network.origin(node)!r} are {type(neuron).__name__}, which may differ from ST-BIF"
        if scattered(network.spec(node)):
            return f"The values of {network.origin(node)!r} do not keep one image's together"
    return None


def _may_move(node: fx.Node) -> bool:
    """Whether a value may have a row for each step, whatever it is computed from."""
    if node.op == "placeholder":
        return network.spec(node).dtype.is_floating_point
    return node.op == "call_module" or bias_of(node) is not None


def _from(nodes: Iterable[fx.Node], begins: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """The nodes at which something begins, and those behind them."""
    found: set[fx.Node] = set()
    for node in nodes:
        if begins(node) or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def _constants(gm: fx.GraphModule) -> dict[fx.Node, Tensor]:
    found = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            tensor = network.get_tensor(gm, node.target)
            if tensor.dim() == 4 and all(network.op_name(user) == "conv2d" for user in node.users):
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            found[node] = tensor
    return found


def is_size(node: fx.Node) -> bool:
    """Whether a node computes a size, which follows from the number of rows alone."""
    return node.op == "call_function" and "spec" not in node.meta and ops.kind(node) is Kind.SIZE


def is_plain(spec: Spec) -> bool:
    """Whether the first dimension counts images, and nothing else."""
    return spec.batch_dim == 0 and spec.shape[0] == 1
