"""The baselines: an SNN with membranes, step by step as SpikeZIP-TF runs it, or layer by layer over all steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.errors import StageError
from spikezip.graph import network, ops
from spikezip.graph.ops import Kind
from spikezip.run.step import bias_of, shaped_bias, without_bias
from spikezip.spike import STBIF, SpikingNetwork

#: A layer of neurons with a memory of its own: the current of a step (or of all steps) to its spikes times theta.
Layer = Callable[[Tensor], Tensor]

_LINEAR = {Kind.SHAPE, Kind.SUM, Kind.SCALE, Kind.AVERAGE, Kind.SIZE, Kind.CONSTANT}


def without_rule(snn: SpikingNetwork) -> fx.Node | None:
    """The first operation that the loops cannot compute from increments."""
    for node in snn.graph.graph.nodes:
        kind = ops.kind(node) if node.op == "call_function" else Kind.CONSTANT
        weighted = kind is Kind.SYNAPTIC and ops.weight_of(node) is not None
        if not (weighted or kind is Kind.MAXIMUM or kind in _LINEAR):
            return node
    return None


class PlainNeurons:
    """A layer of ST-BIF neurons as SpikeZIP-TF computes it: add, compare, subtract, count, in masked assignments.

    Source: You et al., "SpikeZIP-TF", ICML 2024, eq. 5-8, and ``IFNeuron`` of its published code.
    """

    def __init__(self, neuron: STBIF):
        self.neuron = neuron
        self.memory: tuple[Tensor, Tensor] | None = None

    def __call__(self, current: Tensor) -> Tensor:
        membrane, tracer = self.memory or (torch.full_like(current, 0.5), torch.zeros_like(current))
        membrane = membrane + current / self.neuron.threshold
        up = (membrane - 1 >= 0) & (tracer < self.neuron.levels.highest)
        down = (membrane < 0) & (tracer > self.neuron.levels.lowest)
        spikes = torch.zeros_like(current)
        spikes[up] = 1
        spikes[down] = -1
        self.memory = membrane - spikes, tracer + spikes
        return spikes * self.neuron.threshold


class StepLoop(fx.Interpreter):
    """Step by step: every operation once a step, on the spikes of that step.

    Linear operations act on increments, their bias at the first step only; max-pooling gives the difference of its
    accumulated results.

    Args:
        snn: the network; its input all at the first step.
        make: from each layer of neurons what computes it.

    Raises:
        StageError: the network holds an operation that is not linear, or its tracers do not start at 0.

    Source: SpikeZIP-TF's published code (``LLConv2d``, ``spiking_maxpool``).
    """

    def __init__(self, snn: SpikingNetwork, make: Callable[[STBIF], Layer] = PlainNeurons):
        if snn.starts_elsewhere:
            raise StageError("This loop starts all tracers at 0. Call spike(qann, ..., initial_code=0).")
        if (node := without_rule(snn)) is not None:
            raise StageError(f"{network.describe(node)} is not linear: this baseline has no rule for it.")
        super().__init__(snn.graph)
        self.extra_traceback = False
        self.make = make
        self.layers: dict[str, Layer] = {}
        self.memory: dict[fx.Node, Any] = {}
        self.first = True

    @torch.no_grad()
    def outputs(self, images: Tensor, steps: int) -> Tensor:
        """The accumulated output at every step, ``[T, B, ...]``."""
        neurons = {n: m for n, m in self.module.named_modules() if isinstance(m, STBIF)}
        self.layers = {name: self.make(neuron) for name, neuron in neurons.items()}
        self.memory, self.first = {}, True
        found: list[Tensor] = []
        for _ in range(steps):
            increment = self.run(images)
            found.append(increment if self.first else found[-1] + increment)
            images, self.first = torch.zeros_like(images), False
        return torch.stack(found)

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "call_module":
            layer = self.layers.get(str(n.target))
            return layer(args[0]) if layer else self.fetch_attr(str(n.target))(*args)  # else the input's rounding
        if n.op != "call_function":
            return super().run_node(n)
        kind, index = ops.kind(n), bias_of(n)
        if kind is Kind.SYNAPTIC and ops.weight_of(n) is not None:
            return self.synapse(n, args, kwargs, index)
        if kind is Kind.MAXIMUM:
            return self.maximum(n, args, kwargs)
        return n.target(*args, **kwargs)  # type: ignore[operator]

    def synapse(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], index: int | None) -> Tensor:
        """A convolution or linear layer on increments."""
        if index is not None and not self.first:
            return without_bias(n, args, index)
        return n.target(*args, **kwargs)  # type: ignore[operator]

    def maximum(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The change of a maximum."""
        before, total = self.memory.get(n, (0.0, 0.0))
        now = n.target(total + args[0], *args[1:], **kwargs)  # type: ignore[operator]
        self.memory[n] = now, total + args[0]
        return now - before


class LayerLoop(StepLoop):
    """Layer by layer: every operation once, on the spikes of all steps folded into the batch.

    Args:
        snn: the network; its input all at the first step.
        make: from each layer of neurons what computes it, all steps ``[T, B, ...]`` in one call.
    """

    def __init__(self, snn: SpikingNetwork, make: Callable[[STBIF], Layer]):
        super().__init__(snn, make)

    @torch.no_grad()
    def outputs(self, images: Tensor, steps: int) -> Tensor:
        neurons = {n: m for n, m in self.module.named_modules() if isinstance(m, STBIF)}
        self.layers = {name: self.make(neuron) for name, neuron in neurons.items()}
        self.count = images.shape[0]
        whole = images.new_zeros((steps * self.count, *images.shape[1:]))
        whole[: self.count] = images
        return self._apart(self.run(whole)).cumsum(0)

    def run_node(self, n: fx.Node) -> Any:
        if str(n.target) in self.layers:
            current = self.fetch_args_kwargs_from_env(n)[0][0]
            return self.layers[str(n.target)](self._apart(current)).flatten(0, 1)
        return super().run_node(n)

    def synapse(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], index: int | None) -> Tensor:
        if index is None:
            return n.target(*args, **kwargs)  # type: ignore[operator]
        result = without_bias(n, args, index)
        result[: self.count] += shaped_bias(n, args[index])  # all of it at the first step
        return result

    def maximum(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        total = self._apart(args[0]).cumsum(0).flatten(0, 1)
        now = self._apart(n.target(total, *args[1:], **kwargs))  # type: ignore[operator]
        return torch.diff(now, dim=0, prepend=torch.zeros_like(now[:1])).flatten(0, 1)

    def _apart(self, folded: Tensor) -> Tensor:
        return folded.unflatten(0, (-1, self.count))
