"""Wirings of residual blocks: where the neurons sit, and what meets at the addition."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from spikezip.graph import ops, rewrite, shapes
from spikezip.graph.ops import Kind

_aten = torch.ops.aten

#: Operations that hand an identity shortcut on (option-A shortcuts slice and pad; some average or pool).
_CARRY = {Kind.SHAPE, Kind.MAXIMUM, Kind.AVERAGE}


def reroute_residuals(gm: fx.GraphModule) -> int:
    """``relu(main + shortcut)`` -> ``relu(main) + shortcut`` for identity shortcuts, in place.

    A convolutional shortcut gets a neuron of its own: ``relu(main) + Q(shortcut)``. The sum then holds whole numbers
    of spikes, and nothing on the identity path delays it.

    Returns:
        How many blocks were re-routed.

    Source: SpikeZIP, "residual connection re-routing". Departs: the paper does not say which sign the convolutional
    shortcut's quantizer has; ours is signed, as the shortcut has no ReLU.
    """

    def rewire(relu: fx.Node, main: fx.Node, shortcut: fx.Node) -> fx.Node:
        if _synaptic_depth(shortcut):
            shortcut.meta["neuron"] = "signed"
        return rewrite.call(gm, _aten.add.Tensor, (_rectified(gm, main, relu), shortcut), like=relu)

    return _each_block(gm, rewire)


def add_spikes(gm: fx.GraphModule) -> int:
    """``relu(main + shortcut)`` -> ``relu(main) + shortcut'``, in place: the sum of two branches of spikes.

    ``shortcut'`` is the shortcut itself, or ``relu(shortcut)`` where that has synapses of its own. Without such
    shortcuts (identity, option A) this is the very network that :func:`reroute_residuals` makes.

    Returns:
        How many blocks were rewired.

    Source: Fang et al., "Deep Residual Learning in Spiking Neural Networks", NeurIPS 2021: the SEW block with
    g = ADD. Departs: each branch keeps a threshold of its own, where SEW's neurons share one.
    """

    def rewire(relu: fx.Node, main: fx.Node, shortcut: fx.Node) -> fx.Node:
        spikes = _spiking(gm, shortcut, relu)
        return rewrite.call(gm, _aten.add.Tensor, (_rectified(gm, main, relu), spikes), like=relu)

    return _each_block(gm, rewire)


def inhibit_spikes(gm: fx.GraphModule) -> int:
    """``relu(main + shortcut)`` -> ``relu(shortcut' - relu(main))``, in place: what the shortcut has beyond the main.

    ``shortcut'`` as in :func:`add_spikes`. On binary codes of one threshold, ``max(s - a, 0)`` is ``s AND NOT a``:
    SEW's IAND. The neuron behind the difference keeps the stream ternary, and nothing is multiplied.

    Returns:
        How many blocks were rewired.

    Source: Fang et al., NeurIPS 2021: the SEW block with g = IAND. Departs: IAND is for binary spikes; this is its
    continuation to more levels that needs no multiplication, ``(1 - a) s`` another.
    """

    def rewire(relu: fx.Node, main: fx.Node, shortcut: fx.Node) -> fx.Node:
        spikes = _spiking(gm, shortcut, relu)
        left = rewrite.call(gm, _aten.sub.Tensor, (spikes, _rectified(gm, main, relu)), like=relu)
        return rewrite.call(gm, _aten.relu.default, (left,), like=relu)

    return _each_block(gm, rewire)


def shortcut_membranes(gm: fx.GraphModule) -> int:
    """``relu(main(r) + r)`` with ``r = relu(z)`` -> ``relu(main(r) + z)``, in place: identities pass by the ReLU.

    An identity then hands on the currents that its neuron receives, not its spikes; every synaptic operation still
    reads spikes. Shortcuts with synapses of their own, and those that lead through a max-pool, stay as they are.

    Returns:
        How many shortcuts were rewired.

    Source: Hu et al., "Advancing Spiking Neural Networks Towards Deep Residual Learning" (MS-ResNet), IEEE TNNLS
    2024. Departs: a convolutional shortcut reads spikes here.
    """
    count = 0
    for relu in list(gm.graph.nodes):
        if relu.target is not _aten.relu.default or not _is_sum(relu.args[0], alone=False):
            continue
        total = relu.args[0]
        main, shortcut = _branches(total)
        if main is None or shortcut is None:
            continue
        reader, carried = total, shortcut
        while carried.op == "call_function" and ops.kind(carried) in (Kind.SHAPE, Kind.AVERAGE):
            if len(carried.users) > 1 or len(ops.data_operands(carried)) != 1:
                break
            reader, carried = carried, ops.data_operands(carried)[0]
        if carried.target is _aten.relu.default:
            reader.replace_input_with(carried, ops.data_operands(carried)[0])
            count += 1
    return shapes.rewritten(gm, count)


def _each_block(gm: fx.GraphModule, rewire: Callable[[fx.Node, fx.Node, fx.Node], fx.Node]) -> int:
    """Put ``rewire(relu, main, shortcut)`` in the place of every ``relu(main + shortcut)``; how many there were."""
    count = 0
    for node in list(gm.graph.nodes):
        if node.target is not _aten.relu.default or not _is_sum(node.args[0]):
            continue
        main, shortcut = _branches(node.args[0])
        if main is None or shortcut is None:
            continue
        with gm.graph.inserting_before(node):
            new = rewire(node, main, shortcut)
        rewrite.replace(node, new)
        count += 1
    return shapes.rewritten(gm, count)


def _rectified(gm: fx.GraphModule, main: fx.Node, like: fx.Node) -> fx.Node:
    return rewrite.call(gm, _aten.relu.default, (main,), like=like)


def _spiking(gm: fx.GraphModule, shortcut: fx.Node, like: fx.Node) -> fx.Node:
    """The shortcut's spikes: behind synapses of its own it needs neurons of its own."""
    return rewrite.call(gm, _aten.relu.default, (shortcut,), like=like) if _synaptic_depth(shortcut) else shortcut


def _is_sum(node: object, alone: bool = True) -> bool:
    """Whether a node adds two branches with one weight; ``alone``: and one operation reads the sum."""
    return bool(
        isinstance(node, fx.Node)
        and node.target is _aten.add.Tensor
        and node.kwargs.get("alpha", 1) == 1  # else the branches are weighed
        and (not alone or len(node.users) == 1)
        and all(isinstance(a, fx.Node) and not ops.is_constant(a) for a in node.args)
    )


def _branches(total: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """(main, shortcut) of a sum: the main branch runs through more synaptic layers than the shortcut."""
    a, b = total.args
    depths = [_depth_above_fork(a, b), _depth_above_fork(b, a)]  # type: ignore[arg-type]
    if depths[0] == depths[1]:
        return None, None
    return (a, b) if depths[0] > depths[1] else (b, a)  # type: ignore[return-value]


def _ancestors(node: fx.Node) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    todo = [node]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo.extend(current.all_input_nodes)
    return seen


def _depth_above_fork(node: fx.Node, other: fx.Node) -> int:
    """Synaptic operations on the way from ``node`` up to the first value that ``other`` also comes from."""
    common = _ancestors(other)
    depth: dict[fx.Node, int] = {}
    todo = [node]  # iterative: graphs may be deeper than Python's stack
    while todo:
        n = todo[-1]
        ends = n in common or ops.is_constant(n)
        missing = [] if ends else [i for i in n.all_input_nodes if i not in depth]
        if not missing:
            here = int(not ends and n.op == "call_function" and ops.kind(n) is Kind.SYNAPTIC)
            depth[n] = here + (0 if ends else max((depth[i] for i in n.all_input_nodes), default=0))
            todo.pop()
        todo.extend(missing)
    return depth[node]


def _synaptic_depth(node: fx.Node) -> bool:
    """Whether a synaptic operation lies between this shortcut and the spikes it comes from."""
    while node.op in ("call_function", "call_module"):
        kind = ops.kind(node) if node.op == "call_function" else None  # a live BatchNorm
        if kind is Kind.SYNAPTIC:
            return True
        if kind is not None and kind not in _CARRY:
            return False
        node = ops.data_operands(node)[0]
    return False
