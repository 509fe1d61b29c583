"""Two networks read side by side: what each layer of either held, and the sums that a comparison is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.errors import StageError
from spikezip.graph import network
from spikezip.graph.quiet import evaluating
from spikezip.levels import Levels
from spikezip.quantize.insert import insert_quantizers
from spikezip.quantize.integer import divided_out
from spikezip.quantize.quantizer import Quantizer
from spikezip.run import Engine, execute
from spikezip.run.step import images_first, outputs_first
from spikezip.spike.swap import SpikingNetwork

_FLAT = 1e-12  #: of the mean square: what rounding leaves of the variance of a constant


@dataclass(frozen=True)
class Layer:
    """One layer of one network on a batch: ``[T, B, ...]`` codes with their levels, or an ANN's values.

    ``scale``: what one level is worth in the values of the trained network, in an integer network as well.
    """

    data: Tensor
    levels: Levels | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Reading:
    """Every layer by name, and the outputs ``[T, B, ...]``."""

    layers: Mapping[str, Layer]
    outputs: tuple[Tensor, ...]


def tap(ann: fx.GraphModule, strict: bool) -> fx.GraphModule:
    """The ANN with an open tap wherever ``quantize`` would put a quantizer, under the quantizer's name."""
    tapped = network.fork(ann)
    insert_quantizers(tapped, Levels(0, 1), Levels(-1, 1), strict=strict)
    for node, quantizer in list(network.modules_of(tapped, Quantizer)):
        # A quantizer from 0 upwards stands for the ReLU before it, or behind a function that is never negative.
        tapped.set_submodule(str(node.target), nn.ReLU() if quantizer.levels.lowest == 0 else nn.Identity())
    return tapped


@torch.no_grad()
def read_network(gm: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Reading:
    """What every quantizer (of a QANN) or tap (of an ANN) held."""
    found: dict[str, Layer] = {}
    images = inputs[0].shape[0]
    units = divided_out(gm)

    class Read(fx.Interpreter):
        extra_traceback = False

        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.op == "call_module":
                module, spec = self.fetch_attr(str(n.target)), network.spec(n)
                if isinstance(module, Quantizer):
                    name, drive = str(n.target), self.fetch_args_kwargs_from_env(n)[0][0]
                    codes = images_first(module.codes(drive), spec, images).unsqueeze(0)
                    scale = units.get(name) or float(module.scale.detach())
                    found[name] = Layer(codes, module.levels, scale)
                elif isinstance(module, nn.ReLU | nn.Identity):
                    found[str(n.target)] = Layer(images_first(value, spec, images).unsqueeze(0))
            return value

    with evaluating(gm):
        outputs = outputs_first(gm, Read(gm).run(*inputs), images)
    return Reading(found, tuple(o.unsqueeze(0) for o in outputs))


def read_snn(snn: SpikingNetwork, inputs: tuple[Tensor, ...], steps: int, engine: Engine) -> Reading:
    """Every layer's tracers at every step."""
    seen: dict[str, Tensor] = {}
    images = inputs[0].shape[0]
    kinds = {name: neuron.levels.storage for name, neuron in snn.layers}

    def observe(name: str, t: int, which: Tensor, codes: Tensor) -> None:
        if name not in seen:
            seen[name] = codes.new_zeros((steps, images, *codes.shape[2:]), dtype=kinds[name])
        seen[name][t - 1 : t - 1 + codes.shape[0], which.to(codes.device)] = codes.to(kinds[name])

    run = execute(snn, inputs, steps, engine=engine, batch=images, stop=False, observe=observe)
    units = divided_out(snn.graph)
    layers = {
        name: Layer(seen[name], neuron.levels, units.get(name) or float(neuron.threshold))
        for name, neuron in snn.layers
    }
    return Reading(layers, run.outputs)


def longest(pair: tuple[Any, Any], inputs: tuple[Tensor, ...], engines: tuple[Engine, Engine], batch: int) -> int:
    """Steps until every image has settled in every SNN of the two; 1 if neither is one."""
    return max(
        execute(n, inputs, engine=engine, batch=batch).steps if isinstance(n, SpikingNetwork) else 1
        for n, engine in zip(pair, engines, strict=True)
    )


class Tally:
    """Sums over batches, per layer and step."""

    def __init__(self) -> None:
        self._layers: dict[str, _Sums] = {}
        self._outputs: list[_Sums] = []

    def add(self, a: Reading, b: Reading) -> None:
        """Count one batch of both networks."""
        if len(a.outputs) != len(b.outputs):
            raise StageError(
                f"The networks have {len(a.outputs)} and {len(b.outputs)} outputs; they cannot be compared."
            )
        for name in b.layers:
            if name in a.layers:
                self._layers.setdefault(name, _Sums()).add_layer(a.layers[name], b.layers[name], name)
        self._outputs = self._outputs or [_Sums() for _ in a.outputs]
        for sums, one, two in zip(self._outputs, a.outputs, b.outputs, strict=True):
            sums.add_output(one, two)

    def layer_rows(self) -> list[dict[str, Any]]:
        """The fields of each layer's difference, in order of execution."""
        return [{"name": name, **sums.row()} for name, sums in self._layers.items()]

    def output_rows(self) -> list[dict[str, Any]]:
        """The fields of each output's difference."""
        return [sums.output_row() for sums in self._outputs]


class _Sums:
    """Running sums of two series ``[T, B, ...]``."""

    def __init__(self) -> None:
        self.neurons = self.count = self.images = 0
        self.total: Tensor = torch.zeros(())
        self.most: Tensor = torch.zeros(())

    def add_layer(self, a: Layer, b: Layer, name: str) -> None:
        if a.data.shape[1:] != b.data.shape[1:]:
            raise StageError(
                f"{name!r} has shape {tuple(a.data.shape[2:])} in one network, {tuple(b.data.shape[2:])} in the other."
            )
        self.neurons = a.data[0, 0].numel()
        values = [layer.data.double() * layer.scale for layer in (a, b)]
        grid = b if b.levels is not None else a
        self._add(values[0], values[1], (_codes(a, grid) - _codes(b, grid)).abs())

    def add_output(self, a: Tensor, b: Tensor) -> None:
        several = a.shape[2:].numel() > 1  # of one value the greatest says nothing
        same = a.flatten(2).argmax(-1) == b.flatten(2).argmax(-1) if several else a == b
        self._add(a.double(), b.double(), same.double())

    def _add(self, a: Tensor, b: Tensor, third: Tensor) -> None:
        steps = max(a.shape[0], b.shape[0])
        a, b, third = (x.reshape(x.shape[0], -1).expand(steps, -1) for x in (a, b, third))
        away = (b - a).abs()
        sums = torch.stack([x.sum(1) for x in (away, a.abs(), third != 0, a, b, a * a, b * b, a * b)]).double()
        most = torch.stack([away.amax(1), third.amax(1)]).double()
        self.total = sums if self.count == 0 else self.total + sums
        self.most = most if self.count == 0 else torch.maximum(self.most, most)
        self.count += a.shape[1]
        self.images += third.shape[1]

    def row(self) -> dict[str, Any]:
        mean = self.total / self.count
        return {
            "neurons": self.neurons,
            "l1": tuple(mean[0].tolist()),
            "size": tuple(mean[1].tolist()),
            "maximum": tuple(self.most[0].tolist()),
            "differ": tuple(mean[2].tolist()),
            "levels": tuple(int(x) for x in self.most[1]),
            "correlation": tuple(_correlation(*column) for column in zip(*mean[3:].tolist())),
        }

    def output_row(self) -> dict[str, Any]:
        mean = self.total / self.count
        return {
            "l1": tuple(mean[0].tolist()),
            "maximum": tuple(self.most[0].tolist()),
            "agree": tuple((self.total[2] / self.images).tolist()),
        }


def _codes(layer: Layer, grid: Layer) -> Tensor:
    """The layer's codes; those of its values on the other's grid where it has none, or others."""
    assert grid.levels is not None
    if layer.levels == grid.levels:
        return layer.data.double()
    return grid.levels.codes(layer.data.double() * layer.scale, grid.scale).double()


def _correlation(a: float, b: float, aa: float, bb: float, ab: float) -> float | None:
    variances = aa - a * a, bb - b * b
    if not all(_FLAT * square < variance < math.inf for variance, square in zip(variances, (aa, bb), strict=True)):
        return None
    return max(-1.0, min(1.0, (ab - a * b) / math.sqrt(variances[0]) / math.sqrt(variances[1])))
