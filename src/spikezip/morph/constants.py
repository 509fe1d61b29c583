"""What is computed from stored tensors alone is computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.graph import network, ops, rewrite, shapes
from spikezip.graph.ops import Kind

_aten = torch.ops.aten


def fold_constants(gm: fx.GraphModule) -> int:
    """Replace every value that depends on stored tensors alone by a stored tensor, in place; return how many.

    Standardised weights, biases put together from parts, position biases looked up in a table, masks: afterwards a
    layer's weight is a tensor that can be folded, rounded and counted. What is computed alike for every image of the
    batch (queries from stored latents, a layer of the zeros that a recurrence starts from) is stored for one image, and
    repeated. What comes from parameters is a parameter again, frozen where all of them are.
    """
    values: dict[fx.Node, Any] = {}
    sources: dict[fx.Node, set[nn.Parameter]] = {}
    count = 0
    for node in list(gm.graph.nodes):
        if node.op == "get_attr":
            stored = network.get_tensor(gm, node.target)
            values[node], sources[node] = stored, _itself(stored)
        elif node.op == "call_function" and all(n in values for n in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)  # type: ignore[misc]
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            sources[node] = set().union(*(sources[n] for n in node.all_input_nodes))
    for node, value in values.items():
        if node.op == "get_attr" or not isinstance(value, Tensor) or all(u in values for u in node.users):
            continue
        if not ops.is_signal(node):
            continue
        made_of = sources[node] if value.is_floating_point() else set()
        kept = value.detach().clone(memory_format=torch.contiguous_format)
        with gm.graph.inserting_before(node):
            name = _name(gm, node)
            new = rewrite.new_constant(gm, name, _stored(kept, made_of), like=node)
        new.meta["spec"] = node.meta.get("spec")
        node.replace_all_uses_with(new)
        count += 1
    return shapes.rewritten(gm, count) + _fold_repeated(gm)


@torch.no_grad()
def _fold_repeated(gm: fx.GraphModule) -> int:
    """Store for one image what is computed from stored tensors and the batch size, where it is the same for each."""
    images = next(n for n in gm.graph.nodes if n.op == "placeholder")
    values: dict[fx.Node, tuple[Any, Any]] = {}  # for a batch of 1, and of 2
    sources: dict[fx.Node, set[nn.Parameter]] = {}
    computed: dict[fx.Node, None] = {}  # not only made and moved about; in order
    for node in gm.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr":
            stored = network.get_tensor(gm, node.target)
            values[node], sources[node] = (stored, stored), _itself(stored)
        elif node.op == "call_function":
            known = ops.kind(node) is Kind.SIZE and len(inputs) == 1 and "spec" in inputs[0].meta
            if not known and not all(n in values for n in inputs):
                continue
            if known:
                one, two = ({inputs[0]: _sized(inputs[0], batch)} for batch in (1, 2))
            else:
                one, two = ({n: values[n][which] for n in inputs} for which in (0, 1))
            values[node] = (_evaluated(node, one), _evaluated(node, two))
            sources[node] = set().union(*(sources.get(n, set()) for n in inputs))
            if ops.kind(node) not in (Kind.SIZE, Kind.SHAPE, Kind.CONSTANT) or any(n in computed for n in inputs):
                computed[node] = None
    alike = [n for n in computed if _is_repeated(n, *values[n])]
    stored_too = set(alike)
    count = 0
    for node in alike:
        if all(user in stored_too for user in node.users):
            continue
        one = values[node][0].detach().clone(memory_format=torch.contiguous_format)
        dim = network.spec(node).batch_dim
        with gm.graph.inserting_before(node):
            name = f"{network.origin(node)}.repeated"
            stored = rewrite.new_constant(gm, name, _stored(one, sources[node]), like=node)
            batch = rewrite.call(gm, _aten.sym_size.int, (images, 0), like=node)
            times = [batch if i == dim else 1 for i in range(one.dim())]
            new = rewrite.call(gm, _aten.repeat.default, (stored, times), like=node)
        new.meta["spec"] = network.spec(node)
        rewrite.replace(node, new)
        count += 1
    return shapes.rewritten(gm, count)


def _itself(stored: Any) -> set[nn.Parameter]:
    return {stored} if isinstance(stored, nn.Parameter) else set()


def _stored(value: Tensor, sources: set[nn.Parameter]) -> Tensor:
    return rewrite.parameter_of(value, sources) if sources else value


def _evaluated(node: fx.Node, inputs: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), inputs.__getitem__)  # type: ignore[misc]
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _sized(node: fx.Node, batch: int) -> Tensor:
    """A tensor without values, of a node's size."""
    spec = network.spec(node)
    return torch.empty(shapes.for_batch(spec, batch), dtype=spec.dtype, device="meta")


def _is_repeated(node: fx.Node, one: Any, two: Any) -> bool:
    dim = node.meta["spec"].batch_dim if "spec" in node.meta else None
    if dim is None or not one.is_floating_point():
        return False
    return torch.allclose(two, torch.cat([one, one], dim), equal_nan=True)


def _name(gm: fx.GraphModule, node: fx.Node) -> str:
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
    return str(max(found, key=lambda n: network.get_tensor(gm, n.target).numel()).target)
