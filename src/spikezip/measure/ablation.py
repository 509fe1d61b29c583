"""The same network with other neurons: what becomes of the answer when ST-BIF is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.graph import network
from spikezip.measure.equivalence import qann_codes
from spikezip.measure.layers import layers_of
from spikezip.measure.streams import Reader
from spikezip.run.engine import check_inputs
from spikezip.run.step import at_share, images_back, images_first
from spikezip.spike.neuron import STBIF
from spikezip.spike.neurons import Neuron, When
from spikezip.spike.swap import SpikingNetwork


@dataclass(frozen=True)
class Ablation:
    """What a network did with another neuron in every layer. There is no certificate of it, and can be none.

    Attributes:
        neuron: the neuron.
        logits: the network's (first) output at every step, ``[T, N, ...]``.
        differ: share of the last layer's neurons that had not sent the QANN's code by step t, ``[T]``.
        spikes: of all layers in step t, mean per image, ``[T]``.
        synops: accumulates that they cost (``ac`` as :func:`spikezip.measure.count` counts), mean per image, ``[T]``.
    """

    neuron: Neuron
    logits: Tensor
    differ: Tensor
    spikes: Tensor
    synops: Tensor


@torch.no_grad()
def ablate(
    snn: SpikingNetwork,
    neuron: Neuron,
    images: Tensor | Sequence[Tensor],
    steps: int,
    *,
    batch: int = 32,
) -> Ablation:
    """Run the network with ``neuron`` in every neuron layer: same weights, thresholds, start, encodings and steps.

    Each step a layer's current is what its drive gained, ``i_t = U_t - U_{t-1}``; it adds it to its membranes, fires by
    the neuron's rule, and what it has sent so far, times theta, is what the operations after it see. With
    :class:`~spikezip.spike.neurons.SpikeTracking` this is the SNN itself, step for step (on integers to the bit).

    Args:
        snn: the network.
        neuron: the rule of firing.
        images: inputs ``[N, ...]``.
        steps: steps of the run; a batch is computed until nothing can fire any more.
        batch: images run together.
    """
    inputs = check_inputs(snn, images)
    count = inputs[0].shape[0]
    machine = _Machine(snn, neuron, steps)
    parts = [machine.run(tuple(x[i : i + batch] for x in inputs)) for i in range(0, count, batch)]
    logits, differ, spikes, synops = zip(*parts, strict=True)
    return Ablation(
        neuron,
        torch.cat(logits, 1),
        torch.stack(differ).sum(0) / count,
        torch.stack(spikes).sum(0) / count,
        torch.stack(synops).sum(0) / count,
    )


class _Machine:
    """What all batches share: depths of layers, and the synapses of what sends spikes."""

    def __init__(self, snn: SpikingNetwork, neuron: Neuron, steps: int):
        self.snn, self.neuron, self.steps = snn, neuron, steps
        self.depth: dict[fx.Node, int] = {}
        behind: dict[fx.Node, int] = {}
        neurons = {name for name, _ in snn.layers}
        for node in snn.graph.graph.nodes:
            behind[node] = max((behind[n] for n in node.all_input_nodes), default=0)
            if node.op == "call_module" and str(node.target) in neurons:
                self.depth[node] = behind[node]
                behind[node] += 1
        self.rest = max(neuron.rest(layer.levels, max(self.depth.values())) for _, layer in snn.layers)
        self.fans: dict[fx.Node, Tensor] = {}
        for layer in layers_of(snn)[0]:
            for operand in layer.operands:
                for stream in operand.streams:
                    into_sums = operand.role in (Reader.NEURONS, Reader.FUNCTION, Reader.OUTPUT) and not stream.drive
                    if stream.spikes and (operand.role is Reader.SYNAPSES or into_sums):
                        fan = images_first(stream.fanout, network.spec(stream.source), 1).reshape(-1).double()
                        self.fans[stream.source] = self.fans.get(stream.source, torch.zeros_like(fan)) + fan

    def run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Outputs ``[T, b, ...]``, and sums over the images of the other figures, ``[T]`` each."""
        images = inputs[0].shape[0]
        last = self.snn.layers[-1][0]
        goal = qann_codes(self.snn, inputs)[0][last]
        state: dict[str, _Held] = {}
        before: dict[fx.Node, Tensor] = {}
        outputs, differ = [], torch.zeros(self.steps, dtype=torch.float64)
        spikes, synops = torch.zeros_like(differ), torch.zeros_like(differ)
        silent = 0
        for t in range(1, self.steps + 1):
            step = _Step(self, images, t, state, before)
            share = self.snn.encoding.share(t, self.steps)
            result = step.run(*(share * x if x.is_floating_point() else x for x in inputs))
            result = result[0] if isinstance(result, tuple) else result
            outputs.append(images_first(result, network.spec(network.outputs(self.snn.graph)[0]), images))
            spikes[t - 1], synops[t - 1] = step.spikes, step.synops
            differ[t - 1 :] = (state[last].sent != goal).double().reshape(images, -1).mean(1).sum()
            silent = silent + 1 if t >= self.snn.t_off(self.steps) and not step.spikes else 0
            if silent >= self.rest:
                outputs += outputs[-1:] * (self.steps - t)
                break
        return torch.stack(outputs), differ, spikes, synops


@dataclass
class _Held:
    """What a layer remembers: its drive, membranes, and all it has sent, ``[b, ...]``."""

    drive: Tensor
    membrane: Tensor
    sent: Tensor


class _Step(fx.Interpreter):
    """One step of the network."""

    def __init__(self, machine: _Machine, images: int, t: int, state: dict[str, _Held], before: dict[fx.Node, Tensor]):
        super().__init__(machine.snn.graph)
        self.extra_traceback = False
        self.machine, self.images, self.t, self.state, self.before = machine, images, t, state, before
        self.share = machine.snn.bias_encoding.share(t, machine.steps)
        self.spikes = self.synops = 0.0

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_module" and isinstance(layer := self.fetch_attr(str(n.target)), STBIF):
            return self._neurons(n, layer, self.fetch_args_kwargs_from_env(n)[0][0])
        if n.op == "call_function":
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            result = at_share(n, args, self.share, kwargs)
        else:
            result = super().run_node(n)
        if n in self.machine.fans:  # a max-pool: it passes on what changed
            value = images_first(result, network.spec(n), self.images)
            self._cost(n, value != self.before.get(n, torch.zeros_like(value)))
            self.before[n] = value
        return result

    def _neurons(self, n: fx.Node, layer: STBIF, value: Tensor) -> Tensor:
        neuron, name, spec = self.machine.neuron, str(n.target), network.spec(n)
        theta = layer.threshold
        drive = images_first(value, spec, self.images)
        zero = torch.zeros_like(drive)
        held = self.state.get(name) or _Held(zero, zero + theta / 2, zero)
        membrane = neuron.decay * held.membrane + (drive - held.drive)
        when = When(self.t, self.machine.snn.t_off(self.machine.steps), self.machine.depth[n])
        fired = neuron.fire(membrane, held.sent, theta, layer.levels, when)
        held = _Held(drive, membrane - theta * fired, held.sent + fired)
        self.state[name] = held
        spikes = neuron.spikes(fired)
        self.spikes += float(spikes.sum())
        if n in self.machine.fans:
            self._cost(n, spikes)
        return images_back(held.sent * theta, spec)

    def _cost(self, n: fx.Node, spikes: Tensor) -> None:
        self.synops += float((spikes.reshape(self.images, -1).sum(0).double().cpu() * self.machine.fans[n]).sum())
