"""The event engine: what hardware does. Increments on the wires, membranes and tracers in the neurons."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from spikezip.errors import StageError
from spikezip.graph import network, ops
from spikezip.graph.ops import Kind
from spikezip.kernels import exactly
from spikezip.run.exit import EarlyExit
from spikezip.run.reference import Moved, stepwise
from spikezip.run.result import Observer, Run, State
from spikezip.run.rules import Rule, Rules, rules
from spikezip.run.step import (
    at_share,
    bias_of,
    images_back,
    images_first,
    scattered,
    shaped_bias,
    untold,
    without_bias,
)
from spikezip.spike.neuron import STBIF, membrane_step
from spikezip.spike.swap import SpikingNetwork

_aten = torch.ops.aten
_SHARE = "(share of the biases)"
_MEMBRANE = "(membrane)"
_BARE = "(without bias)"
_ADDED_UP = {Rule.LINEAR, Rule.BILINEAR, Rule.RELEASED, Rule.MEMBRANE}  #: rules that read what is sent


@torch.no_grad()
@exactly
def event(
    snn: SpikingNetwork,
    inputs: tuple[Tensor, ...],
    steps: int,
    *,
    state: State | None = None,
    stop: bool = True,
    observe: Observer | None = None,
    early_exit: EarlyExit | None = None,
    wires: Callable[[str, int, Tensor], None] | None = None,
) -> Run:
    """Run an SNN on increments, as spiking hardware does.

    Each step, a wire carries the change of a value: of a neuron ``theta * o``, with ``o`` in -1, 0, +1 (``slew`` levels
    at most), so that theta is part of the weight that reads it. Neurons are the published recursion
    (:func:`~spikezip.spike.membrane_step`, ``v_0 = theta/2``). How changes pass an operation is the table of
    :mod:`spikezip.run.rules`.

    An integer network (``to_integer``) is run in float64 on its dyadic grids: membranes, tracers and outputs are those
    of :func:`~spikezip.run.reference` to the bit, at every step. In floats, increments are rounded as they are added
    up, so a tie may fall the other way: :func:`~spikezip.run.drift` says how often.

    Args:
        snn: the network.
        inputs: its inputs, ``[B, ...]`` each.
        steps: how many steps at most.
        state: where to start from. With the memory of an event run by the same rules, the first step carries only
            what changed; with tracers alone, or without, it carries what the tracers stand for in full (which of
            initial codes other than 0 is a constant that hardware's membranes hold from the start).
        stop: end as soon as every image is settled.
        observe: told every layer's tracers at every step.
        early_exit: lets images go before (they are computed on with their batch, but nothing of it is kept).
        wires: told what every neuron layer sends at every step: (layer, t, ``o`` as ``[B, ...]``).

    Returns:
        The :class:`Run`, of as many steps as were run; its ``memory`` holds membranes and accumulated values.

    Raises:
        StageError: a value whose differences are sent is NaN or infinite at one step and not at another.

    Source: the neuron and the rule for products are You et al., "SpikeZIP-TF", ICML 2024, eq. 5-8 and 11.
    Departs: biases are injected once, by their schedule, not added and taken away again at every step.
    """
    machine = _Machine(snn, inputs[0].shape[0], steps, state)

    def advance(t: int, tracers: Mapping[str, Tensor]) -> Moved:
        moved = machine.step(t, inputs, tracers)
        if wires:
            for name, _ in snn.layers:
                wires(name, t, moved.after[name] - moved.before[name])
        return moved

    return stepwise(
        snn,
        inputs,
        steps,
        advance,
        "event",
        state=state,
        stop=stop,
        observe=observe,
        early_exit=early_exit,
        memory=machine.memory,
    )


class _Machine:
    """The state of one run: ``total`` holds accumulated values by node, ``membranes`` those of the neurons."""

    def __init__(self, snn: SpikingNetwork, images: int, steps: int, state: State | None):
        self.snn, self.images, self.steps = snn, images, steps
        self.rules: Rules = rules(snn, steps)
        self.dtype = torch.float64 if self.rules.exact else _float_type(snn)
        self.total: dict[fx.Node, Any] = {}
        self.constants: dict[fx.Node, Any] = {}
        self.cast: dict[fx.Node, Tensor] = {}
        self.bare: dict[fx.Node, Tensor] = {}  # sums without their bias, where only the bias is off the grid
        self.membranes: dict[str, Tensor] = {}
        self.delivered = 0.0  # share of the biases
        self.fresh = True  # nothing has been sent yet
        if state is not None and state.memory:
            self._recall(state.memory)

    @cached_property
    def share(self) -> str:
        """What the share is kept as: what another network kept is not ours."""
        return f"{_SHARE} {_fingerprint(self.snn.graph)}"

    def step(self, t: int, inputs: tuple[Tensor, ...], tracers: Mapping[str, Tensor]) -> Moved:
        """One step: what every neuron did, and the outputs."""
        share = self.snn.bias_encoding.share(t, self.steps)
        part = _Pass(self, inputs, self.snn.encoding.share(t, self.steps), share, tracers)
        for node in self.snn.graph.graph.nodes:
            if node.op == "output":
                break
            part.run(node)
        self.delivered, self.fresh = share, False
        outputs = tuple(part.now(n) for n in network.outputs(self.snn.graph))
        return Moved(outputs, part.before, part.after, part.behind)

    def wide(self, value: Tensor) -> Tensor:
        """A value in the precision of this run."""
        return value.to(self.dtype.to_complex() if value.is_complex() else self.dtype)

    def memory(self) -> dict[str, Tensor]:
        """All that is kept, images first, to go on from; nothing where a value does not keep an image's together."""
        if any(untold(network.spec(node)) for node, _ in network.modules_of(self.snn.graph, STBIF)):
            return {}
        kept: dict[str, Tensor] = {self.share: torch.full((self.images,), self.delivered, dtype=torch.float64)}
        for suffix, values in (("", self.total), (_BARE, self.bare)):
            for node, value in values.items():
                spec = node.meta.get("spec")
                if spec is None or spec.batch_dim is None or scattered(spec):
                    return {}
                kept[node.name + suffix] = images_first(value, spec, self.images)
        return {**kept, **{name + _MEMBRANE: v for name, v in self.membranes.items()}}

    def _recall(self, memory: Mapping[str, Tensor]) -> None:
        rule = self.rules.of
        wanted = {self.share, *(node.name for node in self.rules.kept)}
        wanted |= {node.name + _BARE for node in rule if rule[node] is Rule.RELEASED}
        wanted |= {str(node.target) + _MEMBRANE for node in rule if rule[node] is Rule.MEMBRANE}
        if memory.keys() != wanted:  # of a run by other rules (another release of the biases): all is sent anew
            return
        self.fresh = False
        self.delivered = float(memory[self.share][0])
        for node in rule:
            if rule[node] is Rule.MEMBRANE:
                self.membranes[str(node.target)] = memory[str(node.target) + _MEMBRANE]
            if rule[node] is Rule.RELEASED:
                self.bare[node] = images_back(memory[node.name + _BARE], network.spec(node))
            if node in self.rules.kept:
                self.total[node] = images_back(memory[node.name], network.spec(node))


def _fingerprint(graph: fx.GraphModule) -> str:
    """Of all that a network has stored."""
    stored = (t.detach() for t in graph.state_dict().values())
    reals = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in stored)
    sums = [(float(t.double().sum()), float(t.double().square().sum())) for t in reals]
    return hashlib.sha256(repr(sums).encode()).hexdigest()[:16]


@dataclass
class _Pass:
    """One step through the graph: ``change`` holds what each wire carries."""

    machine: _Machine
    inputs: tuple[Tensor, ...]
    input_share: float
    bias_share: float
    tracers: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        self.placeholders = iter(self.inputs)
        self.change: dict[fx.Node, Any] = {}
        self.earlier: dict[fx.Node, Any] = {}  # accumulated values before this step
        self.before: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}
        self.behind: dict[str, Tensor] = {}

    def run(self, node: fx.Node) -> None:
        """Work out what the node sends this step."""
        m, rule = self.machine, self.machine.rules.of[node]
        if rule is Rule.SIZE:
            args, kwargs = self._arguments(node, lambda n: self.change[n])
            self.change[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        elif rule is Rule.CONSTANT:
            self._constant(node)
        elif rule is Rule.INPUT:
            x = next(self.placeholders)
            self._settle_at(node, self.input_share * x if x.is_floating_point() else x)
        elif rule is Rule.DIFFERENCE:
            self._settle_at(node, self._whole(node))
        elif rule is Rule.RELEASED:
            self._released(node)
        elif rule in (Rule.MEMBRANE, Rule.TRACKER):
            self._neurons(node, rule)
        else:
            self.change[node] = self._linear(node) if rule is Rule.LINEAR else self._bilinear(node)
            self._inject(node)
            if node in m.rules.kept:
                self._add_up(node)

    def now(self, node: fx.Node) -> Any:
        """The accumulated value of a node, in the type that the QANN gives it."""
        if self.machine.rules.of[node] is Rule.CONSTANT:
            return self.machine.constants[node]
        return _typed(self.machine.total[node], node)

    # -- rules --------------------------------------------------------------------------------------------------------

    def _linear(self, node: fx.Node) -> Any:
        added = ops.kind(node) is Kind.SUM or network.op_name(node) in ("cat", "stack")
        args, kwargs = self._arguments(node, lambda n: self._operand(n, added))
        if ops.kind(node) is Kind.SUM and not self.machine.fresh:
            args = tuple(0 if isinstance(a, int | float) else a for a in args)  # a number is added once
        if node.target in (_aten.to.dtype, _aten._to_copy.default):
            return args[0]  # on its grid a value is the same in either type
        return _apply(node, args, kwargs)

    def _bilinear(self, node: fx.Node) -> Tensor:
        rule = self.machine.rules.of
        a, b = (n for n in node.all_input_nodes if rule[n] not in (Rule.SIZE, Rule.CONSTANT))
        first = self._arguments(node, lambda n: self.change[a] if n is a else self._operand(n, False, now=b))
        result = _apply(node, *first)
        if a in self.earlier:
            second = self._arguments(node, lambda n: self.change[b] if n is b else self._operand(n, False, before=a))
            result = result + _apply(node, *second)
        return result

    def _inject(self, node: fx.Node) -> None:
        """The share of the bias that is released in this step."""
        index, m = bias_of(node), self.machine
        if index is not None and self.bias_share != m.delivered:
            bias = shaped_bias(node, self._operand(node.args[index], False))  # type: ignore[arg-type]
            self.change[node] = self.change[node] + (self.bias_share - m.delivered) * bias

    def _released(self, node: fx.Node) -> None:
        """The sum without its bias is exact; the bias so far is added as the reference adds it."""
        index, m = bias_of(node), self.machine
        assert index is not None
        change, bare = self._linear(node), m.bare.get(node)
        m.bare[node] = change if bare is None else bare + change
        bias = shaped_bias(node, m.constants[node.args[index]])  # type: ignore[index]
        self._settle_at(node, _typed(m.bare[node], node) + self.bias_share * bias)

    def _whole(self, node: fx.Node) -> Any:
        """The QANN's own operation on accumulated values."""
        args, kwargs = self._arguments(node, self._value)
        if node.op == "call_module":
            return self.machine.snn.graph.get_submodule(str(node.target))(*args)
        return at_share(node, args, self.bias_share, kwargs)

    def _neurons(self, node: fx.Node, rule: Rule) -> None:
        m, name, spec = self.machine, str(node.target), network.spec(node)
        neuron = m.snn.graph.get_submodule(name)
        assert isinstance(neuron, STBIF)
        source = node.all_input_nodes[0]
        current = images_first(self._operand(source, True), spec, m.images)
        tracer = self.tracers.get(name)
        tracer = neuron.start(current).to(neuron.threshold.dtype) if tracer is None else tracer
        theta = neuron.threshold.to(m.dtype)
        if rule is Rule.TRACKER:
            drive = images_first(self._value(source), spec, m.images)
            after = neuron(drive, tracer)
            behind = after != neuron.target(drive)
        else:
            membrane = m.membranes.get(name)
            membrane = theta / 2 - theta * tracer.to(m.dtype) if membrane is None else membrane
            membrane, after = _fire(membrane, tracer, current, theta, neuron)
            m.membranes[name] = membrane
            behind = ((membrane >= theta) & (after < neuron.levels.highest)) | (
                (membrane < 0) & (after > neuron.levels.lowest)
            )
        self.before[name], self.after[name], self.behind[name] = tracer, after, behind
        sent = after if m.fresh else after - tracer
        self.change[node] = images_back(sent.to(m.dtype) * theta, spec)
        if node in m.rules.kept:
            if node in m.total:
                self.earlier[node] = m.total[node]
            m.total[node] = images_back(after * neuron.threshold, spec)

    # -- values -------------------------------------------------------------------------------------------------------

    def _constant(self, node: fx.Node) -> None:
        constants = self.machine.constants
        if node not in constants:
            if node.op == "get_attr":
                constants[node] = network.constant(node)
            else:
                args, kwargs = self._arguments(node, self._value)
                constants[node] = node.target(*args, **kwargs)  # type: ignore[operator]

    def _settle_at(self, node: fx.Node, value: Any) -> None:
        """The node's accumulated value is ``value``; its change is what is new in it."""
        m = self.machine
        before = m.total.get(node)
        if before is None:
            change = _over(value, m.wide)
        else:
            self.earlier[node] = before
            # What stays infinite, such as a masked score, does not change.
            change = _over(value, lambda v, w: (m.wide(v) - m.wide(w)).masked_fill_(v == w, 0), before)
        if any(m.rules.of.get(user) in _ADDED_UP for user in node.users):
            for part in tree_leaves(change):
                if bool((part.isnan() if before is None else ~part.isfinite()).any()):
                    raise StageError(
                        f"{network.origin(node)!r} was not finite at a step, as the quotient or logarithm of 0 before "
                        "spikes arrive, and the event engine sends differences. Run this network with another engine."
                    )
        self.change[node], m.total[node] = change, value

    def _add_up(self, node: fx.Node) -> None:
        m, change = self.machine, self.change[node]
        before = m.total.get(node)
        if before is not None:
            self.earlier[node] = before
        m.total[node] = change if before is None else _over(change, lambda c, b: b + c, before)

    def _value(self, node: fx.Node) -> Any:
        return self.change[node] if self.machine.rules.of[node] is Rule.SIZE else self.now(node)

    def _operand(self, node: fx.Node, added: bool, *, now: fx.Node | None = None, before: fx.Node | None = None) -> Any:
        """What a linear operation reads: a stream's change; a constant's value, or its arrival where it is added."""
        m = self.machine
        if node is now:
            return _over(m.total[node], m.wide)
        if node is before:
            return _over(self.earlier[node], m.wide)
        if m.rules.of[node] is not Rule.CONSTANT:
            return self.change[node]
        if node not in m.cast:
            m.cast[node] = _over(
                m.constants[node], lambda v: m.wide(v) if v.is_floating_point() or v.is_complex() else v
            )
        value = m.cast[node]
        return value if m.fresh or not added else _over(value, torch.zeros_like)

    def _arguments(self, node: fx.Node, read: Callable[[fx.Node], Any]) -> tuple[tuple, dict]:
        return fx.map_arg(node.args, read), fx.map_arg(node.kwargs, read)  # type: ignore[return-value]


def _fire(membrane: Tensor, tracer: Tensor, current: Tensor, theta: Tensor, neuron: STBIF) -> tuple[Tensor, Tensor]:
    """The published recursion; with slew k, repeated up to k times within the step (a spike of k levels)."""
    membrane, tracer, spikes = membrane_step(membrane, tracer, current, theta, neuron.levels)
    for _ in range(min(neuron.slew, neuron.levels.range) - 1):
        if not bool(spikes.any()):
            break
        membrane, tracer, spikes = membrane_step(membrane, tracer, torch.zeros_like(current), theta, neuron.levels)
    return membrane, tracer


def _apply(node: fx.Node, args: tuple, kwargs: dict) -> Any:
    """The operation without its bias."""
    index = bias_of(node)
    if index is not None:
        return without_bias(node, args, index)
    target = _aten.reshape.default if node.target in (_aten.view.default, _aten._unsafe_view.default) else node.target
    return target(*args, **kwargs)  # type: ignore[operator]


def _typed(value: Any, node: fx.Node) -> Any:
    spec = node.meta.get("spec")
    return value if spec is None else value.to(spec.dtype)


def _over(value: Any, function: Callable[..., Tensor], *others: Any) -> Any:
    """A function of a tensor, on each of several if the operation has several results."""
    if isinstance(value, Tensor):
        return function(value, *others)
    return tuple(function(*parts) for parts in zip(value, *others, strict=True))


def _float_type(snn: SpikingNetwork) -> torch.dtype:
    return next((n.threshold.dtype for _, n in snn.layers), torch.float32)
