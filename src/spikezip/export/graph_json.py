"""A graph as JSON data: one row a node, in order of execution, and back."""

from __future__ import annotations

import keyword
from collections.abc import Container
from typing import Any

import torch
from torch import fx

from spikezip.errors import BundleError
from spikezip.export.values import IDENTIFIER, decode, encode, fields
from spikezip.export.vocabulary import target_name, target_named
from spikezip.graph.network import Spec

MOST_NODES = 50_000

_ROW = {"op": str, "name": str, "target": str, "args": list, "kwargs": dict, "origin": str}
_MARKS = {"neuron": str, "outer": bool, "inner": bool, "placed": bool, "stretch": int}


def write_graph(graph: fx.Graph) -> list[dict[str, Any]]:
    """The rows of a graph; BundleError naming the node that a bundle cannot hold."""
    rows = []
    for node in graph.nodes:
        try:
            row = {
                "op": node.op,
                "name": node.name,
                "target": target_name(node.target) if node.op == "call_function" else str(node.target),
                "args": [encode(a) for a in node.args],
                "kwargs": {key: encode(a) for key, a in node.kwargs.items()},
                "origin": node.meta.get("origin") or "",
            }
        except BundleError as problem:
            raise BundleError(f"at the node {node.name!r}: {problem}") from None
        if node.meta.get("neuron"):
            row["neuron"] = node.meta["neuron"]
        spec = node.meta.get("spec")
        if isinstance(spec, Spec) and not (spec.outer and not spec.inner):
            row.update(outer=spec.outer, inner=spec.inner)
        if isinstance(spec, Spec) and spec.placed:
            row["placed"] = True
        if isinstance(spec, Spec) and spec.stretch:
            row["stretch"] = spec.stretch
        rows.append(row)
    return rows


def read_graph(rows: Any, modules: Container[str], tensors: Container[str]) -> fx.Graph:
    """The inverse of :func:`write_graph`.

    Args:
        rows: JSON data, not trusted.
        modules: dotted names that call_module nodes may have as their target.
        tensors: those that get_attr nodes may have.

    Raises:
        BundleError: a row is malformed, refers to something unknown or to a later node, or is none of the operations
            a bundle may hold.
    """
    if not isinstance(rows, list) or not 2 <= len(rows) <= MOST_NODES:
        raise BundleError(f"its graph is not a list of 2 to {MOST_NODES} nodes")
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    called: set[str] = set()
    for index, row in enumerate(rows):
        where = f"node {index}"
        fields(row, where, _ROW, _MARKS)
        name = _identifier(row["name"], where)
        where = f"the node {name!r}"
        if name in known:
            raise BundleError(f"{where} exists twice")
        if (row["op"] == "output") != (index == len(rows) - 1):
            raise BundleError("its graph does not end in its one output node")
        try:
            target, args, kwargs = _parts(row, known)
        except BundleError as problem:
            raise BundleError(f"at {where}: {problem}") from None
        _check_operands(row["op"], target, args, kwargs, where, modules, tensors)
        if row["op"] == "call_module" and (target in called or called.add(target)):
            raise BundleError(f"the module {target!r} is called twice; each neuron layer has one place")
        node = graph.create_node(row["op"], target, args, kwargs, name=name)
        if node.name != name:
            raise BundleError(f"{where} has a name that a graph cannot hold")
        node.meta = _meta(row)
        known[name] = node
    return graph


def _identifier(text: str, where: str) -> str:
    if not IDENTIFIER.fullmatch(text) or keyword.iskeyword(text):
        raise BundleError(f"{where} has the name {text[:80]!r}, which is no identifier")
    return text


def _parts(row: dict[str, Any], known: dict[str, fx.Node]) -> tuple[Any, tuple, dict[str, Any]]:
    target: Any = row["target"]
    if row["op"] == "call_function":
        target = target_named(target)
    args = tuple(decode(a, known) for a in row["args"])
    kwargs = {_identifier(key, "an argument"): decode(a, known) for key, a in row["kwargs"].items()}
    return target, args, kwargs


def _check_operands(
    op: str,
    target: Any,
    args: tuple,
    kwargs: dict[str, Any],
    where: str,
    modules: Container[str],
    tensors: Container[str],
) -> None:
    sound = not kwargs
    if op == "placeholder":
        # The target becomes the name of an argument in the code that torch.fx generates.
        _identifier(target, where)
        sound = sound and not args
    elif op == "get_attr":
        if target not in tensors:
            raise BundleError(f"{where} reads the tensor {target[:80]!r}, which is not there")
        sound = sound and not args
    elif op == "call_module":
        if target not in modules:
            raise BundleError(f"{where} calls the module {target[:80]!r}, which is not there")
        sound = sound and len(args) == 1 and isinstance(args[0], fx.Node)
    elif op == "output":
        results = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
        sound = sound and len(args) == 1 and len(results) > 0 and all(isinstance(r, fx.Node) for r in results)
    elif op == "call_function":
        sound = _fits_schema(target, args, kwargs) if isinstance(target, torch._ops.OpOverload) else not kwargs
    else:
        raise BundleError(f"{where} is a {op[:40]!r}, which is no kind of node a bundle may hold")
    if not sound:
        raise BundleError(f"{where} ({op}) has operands that such a node does not take")


#: What torch takes a whole number for too, and trusts: a type that does not exist ends the process.
_TRUSTED = {
    "ScalarType": torch.dtype,
    "Layout": torch.layout,
    "MemoryFormat": torch.memory_format,
    "Device": torch.device,
    "Generator": type(None),
}


def _fits_schema(target: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> bool:
    wanted = target._schema.arguments
    if len(args) > len(wanted) or not kwargs.keys() <= {a.name for a in wanted}:
        return False
    given = [*zip(wanted, args), *((a, kwargs[a.name]) for a in wanted if a.name in kwargs)]
    for argument, value in given:
        kind = str(argument.real_type).removeprefix("Optional[").removesuffix("]")
        if kind in _TRUSTED and value is not None and not isinstance(value, _TRUSTED[kind]):
            return False
    return True


def _meta(row: dict[str, Any]) -> dict[str, Any]:
    origin, neuron = row["origin"], row.get("neuron")
    if len(origin) > 1024 or not origin.isprintable():
        raise BundleError(f"the node {row['name']!r} has an origin that is no name")
    if neuron not in (None, "signed"):
        raise BundleError(f"the node {row['name']!r} asks for a neuron {neuron[:40]!r}, which is not known")
    meta: dict[str, Any] = {"origin": origin}
    if neuron:
        meta["neuron"] = neuron
    where = {key: row[key] for key in ("outer", "inner", "placed", "stretch") if key in row}
    if where:
        # Where the batch lies cannot be told from shapes; shapes.annotate keeps these and finds the rest.
        meta["spec"] = Spec((), torch.float32, None, **where)
    return meta
