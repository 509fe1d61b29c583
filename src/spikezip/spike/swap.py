"""QANN -> SNN: each quantizer becomes a layer of ST-BIF neurons."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, fx

from spikezip.errors import StageError
from spikezip.graph import network, ops
from spikezip.graph.modes import building
from spikezip.graph.network import Spec, Stage
from spikezip.graph.ops import Kind
from spikezip.levels import Levels
from spikezip.morph.fold import refuse_live
from spikezip.quantize.place import Carriers, needs_neuron
from spikezip.quantize.quantizer import Quantizer, check_scales
from spikezip.spike.encoding import Constant, Encoding, Pulse, parse_encoding
from spikezip.spike.neuron import STBIF, check_start, starting_code


@dataclass(frozen=True)
class SpikingNetwork:
    """An SNN as a value: a graph whose neurons are :class:`STBIF` layers, and how signals are handed to it.

    Attributes:
        graph: the SNN; the QANN's own graph with trackers in place of quantizers.
        encoding: shares of the input over time.
        bias_encoding: shares of the biases over time.
    """

    graph: fx.GraphModule
    encoding: Encoding
    bias_encoding: Encoding

    @cached_property
    def layers(self) -> tuple[tuple[str, STBIF], ...]:
        """Name and neurons of each layer, in order of execution."""
        return tuple((str(node.target), module) for node, module in network.modules_of(self.graph, STBIF))

    @cached_property
    def qann(self) -> fx.GraphModule:
        """The QANN this network settles on; ``snn.qann(images)`` gives its outputs."""
        qann = network.fork(self.graph)
        for node, neuron in list(network.modules_of(qann, STBIF)):
            quantizer = Quantizer(neuron.levels).to(neuron.threshold.dtype)
            quantizer.batch_dim = network.spec(node).batch_dim or 0
            quantizer.scale.data.copy_(neuron.threshold)
            quantizer.calibrated.fill_(True)
            qann.set_submodule(str(node.target), quantizer)
        network.remark(qann, stage=Stage.QANN)
        return qann.eval().requires_grad_(False)

    @property
    def slew(self) -> int:
        """Levels per step; 1 for ternary spikes."""
        return max((neuron.slew for _, neuron in self.layers), default=1)

    @cached_property
    def starts_elsewhere(self) -> bool:
        """Whether a tracer of any layer starts at another code than 0."""
        return any(neuron.starts_elsewhere for _, neuron in self.layers)

    @property
    def initial_code(self) -> int | dict[str, Tensor]:
        """Where tracers start, as :func:`spike` takes it."""
        if all(neuron.initial_codes is None for _, neuron in self.layers):
            return max((neuron.initial_code for _, neuron in self.layers), default=0)
        return {
            k: n.initial_codes if n.initial_codes is not None else torch.tensor(n.initial_code, device="cpu")
            for k, n in self.layers
        }

    @cached_property
    def bound(self) -> int:
        """Steps, counted from the end of the release, after which no neuron can fire: along the longest path,
        the sum of ``ceil((highest - lowest) / slew) - 1`` (attained by no typical network). Where all arrives at the
        first step, the first such term on a path counts from the initial code."""
        return self._longest(from_start=self.t_off(2) == 1)

    @cached_property
    def bound_from_anywhere(self) -> int:
        """The same where tracers may start at any code, as those of a run before do."""
        return self._longest(from_start=False)

    def _longest(self, from_start: bool) -> int:
        longest: dict[fx.Node, int] = {}
        for node in self.graph.graph.nodes:
            here = max((longest[n] for n in node.all_input_nodes), default=0)
            if node.op == "call_module" and isinstance(neuron := self.graph.get_submodule(str(node.target)), STBIF):
                here += neuron.settling_steps(from_start=from_start and here == 0) - 1
            longest[node] = here
        return max(longest.values(), default=0)

    def __copy__(self) -> Self:
        return replace(self)

    def __deepcopy__(self, memo: Any) -> Self:
        values = {f.name: copy.deepcopy(getattr(self, f.name), memo) for f in fields(self)}
        return replace(self, **values)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise StageError(
            "An SNN cannot be pickled, by torch.save() or to another process: torch pickles a graph without what is "
            "known of its nodes. Use snn.save(path) and spikezip.load(path)."
        )

    def t_off(self, steps: int) -> int:
        """The first step at which input and biases are complete."""
        return max(self.encoding.t_off(steps), self.bias_encoding.t_off(steps))

    @property
    def lasts(self) -> bool:
        """Whether input or biases arrive for as long as a run lasts, so that it must be said how long that is."""
        return isinstance(self.encoding, Constant) or isinstance(self.bias_encoding, Constant)


@building()
def spike(
    qann: fx.GraphModule,
    encoding: Encoding = Pulse(),
    *,
    bias_encoding: Encoding | None = None,
    slew: int = 1,
    initial_code: int | Mapping[str, Tensor] | None = None,
) -> SpikingNetwork:
    """Turn every quantizer into a layer of ST-BIF neurons.

    Args:
        qann: a calibrated (and perhaps fine-tuned) QANN.
        encoding: how the input is released over time.
        bias_encoding: how biases are; if not given, as was learned (:class:`~spikezip.train.Trajectory`), or as the
            input.
        slew: levels a neuron may move per step (1: the paper's ternary spikes).
        initial_code: where tracers start, in layers without negative codes. What they then stand for is a constant,
            held by the membranes that read it from the start; only what leaves it is sent. Or each neuron's own, by
            layer (:func:`~spikezip.measure.mean_codes`). If not given, as was trained
            (:class:`~spikezip.train.Trajectory`), or 0, the paper's.

    Returns:
        The SNN; the QANN is not changed.

    Raises:
        StageError: a quantizer is uncalibrated or has a scale that is not positive; an activation or, in a strict
            network, an analog operand is left where only spikes may be; an encoding is none; or an initial code is none
            of the network's.
    """
    network.expect(qann, Stage.QANN, "spike")
    for given in (encoding, *([] if bias_encoding is None else [bias_encoding])):
        if not _is_encoding(given):
            raise StageError(
                f"{given!r} is no encoding; give Pulse(), Even(8), Shares(...) or Constant() (parse_encoding() reads "
                "text), or a value of your own with name, share and t_off."
            )
    check_qann(qann)
    graph = network.fork(qann)
    code = network.note(qann, "initial_code", 0) if initial_code is None else initial_code
    if not isinstance(code, Mapping):
        check_start(code, (quantizer.levels for _, quantizer in network.modules_of(qann, Quantizer)))
    for node, quantizer in list(network.modules_of(graph, Quantizer)):
        neuron = STBIF(quantizer.levels, quantizer.scale, slew, _initial(code, node, quantizer.levels))
        graph.set_submodule(str(node.target), neuron)
    network.remark(graph, stage=Stage.SNN)
    if isinstance(code, int) and code != network.note(qann, "initial_code", 0):
        network.remark(graph, initial_code=code)
    graph.eval().requires_grad_(False)
    learned = network.note(qann, "bias_shares")
    return SpikingNetwork(graph, encoding, bias_encoding or (parse_encoding(learned) if learned else encoding))


def expect_snn(given: Any) -> None:
    """StageError unless it is an SNN."""
    if not isinstance(given, SpikingNetwork):
        raise StageError(f"This is no SNN, but a {type(given).__name__}. Call spike() on a QANN, or convert().")


def _is_encoding(given: Any) -> bool:
    """Whether it is a value with all that an encoding has."""
    own = isinstance(given, Encoding) and not isinstance(given, type)
    return own and callable(given.share) and callable(given.t_off)


def _initial(code: Any, node: fx.Node, levels: Levels) -> int | Tensor:
    """Where the tracers of one layer start."""
    if not isinstance(code, Mapping):
        return starting_code(levels, code)
    name = str(node.target)
    if not isinstance(codes := code.get(name), Tensor):
        raise StageError(f"The initial codes have none for layer {name!r}. Call mean_codes() on this very network.")
    shape = tracer_shape(network.spec(node))
    if codes.dim() and codes.shape != shape:
        raise StageError(
            f"The initial codes of layer {name!r} are {tuple(codes.shape)}, its tracers of one sample {tuple(shape)}. "
            "Call mean_codes() on this very network."
        )
    if not codes.dim() and float(codes) != int(codes):
        raise StageError(f"The initial code of layer {name!r} is {float(codes)}: tracers hold whole numbers.")
    return codes if codes.dim() else int(codes)


def tracer_shape(spec: Spec) -> torch.Size:
    """Shape of a layer's tracers of one sample."""
    dim = spec.batch_dim or 0
    shape = torch.Size([*spec.shape[:dim], *spec.shape[dim + 1 :]])
    return shape if spec.shape[dim] == 1 else torch.Size([spec.shape[dim], *shape])


def _returned(qann: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values the network returns, as they are or rounded, converted and scaled."""
    found, todo = set(), list(network.outputs(qann))
    while todo:
        node = todo.pop()
        found.add(node)
        rounds = node.op == "call_module" and not isinstance(qann.get_submodule(str(node.target)), Quantizer)
        if rounds or (node.op == "call_function" and (ops.kind(node) is Kind.SCALE or network.op_name(node) == "to")):
            todo.extend(ops.data_operands(node))
    return found


def check_qann(qann: fx.GraphModule) -> None:
    """The contract of a QANN: raise StageError naming the node that breaks it and the call that mends it."""
    refuse_live(qann, "spike")
    check_scales(qann)
    if not any(network.modules_of(qann, Quantizer)):
        raise StageError(
            "This network has no quantizer, so no neuron can be placed. A neuron stands where a layer with weights "
            "reads an activation, as in Linear, ReLU, Linear; one at the outputs alone needs none. If there are such "
            "layers, call quantize() before spike()."
        )
    returned = _returned(qann)
    for node in qann.graph.nodes:
        if node.op == "call_function" and "spec" in node.meta and ops.kind(node) is Kind.RECTIFIER:
            if node not in returned and not ops.is_constant(node):
                raise StageError(
                    f"{network.describe(node)} is a ReLU; an SNN may hold only trackers. "
                    "Call quantize() before spike()."
                )
    if network.note(qann, "strict", True) and (missing := needs_neuron(qann, Carriers(qann, Quantizer))):
        source, reader = missing[0]
        raise StageError(
            f"{network.describe(reader)} would receive the analog value of {network.describe(source)}, not spikes. "
            "Call quantize(..., strict=True) to put a neuron there."
        )
