"""What is computed from stored tensors alone is computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.graph import network, ops, rewrite, shapes


def fold_constants(gm: fx.GraphModule) -> int:
    """Replace every value that depends on stored tensors alone by a stored tensor, in place; return how many.

    Standardised weights, biases put together from parts, position biases looked up in a table, masks: afterwards a
    layer's weight is a tensor that can be folded, rounded and counted. What comes from trainable parameters is a
    trainable parameter again.
    """
    values: dict[fx.Node, Any] = {}
    trainable: dict[fx.Node, bool] = {}
    count = 0
    for node in list(gm.graph.nodes):
        if node.op == "get_attr":
            stored = network.get_tensor(gm, node.target)
            values[node], trainable[node] = stored, isinstance(stored, nn.Parameter)
        elif node.op == "call_function" and all(n in values for n in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)  # type: ignore[misc]
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            trainable[node] = any(trainable[n] for n in node.all_input_nodes)
    for node, value in values.items():
        if node.op == "get_attr" or not isinstance(value, Tensor) or all(u in values for u in node.users):
            continue
        if not ops.is_signal(node):
            continue
        learns = trainable[node] and value.is_floating_point()
        kept = value.detach().clone(memory_format=torch.contiguous_format)
        with gm.graph.inserting_before(node):
            name = _name(node, values)
            new = rewrite.new_constant(gm, name, nn.Parameter(kept) if learns else kept, like=node)
        new.meta["spec"] = node.meta.get("spec")
        node.replace_all_uses_with(new)
        count += 1
    if count:
        rewrite.tidy(gm)
        shapes.annotate(gm, anew=False)
    return count


def _name(node: fx.Node, values: dict[fx.Node, Any]) -> str:
    """The greatest stored tensor's name that a value comes from, else its module's."""
    found, todo, seen = [], [node], set()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "get_attr":
            found.append(current)
        todo.extend(current.all_input_nodes)
    if not found:
        return f"{network.origin(node)}.constant"
    return str(max(found, key=lambda n: values[n].numel()).target)
