"""Run a NIR graph step by step, read as :mod:`spikezip.export.nir` says. It knows none of our own networks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from spikezip.errors import InputError

if TYPE_CHECKING:
    import nir


@torch.no_grad()
def play(
    graph: nir.NIRGraph,
    inputs: Sequence[Tensor],
    watch: Callable[[str, int, Tensor], None] | None = None,
) -> tuple[Tensor, ...]:
    """Run a graph of integrators, thresholds, and linear nodes.

    Args:
        graph: the graph.
        inputs: what each ``Input`` node gets, ``[T, B, ...]``, in the order of the graph's nodes.
        watch: told what every node gives at every step: (node, t, ``[B, ...]``), t from 1.

    Returns:
        What each ``Output`` node gives, ``[T, B, ...]`` in float64.

    Raises:
        InputError: there are more or fewer ``Input`` nodes, a node of another kind, or a circle without integrator.
    """
    kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    places = [name for name, kind in kinds.items() if kind == "Input"]
    if len(places) != len(inputs):
        raise InputError(f"The graph has {len(places)} inputs, and {len(inputs)} are given.")
    if unknown := sorted(set(kinds.values()) - set(_NODES) - {"Input"}):
        raise InputError(f"No rule for NIR's {', '.join(unknown)}; known are Input, {', '.join(_NODES)}.")
    now, late = _parted(graph, kinds)
    try:
        order = list(TopologicalSorter(now).static_order())
    except CycleError as circle:
        raise InputError(f"A circle without an integrator: {' -> '.join(circle.args[1])}.") from circle
    values: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    found: dict[str, list[Tensor]] = {name: [] for name, kind in kinds.items() if kind == "Output"}
    for t in range(1, len(inputs[0]) + 1):
        before, values = values, {}
        for name in order:
            if kinds[name] == "Input":
                values[name] = inputs[places.index(name)][t - 1].double()
            else:
                node: Any = graph.nodes[name]
                read = [values[source] for source in now[name]]
                read += [before[source] for source in late[name] if source in before]
                # Nothing has come back yet to what waits for nothing else.
                given = sum(read[1:], read[0]) if read else torch.zeros(1, dtype=torch.float64)
                if kinds[name] == "I":
                    sums[name] = sums.get(name, 0.0) + _tensor(node.r) * given
                    given = sums[name]
                values[name] = _NODES[kinds[name]](node, given)
            if name in found:
                found[name].append(values[name])
            if watch:
                watch(name, t, values[name])
    return tuple(torch.stack(column) for column in found.values())


def _parted(graph: nir.NIRGraph, kinds: Mapping[str, str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Sources of each node whose value is of the same step, and of the step before, as the edge closes a circle."""
    readers = defaultdict(list)
    for source, target in graph.edges:
        readers[source].append(target)
    behind: dict[str, set[str]] = {}
    for start in (name for name, kind in kinds.items() if kind == "I"):
        seen, left = set[str](), list(readers[start])
        while left:
            if (name := left.pop()) not in seen:
                seen.add(name)
                left += readers[name]
        behind[start] = seen
    now: dict[str, list[str]] = {name: [] for name in kinds}
    late: dict[str, list[str]] = {name: [] for name in kinds}
    for source, target in graph.edges:
        (late if source in behind.get(target, ()) else now)[target].append(source)
    return now, late


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values).double()


def _pair(values: Any) -> list[int]:
    return [int(v) for v in torch.as_tensor(values).flatten()]


def _convolution(dims: int) -> Callable[[Any, Tensor], Tensor]:
    operation = {1: functional.conv1d, 2: functional.conv2d}[dims]

    def run(node: Any, x: Tensor) -> Tensor:
        places = (_pair(each) for each in (node.stride, node.padding, node.dilation))
        return operation(x, _tensor(node.weight), _tensor(node.bias), *places, int(node.groups))  # type: ignore[arg-type]

    return run


def _sum_pool(node: Any, x: Tensor) -> Tensor:
    size, stride, padding = (_pair(each) for each in (node.kernel_size, node.stride, node.padding))
    return functional.avg_pool2d(x, size, stride, padding, divisor_override=1)


_NODES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "Affine": lambda node, x: functional.linear(x, _tensor(node.weight), _tensor(node.bias)),
    "Conv1d": _convolution(1),
    "Conv2d": _convolution(2),
    "Flatten": lambda node, x: x.flatten(1 + int(node.start_dim), -1),
    "I": lambda node, x: x,
    "Linear": lambda node, x: functional.linear(x, _tensor(node.weight)),
    "Output": lambda node, x: x,
    "Scale": lambda node, x: _tensor(node.scale) * x,
    "SumPool2d": _sum_pool,
    "Threshold": lambda node, x: (x > _tensor(node.threshold)).double(),
}
