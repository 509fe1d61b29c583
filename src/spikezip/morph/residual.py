"""Residual connection re-routing: the neuron moves from behind the addition onto the branches."""

from __future__ import annotations

import torch
from torch import fx

from spikezip.graph import network, ops
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
    count = 0
    for node in list(gm.graph.nodes):
        if node.target is not _aten.relu.default or not _is_sum(node.args[0]):
            continue
        total = node.args[0]
        main, shortcut = _branches(total)
        if main is None or shortcut is None:
            continue
        with gm.graph.inserting_before(node):
            rectified = network.call(gm, _aten.relu.default, (main,), like=node)
            new = network.call(gm, _aten.add.Tensor, (rectified, shortcut), like=node)
        if _synaptic_depth(shortcut):
            shortcut.meta["neuron"] = "signed"
        network.replace(node, new)
        count += 1
    if count:
        network.tidy(gm)
        network.annotate(gm, anew=False)
    return count


def _is_sum(node: object) -> bool:
    return bool(
        isinstance(node, fx.Node)
        and node.target is _aten.add.Tensor
        and node.kwargs.get("alpha", 1) == 1  # else the branches are weighed
        and len(node.users) == 1
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

    def visit(n: fx.Node) -> int:
        if n in common or ops.is_constant(n):
            return 0
        if n not in depth:
            depth[n] = 0
            here = int(n.op == "call_function" and ops.kind(n) is Kind.SYNAPTIC)
            depth[n] = here + max((visit(i) for i in n.all_input_nodes), default=0)
        return depth[n]

    return visit(node)


def _synaptic_depth(node: fx.Node) -> bool:
    """Whether a synaptic operation lies between this shortcut and the spikes it comes from."""
    while node.op == "call_function":
        kind = ops.kind(node)
        if kind is Kind.SYNAPTIC:
            return True
        if kind not in _CARRY:
            return False
        node = ops.data_operands(node)[0]
    return False
