"""The baseline: SpikeZIP-TF's loop, restated. Step by step, each operation on the spikes of one step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from spikezip.graph import network, ops
from spikezip.graph.ops import Kind
from spikezip.run.step import bias_of, without_bias
from spikezip.spike import STBIF, SpikingNetwork

_LINEAR = {Kind.SHAPE, Kind.SUM, Kind.SCALE, Kind.AVERAGE, Kind.SIZE, Kind.CONSTANT}


class PlainLoop(fx.Interpreter):
    """An SNN with membranes, one operation per call, as SpikeZIP-TF runs it.

    Linear operations act on increments, their bias at the first step only; max-pooling gives the difference of its
    accumulated results; a neuron adds to its membrane, compares, subtracts and counts.

    Source: You et al., "SpikeZIP-TF", ICML 2024, eq. 5-8, and the ``IFNeuron``, ``LLConv2d`` and ``spiking_maxpool`` of
    its published code.
    """

    def __init__(self, snn: SpikingNetwork):
        super().__init__(snn.graph)
        self.extra_traceback = False
        self.memory: dict[fx.Node, Any] = {}
        self.first = True

    @torch.no_grad()
    def steps(self, images: Tensor, steps: int) -> Tensor:
        """The accumulated output at every step, ``[T, B, ...]``; all input at the first step."""
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
            module = self.fetch_attr(str(n.target))
            return self._neuron(n, module, args[0]) if isinstance(module, STBIF) else module(*args)
        if n.op != "call_function":
            return super().run_node(n)
        kind, index = ops.kind(n), bias_of(n)
        if kind is Kind.SYNAPTIC and ops.weight_of(n) is not None:
            if index is not None and not self.first:
                return without_bias(n, args, index)
            return n.target(*args, **kwargs)  # type: ignore[operator]
        if kind is Kind.MAXIMUM:
            before, total = self.memory.get(n, (0.0, 0.0))
            now = n.target(total + args[0], *args[1:], **kwargs)  # type: ignore[operator]
            self.memory[n] = now, total + args[0]
            return now - before
        if kind not in _LINEAR:
            raise NotImplementedError(f"{network.describe(n)} is not linear: this baseline has no rule for it.")
        return n.target(*args, **kwargs)  # type: ignore[operator]

    def _neuron(self, node: fx.Node, neuron: STBIF, current: Tensor) -> Tensor:
        membrane, tracer = self.memory.get(node) or (torch.full_like(current, 0.5), torch.zeros_like(current))
        membrane = membrane + current / neuron.threshold
        up = (membrane - 1 >= 0) & (tracer < neuron.levels.highest)
        down = (membrane < 0) & (tracer > neuron.levels.lowest)
        spikes = torch.zeros_like(current)
        spikes[up] = 1
        spikes[down] = -1
        self.memory[node] = membrane - spikes, tracer + spikes
        return spikes * neuron.threshold
