"""Run a NIR graph step by step, read as :mod:`spikezip.export.nir` says. It knows none of our own networks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spikezip.errors import InputError
from spikezip.export.nir_nodes import NODES

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
    if unknown := sorted(set(kinds.values()) - {*NODES, "Input", "Output"}):
        raise InputError(f"No rule for NIR's {', '.join(unknown)}; known are Input, Output, {', '.join(NODES)}.")
    # Converted once, not at every step.
    run = {name: NODES[kind](graph.nodes[name]).double() for name, kind in kinds.items() if kind in NODES}
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
                read = [values[source] for source in now[name]]
                read += [before[source] for source in late[name] if source in before]
                # Nothing has come back yet to what waits for nothing else.
                given = sum(read[1:], read[0]) if read else torch.zeros(1, dtype=torch.float64)
                if kinds[name] == "I":
                    values[name], sums[name] = run[name](given, sums.get(name))
                else:
                    values[name] = run[name](given) if name in run else given
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
