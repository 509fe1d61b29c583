"""Rewriting networks: new nodes and tensors under free names, and the tidying afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, fx, nn


def put_tensor(gm: nn.Module, name: str, tensor: Tensor) -> None:
    """Store a parameter or buffer under a dotted name, making the modules on the way."""
    path, _, leaf = name.rpartition(".")
    module = gm
    for part in path.split(".") if path else []:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if hasattr(module, leaf):
        delattr(module, leaf)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor)


def plain(name: str) -> str:
    """A dotted name with ``_`` for all but letters, digits and dots: ``d.layer-1`` -> ``d.layer_1``."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """The plain name of each of some dotted names; what differs stays different, and plain names stay as they are."""
    below: dict[str, dict[str, str]] = {}  # by the path above: the parts there
    split = {name: name.split(".") for name in names}
    for parts in split.values():
        for i, part in enumerate(parts):
            below.setdefault(".".join(parts[:i]), {})[part] = plain(part)
    for found in below.values():
        taken = {part for part, as_plain in found.items() if part == as_plain}
        for part, as_plain in found.items():
            if part != as_plain:
                while as_plain in taken:
                    as_plain += "_"
                found[part] = as_plain
                taken.add(as_plain)
    return {
        name: ".".join(below[".".join(parts[:i])][part] for i, part in enumerate(parts))
        for name, parts in split.items()
    }


def free_name(gm: nn.Module, wanted: str) -> str:
    """``wanted``, made plain, or ``wanted_2``, ... : the first name nothing is stored under.

    Nothing may be stored inside a quantizer, a neuron or another leaf module either: its own name is changed then.
    """
    wanted = plain(wanted) or "neuron"
    parts = wanted.split(".")
    for i in range(1, len(parts)):
        above = ".".join(parts[:i])
        if _is_leaf(gm, above):
            return free_name(gm, free_name(gm, above) + wanted[len(above) :])
    candidate, count = wanted, 1
    while _taken(gm, candidate):
        count += 1
        candidate = f"{wanted}_{count}"
    return candidate


def _taken(gm: nn.Module, name: str) -> bool:
    holder, _, leaf = name.rpartition(".")
    try:
        return hasattr(gm.get_submodule(holder), leaf)
    except AttributeError:
        return False


def _is_leaf(gm: nn.Module, name: str) -> bool:
    try:
        return type(gm.get_submodule(name)) is not nn.Module
    except AttributeError:
        return False


def new_constant(gm: fx.GraphModule, name: str, tensor: Tensor, *, like: fx.Node) -> fx.Node:
    """A get_attr node for a new tensor under a free name; insert with the graph's current insertion point."""
    name = free_name(gm, name)
    put_tensor(gm, name, tensor)
    node = gm.graph.get_attr(name)
    node.meta = {"origin": like.meta.get("origin", "")}
    return node


def parameter_of(value: Tensor, sources: Iterable[Tensor | None]) -> nn.Parameter:
    """A value as a parameter, frozen where all the parameters that it was made from are."""
    trained = [t.requires_grad for t in sources if isinstance(t, nn.Parameter)]
    return nn.Parameter(value, any(trained) or not trained)


def call(gm: fx.GraphModule, target: Callable, args: tuple, *, like: fx.Node) -> fx.Node:
    """A new call_function node that inherits the name of ``like``; uses the graph's current insertion point."""
    node = gm.graph.call_function(target, args)
    node.meta = {"origin": like.meta.get("origin", "")}
    return node


def replace(node: fx.Node, by: Any) -> None:
    """Let every user of ``node`` read ``by`` instead, whose shape is the same, and remove it."""
    if isinstance(by, fx.Node) and "was" in node.meta:
        by.meta["was"] = node.meta["was"]
    if isinstance(by, fx.Node) and "spec" in node.meta:
        by.meta.setdefault("spec", node.meta["spec"])
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def tidy(gm: fx.GraphModule) -> None:
    """Remove dead nodes and tensors, check the graph, recompile."""
    gm.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
    gm.graph.lint()
    used = {str(n.target) for n in gm.graph.nodes if n.op in ("get_attr", "call_module")}
    for name in [
        n for n, _ in [*gm.named_parameters(remove_duplicate=False), *gm.named_buffers(remove_duplicate=False)]
    ]:
        if name not in used and name.rpartition(".")[0] not in used:
            path, _, leaf = name.rpartition(".")
            delattr(gm.get_submodule(path), leaf)
    _drop_empty(gm, used)
    gm.recompile()


def _drop_empty(module: nn.Module, used: set[str], prefix: str = "") -> bool:
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        if path not in used and type(child) is nn.Module and _drop_empty(child, used, f"{path}."):
            delattr(module, name)
        elif path not in used and type(child) is not nn.Module and not any(u.startswith(f"{path}.") for u in used):
            delattr(module, name)
    return not (module._modules or module._parameters or module._buffers)
