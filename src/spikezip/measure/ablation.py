"""The same network with other neurons: what becomes of the answer when ST-BIF is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.errors import StageError
from spikezip.graph import network
from spikezip.graph.modes import building
from spikezip.kernels import Rows, Sum, gather
from spikezip.measure.equivalence import qann_codes
from spikezip.measure.layers import layers_of
from spikezip.measure.streams import Reader
from spikezip.run.block import Block
from spikezip.run.engine import check_counts, check_inputs
from spikezip.run.plan import is_plain, plan_of
from spikezip.run.step import images_back, images_first
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


@building()
@torch.no_grad()
def ablate(
    snn: SpikingNetwork,
    neuron: Neuron,
    images: Tensor | Sequence[Tensor],
    steps: int,
    *,
    batch: int = 8,
) -> Ablation:
    """Run the network with ``neuron`` in every neuron layer: same weights, thresholds, start, encodings and steps.

    In each step a layer's current is what its drive gained, ``i_t = U_t - U_{t-1}``; it adds it to its membranes, fires
    by the neuron's rule, and what it has sent so far, times theta, is what the operations after it see, in the same
    step. With :class:`~spikezip.spike.neurons.SpikeTracking` this is the SNN itself, step for step.

    Args:
        snn: the network.
        neuron: the rule of firing.
        images: inputs ``[N, ...]``.
        steps: steps of the run.
        batch: images run together.

    Raises:
        InputError: the images do not fit the network.
        StageError: ``neuron`` is none, ``steps`` or ``batch`` is not a positive whole number, tracers start
            elsewhere than at 0, or neurons may move more than one level a step.
    """
    if snn.starts_elsewhere:
        raise StageError(
            "Other neurons know no initial code, so they are compared on a network whose tracers start at 0. Call "
            "spike(qann, ..., initial_code=0)."
        )
    if snn.slew != 1:
        raise StageError(
            f"Other neurons are compared with ternary spikes; those of this network have up to {snn.slew} levels. Call "
            "spike(qann, ..., slew=1)."
        )
    if isinstance(neuron, type) or not isinstance(neuron, Neuron):
        raise StageError(f"{neuron!r} is no neuron; give a value such as IntegrateAndFire(), or one of NEURONS.")
    check_counts(steps=steps, batch=batch)
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
        self.plan = plan_of(snn)
        self.bits = max(layer.levels.highest.bit_length() for _, layer in snn.layers)
        self.depth: dict[fx.Node, int] = {}
        behind: dict[fx.Node, int] = {}
        for node in snn.graph.graph.nodes:
            behind[node] = max((behind[n] for n in node.all_input_nodes), default=0)
            if node in self.plan.neurons:
                self.depth[node] = behind[node]
                behind[node] += 1
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
        images, last = inputs[0].shape[0], self.snn.layers[-1][0]
        times = range(1, self.steps + 1)
        block = _Block(self, inputs, [self.snn.encoding.share(t, self.steps) for t in times])
        logits = block.run()[0]
        goal = qann_codes(self.snn, inputs)[0][last].reshape(images, -1).double()
        differ = torch.stack([(sent.reshape(images, -1) != goal).double().mean(1).sum() for sent in block.sent[last]])
        return logits, differ, block.spikes, block.synops


class _Block(Block):
    """All steps at once, layer by layer: what comes before a layer knows nothing of it."""

    def __init__(self, machine: _Machine, inputs: tuple[Tensor, ...], shares: list[float]):
        snn, steps = machine.snn, machine.steps
        bias_shares = [snn.bias_encoding.share(t, steps) for t in range(1, steps + 1)]
        super().__init__(snn, machine.plan, inputs, shares, bias_shares, {}, {})
        self.machine, self.t_off = machine, snn.t_off(steps)
        self.spikes = torch.zeros(steps, dtype=torch.float64)
        self.synops = torch.zeros(steps, dtype=torch.float64)
        self.sent: dict[str, Tensor] = {}

    def _compute(self, node: fx.Node) -> Any:
        value = super()._compute(node)
        if node in self.machine.fans and node not in self.plan.neurons:  # a max-pool: it passes on what changed
            now = self._unfold_rows(node, value)
            changed = torch.cat([now[:1] != 0, now[1:] != now[:-1]])
            self.synops += changed.flatten(2).sum(1).double() @ self.machine.fans[node]
        return value

    def _neurons(self, node: fx.Node, neuron: STBIF) -> Rows:
        drive, spec, rule = self.env[node.args[0]], network.spec(node), self.machine.neuron  # type: ignore[index]
        if not isinstance(drive, Rows | Sum):  # a drive that depends on no image
            drive = Rows(drive.expand(self.images, *drive.shape[1:]), self.still, drive.dtype)
        drive = drive.numbers()
        value = images_first(
            drive.value, spec, drive.value.shape[spec.batch_dim or 0] // spec.shape[spec.batch_dim or 0]
        )
        theta, map = neuron.threshold, drive.map
        before = torch.zeros_like(gather(value, map[0]))
        membrane, sent = before + theta / 2, before
        tracers = _steps_of(before, len(map))
        quiet = 0  # steps without input or spikes
        for k in range(len(map)):
            if rule.decay != 1.0:
                membrane = rule.decay * membrane
            if k == 0 or not torch.equal(map[k], map[k - 1]):
                now = gather(value, map[k])
                membrane, before, quiet = membrane + (now - before), now, 0
            elif quiet >= rule.rest(neuron.levels):
                tracers[k] = sent
                continue
            when = When(k + 1, self.t_off, self.machine.depth[node], self.machine.bits)
            fired = rule.fire(membrane, sent, theta, neuron.levels, when)
            membrane, sent = membrane - theta * fired, torch.add(sent, fired, out=tracers[k])
            spikes = rule.spikes(fired).sum(0).double().reshape(-1)
            count = float(spikes.sum())
            quiet = 0 if count else quiet + 1
            self.spikes[k] += count
            if count and node in self.machine.fans:
                self.synops[k] += float(spikes @ self.machine.fans[node])
        self.sent[str(node.target)] = tracers
        codes = _rows(tracers, drive.dtype, float(theta))
        return codes if is_plain(spec) else codes.with_rows(images_back(codes.rows, spec))

    def _unfold_rows(self, node: fx.Node, value: Rows) -> Tensor:
        """A node's values at every step, ``[K, B, ...]``."""
        spec, numbers = network.spec(node), value.value
        rows = numbers.shape[spec.batch_dim or 0] // spec.shape[spec.batch_dim or 0]
        first = images_first(numbers, spec, rows)
        return gather(first, value.map.flatten()).unflatten(0, tuple(value.map.shape))


def _steps_of(value: Tensor, steps: int) -> Tensor:
    """Room for a value at every step, in its own memory layout."""
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return value.new_empty((steps, *value.permute(0, 2, 3, 1).shape)).permute(0, 1, 4, 2, 3)
    return value.new_empty((steps, *value.shape))


def _rows(tracers: Tensor, dtype: torch.dtype, theta: float) -> Rows:
    """What neurons have sent by each step, ``[K, B, ...]``, a row wherever an image's changed; bytes where they fit."""
    steps, images = tracers.shape[:2]
    new = torch.ones((steps, images), dtype=torch.bool)
    new[1:] = (tracers[1:] != tracers[:-1]).flatten(2).any(2)
    map = (new.T.flatten().cumsum(0) - 1).reshape(images, steps).T.contiguous()
    image, step = new.T.nonzero(as_tuple=True)
    kept = gather(tracers.flatten(0, 1), step * images + image)
    low, high = min(int(kept.min()), 0), max(int(kept.max()), 1)
    scale = None if theta == 1.0 else theta
    if high - low < 256:
        return Rows((kept - low).to(torch.uint8), map, dtype, -low, scale, top=high - low)
    return Rows(kept, map, dtype, scale=scale)
