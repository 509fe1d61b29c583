"""Counting what a run does: every spike through every synapse it has, and everything else that costs something.

Conventions (docs/energy.md says why):

- A spike is charged once for each synapse it feeds; synapses that lead into padding are none. Each stream of a
  residual sum is charged by itself. Zero weights are synapses.
- An average between spikes and synapses is folded into the weights: each window passes the spike on.
- Constant factors (thresholds, scales of a value or a channel) are folded into the weights.
- The product rule: each spike of either factor is one multiply-accumulate with each value of the other it meets.
- The analog input is multiplied once; at each later step of its release the sums kept from then are added again.
- Neurons are updated in every step, until one step after the image settled (the silent step that shows it).
- General functions are evaluated anew for each image, in each step in which one of their inputs changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.graph import network, ops
from spikezip.graph.modes import building
from spikezip.measure.layers import Layer, layers_of
from spikezip.measure.streams import Carries, Operand, Reader, Stream
from spikezip.measure.work import Counts, Row
from spikezip.run.engine import check_inputs, check_numbers, check_steps
from spikezip.run.step import at_share, images_back, images_first, pieces
from spikezip.spike.neuron import STBIF
from spikezip.spike.swap import SpikingNetwork


@building()
@torch.no_grad()
def count(
    snn: SpikingNetwork,
    images: Tensor | Sequence[Tensor],
    steps: int | None = None,
    *,
    limit: int = 64,
    batch: int = 16,
    on_batch: Callable[[int], None] | None = None,
) -> Counts:
    """Run an SNN step by step and count its operations and memory accesses.

    Args:
        snn: the network.
        images: inputs ``[N, ...]``.
        steps: steps of the run; None until every image has settled.
        limit: only this many images are run (the first); counts are means over them.
        batch: images run together.
        on_batch: told how many images were done, batch by batch (for a progress bar).

    Returns:
        The :class:`Counts`.

    Raises:
        InputError: the images do not fit the network.
        StageError: ``steps``, ``limit`` or ``batch`` is not positive, or ``steps`` is missing for an encoding that
            lasts as long as the run.
    """
    check_numbers(steps=steps, limit=limit, batch=batch)
    inputs = tuple(x[:limit] for x in check_inputs(snn, images))
    check_steps(snn, steps)
    tally = _Tally(snn, steps or snn.t_off(1) + snn.bound + 1)
    for _, piece in pieces(inputs, batch):
        tally.run(piece)
        if on_batch:
            on_batch(piece[0].shape[0])
    return tally.result(inputs[0].shape[0], steps)


class _Tally:
    """Sums over images; divided by their number in the end."""

    def __init__(self, snn: SpikingNetwork, steps: int):
        self.snn, self.steps = snn, steps
        self.layers, self.uncounted = layers_of(snn)
        self.neurons = dict(snn.layers)
        self.spikes = torch.zeros(steps, dtype=torch.float64)
        self.last, self.settled = 1, True
        self.wanted = _wanted(self.layers)
        self.as_macs = {layer.node: torch.zeros(steps, dtype=torch.float64) for layer in self.layers}
        self.fans = _Fans()
        self.unseen = _unseen(snn)

    def run(self, inputs: tuple[Tensor, ...]) -> None:
        images = inputs[0].shape[0]
        t_off = self.snn.t_off(self.steps)
        tracers: dict[str, Tensor] = {}
        before = self._before(inputs)
        settled_at = torch.full((images,), -1)
        for t in range(1, self.steps + 1):
            step = _Step(self.snn, self.wanted, images, tracers)
            step.drive(inputs, t, self.steps)
            moves = _Moves(step.values, before, step.moved)
            alive = (settled_at < 0) | (settled_at >= t - 1)
            self.spikes[t - 1] += sum(float(m.sum()) for m in step.moved.values())
            for layer in self.layers:
                self._layer(layer, t, images, moves, step, alive)
            tracers, before = step.after, step.values
            if t >= t_off:
                settled_at = torch.where(step.behind, -1, torch.where(settled_at < 0, t, settled_at))
            self.last = max(self.last, t)
            if bool((settled_at > 0).all()) and t > int(settled_at.max()):
                break
        self.settled &= bool((settled_at > 0).all())
        self._zeros_of_the_qann(inputs, images)

    def _before(self, inputs: tuple[Tensor, ...]) -> dict[fx.Node, Tensor]:
        """What nodes hold before the first step: the initial codes, passed on; no input and no bias has come."""
        held: dict[fx.Node, Tensor] = {}
        if self.snn.starts_elsewhere:
            step = _Step(self.snn, self.wanted, inputs[0].shape[0], {}, unseen=self.unseen)
            step.run(*inputs)
            held = step.values
        # A whole number (a token) that has not come is not token 0: it differs from whatever comes.
        kinds = {node: network.spec(node).dtype for node in self.unseen & self.wanted}
        whole = [node for node, dtype in kinds.items() if not (dtype.is_floating_point or dtype.is_complex)]
        return held | dict.fromkeys(whole, torch.tensor(torch.nan))

    def result(self, images: int, steps: int | None) -> Counts:
        # Without a given number of steps: to the last step in which anything fired.
        kept = steps or max(self.last - 1, 1)
        rows = []
        for layer in self.layers:
            layer.snn.operations = {k: v[:kept] / images for k, v in layer.snn.operations.items()}
            if "mac_nonzero" in layer.qann.operations:
                layer.qann.operations["mac_nonzero"] /= images
            as_macs = self.as_macs[layer.node][:kept] / images
            rows.append(Row(layer.name, layer.kind, layer.input, layer.snn, layer.qann, layer.ann, as_macs))
        return Counts(images, kept, self.settled, tuple(rows), self.spikes[:kept] / images, self.uncounted)

    # -- one layer in one step ----------------------------------------------------------------------------------------

    def _layer(self, layer: Layer, t: int, images: int, moves: _Moves, step: _Step, alive: Tensor) -> None:
        released = self.snn.encoding.share(t, self.steps) != (
            self.snn.encoding.share(t - 1, self.steps) if t > 1 else 0
        )
        for operand in layer.operands:
            for stream in operand.streams:
                counts = self._stream(layer, operand, stream, t, images, moves, released)
                layer.snn.at(t, self.steps, **counts)
            self._as_integers(layer, operand, t, images, moves)
        bias = self.snn.bias_encoding
        if layer.bias and bias.share(t, self.steps) != (bias.share(t - 1, self.steps) if t > 1 else 0.0):
            added = float(layer.bias * images)
            layer.snn.at(t, self.steps, add=added, bias_read=added, membrane_read=added, membrane_write=added)
        if layer.constant and t == 1:
            layer.snn.at(t, self.steps, add=float(layer.constant * images))
        if layer.scaled is not None:
            layer.snn.at(t, self.steps, mul=float(moves[layer.scaled].sum()))
        if layer.function is not None:
            active = torch.zeros(images, dtype=torch.bool)
            for operand in layer.operands:
                active |= moves[operand.node].reshape(images, -1).any(1).cpu()
            evaluated = float(active.sum())
            layer.snn.at(t, self.steps, **{k: v * evaluated for k, v in layer.function.items()})
        if layer.role is Reader.NEURONS:
            self._neurons(layer, t, step, alive)
        if layer.role is Reader.MAXIMUM:
            layer.snn.at(t, self.steps, spike_write=float(moves[layer.node].sum()))

    def _stream(
        self, layer: Layer, operand: Operand, stream: Stream, t: int, images: int, moves: _Moves, released: bool
    ) -> dict[str, float]:
        if stream.carries is Carries.INPUT and operand.role is Reader.SYNAPSES:
            if t == 1:
                macs = float(stream.fanout.sum()) * images
                kept = float(layer.size * images)
                return {"mac": macs, "weight_read": macs, "activation_read": macs, "membrane_write": kept}
            kept = float(layer.size * images) if released else 0.0
            return {"add": kept, "membrane_read": kept, "membrane_write": kept}
        fan = self.fans.of_stream(stream)
        events = moves.levels(stream.source, images)
        synapses = float((events * fan).sum())
        reached = float((events * (fan > 0)).sum())
        if operand.role is Reader.MAXIMUM:
            return {"compare": synapses, "spike_read": reached}
        if operand.role is Reader.PRODUCT:
            return {
                "mac": synapses, "activation_read": synapses, "membrane_read": synapses, "membrane_write": synapses,
                "spike_read": reached, "address_add": synapses,
            }  # fmt: skip
        spikes = stream.spikes
        if operand.role is Reader.SYNAPSES:
            counts = {
                "ac" if spikes else "mac": synapses, "weight_read": synapses, "membrane_read": synapses,
                "membrane_write": synapses, "address_add": synapses, "address_mul": 2 * reached if layer.maps else 0.0,
            }  # fmt: skip
            return {**counts, "spike_read" if spikes else "activation_read": reached}
        # Into membranes, accumulators of the output, or the accumulated argument of a function.
        if stream.drive or stream.carries is Carries.PRODUCT:
            # The sum is made there; only copies, and averages of sums, are added in steps of their own.
            copied = synapses if stream.copied or stream.averaged or float(fan.max()) > 1 else 0.0
            return {"add": copied, "membrane_read": copied, "membrane_write": copied}
        name = "ac" if spikes else "mac" if stream.carries in (Carries.GRADED, Carries.FIXED_POINT) else "add"
        return {
            name: synapses, "membrane_read": synapses, "membrane_write": synapses,
            "spike_read" if spikes else "activation_read": reached,
        }  # fmt: skip

    def _as_integers(self, layer: Layer, operand: Operand, t: int, images: int, moves: _Moves) -> None:
        if operand.role not in (Reader.SYNAPSES, Reader.PRODUCT):
            return
        if operand.kind == Carries.INPUT.value:
            macs = float(operand.fanout.sum()) * images if t == 1 else 0.0
        else:
            changed = moves[operand.node].reshape(images, -1).sum(0).double().cpu()
            macs = float((changed * self.fans.of_operand(operand)).sum())
        self.as_macs[layer.node][t - 1] += macs

    def _neurons(self, layer: Layer, t: int, step: _Step, alive: Tensor) -> None:
        name = str(layer.node.target)
        updated = float(int(alive.sum()) * layer.size)
        fired = float(step.moved[name].sum())
        passed = float(step.over[name][alive.to(step.over[name].device)].sum())
        layer.snn.at(
            t, self.steps, update=updated, compare=2 * updated, membrane_read=updated,
            tracer_compare=passed, tracer_read=passed, tracer_add=fired, tracer_write=fired,
            add=fired, membrane_write=fired, spike_write=fired,
        )  # fmt: skip

    def _zeros_of_the_qann(self, inputs: tuple[Tensor, ...], images: int) -> None:
        """MACs of the QANN whose activation is not zero."""
        step = _Step(self.snn, self.wanted, images, None)
        step.drive(inputs, self.steps, self.steps)
        for layer in self.layers:
            met = []
            for operand in layer.operands if layer.role in (Reader.SYNAPSES, Reader.PRODUCT) else ():
                value = (
                    step.values[operand.node] if operand.node in step.values else step.after[str(operand.node.target)]
                )
                used = (value != 0).reshape(images, -1).sum(0).double().cpu()
                met.append(float((used * self.fans.of_operand(operand)).sum()))
            if met and "mac" in layer.qann.operations:  # of a product, the factor with more zeros says what is skipped
                layer.qann.add(mac_nonzero=min(met))


class _Fans:
    """Fan-out maps laid out like the values they count, one row of all positions."""

    def __init__(self) -> None:
        self._known: dict[Stream | Operand, Tensor] = {}

    def of_stream(self, stream: Stream) -> Tensor:
        return self._flat(stream, stream.source, stream.fanout)

    def of_operand(self, operand: Operand) -> Tensor:
        return self._flat(operand, operand.node, operand.fanout)

    def _flat(self, key: Stream | Operand, node: fx.Node, fanout: Tensor) -> Tensor:
        if key not in self._known:
            self._known[key] = images_first(fanout, network.spec(node), 1).reshape(-1)
        return self._known[key]


class _Moves:
    """Where values changed in a step."""

    def __init__(self, values: dict[fx.Node, Tensor], before: dict[fx.Node, Tensor], moved: dict[str, Tensor]):
        self._values, self._before, self._moved = values, before, moved
        self._changed: dict[fx.Node, Tensor] = {}

    def __getitem__(self, node: fx.Node) -> Tensor:
        """Where a node's value changed, ``[images, ...]`` of bool."""
        if node not in self._changed:
            if node in self._values:
                old = self._before.get(node)
                value = self._values[node]
                self._changed[node] = value != (0 if old is None else old)
            else:
                self._changed[node] = self._moved[str(node.target)] != 0
        return self._changed[node]

    def levels(self, node: fx.Node, images: int) -> Tensor:
        """Events of a source per position, over all images: levels a tracker moved, else changes. ``[positions]``."""
        name = str(node.target)
        moved = self._moved[name] if node.op == "call_module" and name in self._moved else self[node]
        return moved.reshape(images, -1).sum(0).double().cpu()


def _wanted(layers: Sequence[Layer]) -> set[fx.Node]:
    """The nodes whose values must be kept from one step to the next; trackers are kept anyway."""
    wanted: set[fx.Node] = set()
    for layer in layers:
        if layer.role is Reader.MAXIMUM:
            wanted.add(layer.node)
        if layer.scaled is not None:
            wanted.add(layer.scaled)
        for operand in layer.operands:
            wanted.update(stream.source for stream in operand.streams)
            if operand.role in (Reader.SYNAPSES, Reader.PRODUCT, Reader.FUNCTION):
                wanted.add(operand.node)
    return wanted


def _unseen(snn: SpikingNetwork) -> set[fx.Node]:
    """The inputs, and what is computed from them without a neuron."""
    neurons = {name for name, _ in snn.layers}
    behind: set[fx.Node] = set()
    for node in snn.graph.graph.nodes:
        if str(node.target) in neurons or not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
    return {node for node in snn.graph.graph.nodes if node not in behind and not ops.is_constant(node)}


class _Step(fx.Interpreter):
    """One step of the SNN; without tracers to start from the QANN: a tracker then stands where it is heading; with
    nodes that are ``unseen`` what stands before the first step: their values are 0, and tracers at their start."""

    def __init__(
        self,
        snn: SpikingNetwork,
        wanted: set[fx.Node],
        images: int,
        tracers: dict[str, Tensor] | None,
        *,
        unseen: set[fx.Node] | None = None,
    ):
        super().__init__(snn.graph)
        self.extra_traceback = False
        self.snn, self.wanted, self.images, self.start, self.unseen = snn, wanted, images, tracers, unseen
        self.share = 1.0 if unseen is None else 0.0
        self.values: dict[fx.Node, Tensor] = {}
        self.after: dict[str, Tensor] = {}
        self.moved: dict[str, Tensor] = {}  # levels moved by each neuron, [images, ...]
        self.over: dict[str, Tensor] = {}  # whether its membrane passed a threshold
        self.behind = torch.zeros(images, dtype=torch.bool)

    def drive(self, inputs: tuple[Tensor, ...], t: int, steps: int) -> None:
        share = self.snn.encoding.share(t, steps) if self.start is not None else 1.0
        self.share = self.snn.bias_encoding.share(t, steps) if self.start is not None else 1.0
        self.run(*(share * x if x.is_floating_point() else x for x in inputs))

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_module" and isinstance(neuron := self.fetch_attr(str(n.target)), STBIF):
            return self._neuron(n, neuron, self.fetch_args_kwargs_from_env(n)[0][0])
        if n.op == "call_function":
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            result = at_share(n, args, self.share, kwargs)
        else:
            result = super().run_node(n)
        if self.unseen and n in self.unseen and isinstance(result, Tensor) and result.is_floating_point():
            result = torch.zeros_like(result)
        if n in self.wanted:
            self.values[n] = images_first(result, network.spec(n), self.images)
        return result

    def _neuron(self, n: fx.Node, neuron: STBIF, value: Tensor) -> Tensor:
        name, spec = str(n.target), network.spec(n)
        drive = images_first(value, spec, self.images)
        target = neuron.target(drive)
        if self.start is None:
            self.after[name] = target
            return images_back(target * neuron.threshold, spec)
        before = self.start.get(name)
        before = neuron.start(drive) if before is None else before
        if self.unseen is not None:
            return images_back(before * neuron.threshold, spec)
        after = neuron(drive, before)
        self.after[name], self.moved[name] = after, (after - before).abs()
        # v >= theta or v < 0, before the tracer's limits are asked: v = theta/2 + U - theta*S.
        self.over[name] = torch.floor(drive / neuron.threshold + 0.5) != before
        self.behind |= (after != target).reshape(self.images, -1).any(1).cpu()
        return images_back(after * neuron.threshold, spec)
