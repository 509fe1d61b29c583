"""What the event engine does at each node: the rule by which increments pass it, and which of them are exact.

Writing ``d`` for the change of one step, ``now`` and ``before`` for accumulated values:

====================  ==================================================================  ===========================
rule                  what reaches the next operation                                     for
====================  ==================================================================  ===========================
``LINEAR``            ``f(d)`` without its bias; ``b * (share_t - share_before)`` apart   conv, linear, sums, shapes
``BILINEAR``          ``f(da, b_now) + f(a_before, db)``                                  products of two streams
``DIFFERENCE``        ``f(now) - f(before)``                                              everything else
``MEMBRANE``          ``theta * o``, ``o`` from the published recursion on ``d``          neurons
====================  ==================================================================  ===========================

In an integer network a value may be off the grid (behind a LayerNorm or a softmax, or a sum that is rounded). There the
change of a rounded value is not the rounded change, so three rules read accumulated values instead: ``DIFFERENCE`` in
place of ``LINEAR`` and ``BILINEAR``; ``RELEASED`` where only a bias leaves the grid, while its share is no short dyadic
number; ``TRACKER``, the cumulative form, for neurons whose drive is off the grid.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import torch
from torch import fx

from spikezip.graph import network, ops
from spikezip.graph.ops import Kind
from spikezip.quantize.grid import FLOAT32_BITS, FLOAT64_BITS, Grid, Grids, dyadic_exponent, padding_value
from spikezip.run.step import bias_of
from spikezip.spike.neuron import STBIF
from spikezip.spike.swap import SpikingNetwork

#: Digits kept free in float64: a change may be twice the greatest value, and a product rule adds two such terms.
_SPARE = 3
#: A share that needs more binary digits than this is treated as no dyadic number.
_SHORT = 12


class Rule(enum.Enum):
    """How the increments of a step pass a node (see the module's table)."""

    INPUT = "the encoded input"
    SIZE = "a size, not a signal"
    CONSTANT = "arrives once, at the first step"
    LINEAR = "f(change)"
    BILINEAR = "f(da, b_now) + f(a_before, db)"
    RELEASED = "f(change) added up, and the bias as released so far"
    DIFFERENCE = "f(now) - f(before)"
    MEMBRANE = "the published neuron"
    TRACKER = "the neuron in cumulative form"


@dataclass(frozen=True)
class Rules:
    """The rule of every node, and whose accumulated values some rule reads.

    Attributes:
        of: node to rule.
        kept: nodes whose accumulated value is kept from step to step.
        exact: an integer network: increments are added up in float64, nothing is rounded.
    """

    of: dict[fx.Node, Rule]
    kept: frozenset[fx.Node]
    exact: bool

    @property
    def by_drive(self) -> tuple[str, ...]:
        """The neuron layers that have no membrane, as their drive is off the grid or they are no plain ST-BIF."""
        return tuple(str(node.target) for node, rule in self.of.items() if rule is Rule.TRACKER)


def rules(snn: SpikingNetwork, steps: int, *, exact: bool = True) -> Rules:
    """Choose the rule of every node of an SNN, for a run of ``steps`` steps; ``exact``: no sum is to be rounded, if the
    network is an integer one."""
    gm = snn.graph
    exact = exact and bool(network.note(gm, "weight_bits"))
    grids = _Exact(snn, steps) if exact else None
    found: dict[fx.Node, Rule] = {}
    for node in gm.graph.nodes:
        if node.op != "output":
            found[node] = _rule(gm, node, found, grids)
    return Rules(found, frozenset(_kept(gm, found)), exact)


def _rule(gm: fx.GraphModule, node: fx.Node, found: dict[fx.Node, Rule], grids: _Exact | None) -> Rule:
    if node.op == "placeholder":
        return Rule.INPUT
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        if not isinstance(module, STBIF):
            return Rule.DIFFERENCE
        if type(module) is not STBIF:  # a neuron of its own: the membrane's rule is not known
            return Rule.TRACKER
        return Rule.MEMBRANE if grids is None or grids.decides(node.all_input_nodes[0]) else Rule.TRACKER
    if not ops.is_signal(node):
        return Rule.SIZE
    if not _streams(node, found):
        return Rule.CONSTANT
    rule = _increments(node, found)
    if grids is None or rule is Rule.DIFFERENCE or grids.sums(node):
        return rule
    if rule is Rule.LINEAR and bias_of(node) is not None and grids.sums(node, released=True):
        return Rule.RELEASED
    return Rule.DIFFERENCE


def _streams(node: fx.Node, found: dict[fx.Node, Rule]) -> list[fx.Node]:
    """The operands that change over time."""
    return [n for n in node.all_input_nodes if found[n] not in (Rule.SIZE, Rule.CONSTANT)]


def _increments(node: fx.Node, found: dict[fx.Node, Rule]) -> Rule:
    """The rule in exact arithmetic."""
    kind, name = ops.kind(node), network.op_name(node)
    streams = _streams(node, found)
    if not all(_floats(n) for n in [node, *streams]):
        return Rule.DIFFERENCE
    if kind in (Kind.SYNAPTIC, Kind.PRODUCT):
        index = bias_of(node)
        added = node.args[index] if index is not None else None
        if added is None and name in ("addmm", "baddbmm"):  # alpha, beta, or a stream that is added
            return Rule.DIFFERENCE
        if added in streams or len(streams) > 2:
            return Rule.DIFFERENCE
        if len(streams) == 2:
            return Rule.BILINEAR
        return Rule.LINEAR if ops.appearances(node).count(streams[0]) == 1 else Rule.DIFFERENCE
    if kind in (Kind.SUM, Kind.SCALE):
        return Rule.DIFFERENCE if "rounding_mode" in node.kwargs else Rule.LINEAR
    if kind is Kind.AVERAGE or (kind is Kind.SHAPE and name != "masked_fill" and padding_value(node) == 0):
        return Rule.LINEAR
    return Rule.DIFFERENCE


def _floats(node: fx.Node) -> bool:
    spec = node.meta.get("spec")  # an operation with several results has none
    return spec is None or spec.dtype.is_floating_point


def _kept(gm: fx.GraphModule, found: dict[fx.Node, Rule]) -> set[fx.Node]:
    kept = {node for node, rule in found.items() if rule in (Rule.INPUT, Rule.DIFFERENCE, Rule.RELEASED)}
    for node, rule in found.items():
        if rule in (Rule.DIFFERENCE, Rule.BILINEAR, Rule.TRACKER):
            kept.update(_streams(node, found))
    kept.update(n for n in network.outputs(gm) if found[n] is not Rule.CONSTANT)
    return kept


class _Exact:
    """Which values of an integer network no step of the run can round."""

    def __init__(self, snn: SpikingNetwork, steps: int):
        grids = Grids(snn.qann)
        self._grids: dict[str, Grid | None] = {n.name: grids.get(n) for n in snn.qann.graph.nodes}
        self._digits = _share_digits(snn, steps)
        self._released: dict[fx.Node, bool] = {}  # whether a bias reaches the node before any neuron
        for node in snn.graph.graph.nodes:
            own = bias_of(node) is not None
            neuron = node.op == "call_module"
            self._released[node] = not neuron and (own or any(self._released[n] for n in node.all_input_nodes))

    def sums(self, node: fx.Node, *, released: bool = False) -> bool:
        """Whether the node's value is exact at every step; ``released``: its sum, before its own bias."""
        grid = self._grids[node.name]
        if grid is None:
            return False
        late = any(self._released[n] for n in node.all_input_nodes) if released else self._released[node]
        bits = grid.bits + (self._digits if late else 0)
        return bits < (FLOAT32_BITS if _narrow(node) else FLOAT64_BITS - _SPARE)

    def decides(self, drive: fx.Node) -> bool:
        """Whether a neuron's comparison of an exact membrane is the quantizer's ``floor(u/theta + 1/2)`` in floats."""
        if not self.sums(drive):
            return False
        grid = self._grids[drive.name]
        assert grid is not None
        # In float32, 1/2 - 2**-25 plus 1/2 is rounded to 1: steps so fine must not come near 1/2.
        exponent, bound = torch.broadcast_tensors(grid.exponent, grid.bound)
        fine = exponent + (self._digits if self._released[drive] else 0) > FLOAT32_BITS
        return not (_narrow(drive) and bool((fine & (bound >= 0.25)).any()))


def _narrow(node: fx.Node) -> bool:
    spec = node.meta.get("spec")
    return spec is None or spec.dtype is not torch.float64


def _share_digits(snn: SpikingNetwork, steps: int) -> float:
    """Binary digits behind the point of the biases' shares; infinite where they are not short dyadic numbers."""
    shares = [snn.bias_encoding.share(t, steps) for t in range(1, snn.t_off(steps) + 1)]
    digits = float(dyadic_exponent(torch.tensor(shares, dtype=torch.float64)).max())
    return max(digits, 0.0) if digits <= _SHORT else math.inf
