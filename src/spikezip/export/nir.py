"""SNN -> NIR, the Neuromorphic Intermediate Representation, without a spike of difference.

NIR 1.0 has no neuron with negative spikes, a soft reset or a limit on how often it has fired. It has integrators,
thresholds and edges that lead back, and of these an ST-BIF layer can be put together. What passes between layers is
-1, 0 or +1; weights are those of the integer network. The nodes of a layer ``L``, with ``c`` what its neurons have
received of biases and initial codes before anything happens, less ``S_0``, and ``[x]`` for 1 where ``x`` holds::

    L_membrane    I           v = sum of all currents - sum of L's spikes before this step
    L_tracer      I           S - S_0: the sum of L's spikes before this step
    L_above       Threshold   [v + c >= 1/2]           L_below      Threshold   [v + c < -1/2]
    L_room_up     Threshold   [S < highest]            L_room_down  Threshold   [S > lowest]
    L_up          Threshold   L_above and L_room_up    L_down       Threshold   L_below and L_room_down
    L             Scale       L_up - L_down, the layer's spikes
    L_reset       Scale       -L, back to L_membrane

in units of the threshold, which is 1 in an integer network; in another ``1/2`` is ``theta/2``, and ``L_reset`` and
what reads ``L`` have ``theta`` as a factor.

How it is to be read, as NIR leaves it open:

- time goes in steps; at each, every node is computed once, from the values of the same step;
- of an edge that closes a circle, the value of the step before is taken (0 at first); those end in ``I`` nodes;
- ``I`` adds up what it is given, this step's too; ``Threshold`` gives 1 above its threshold, and no value lies on one;
- several edges into one node are added.

:func:`play` reads a graph so, and knows nothing of spikezip's networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from spikezip.errors import InputError, OutputError, StageError
from spikezip.export.nir_play import play
from spikezip.graph import network, ops
from spikezip.quantize.averages import spell_averages
from spikezip.quantize.grid import FixedPoint, Grids, InputGrid
from spikezip.run.reference import reference
from spikezip.run.rules import Rule, rules
from spikezip.run.step import at_share, images_back
from spikezip.spike.neuron import STBIF
from spikezip.spike.swap import SpikingNetwork, spike
from spikezip.version import __version__

if TYPE_CHECKING:
    import nir

_BOTH = 1.5  #: the threshold of "and"


def to_nir(snn: SpikingNetwork, *, exact: bool = True) -> nir.NIRGraph:
    """Write a spiking network as a NIR graph, which spikes as it does at every step.

    Args:
        snn: an integer network (``weight_bits``) of ternary spikes whose biases arrive at the first step. Its layers
            are convolutions along lines and planes and linear layers, with sums, constant factors, average pooling (as
            sums) and flattening between them. Max-pooling, and what else is a function of accumulated values, has no
            node in NIR.
        exact: refuse a network of which a spike could differ. If not, one with float weights is written too, and one
            that rounds sums to fixed point between its layers (MS blocks), without that rounding: a few spikes of a
            layer then differ, and more of each layer behind it (:func:`compare` counts them).

    Returns:
        The graph, in float32 and float64; :func:`currents` makes its input. ``metadata`` of a layer's node names the
        layer and its codes; ``metadata`` of the graph says what made it, and how inputs are rounded.

    Raises:
        StageError: the network cannot be written exactly; the node is named.
        OutputError: the package ``nir`` is not installed.

    Source: the nodes are those of Pedersen et al., "Neuromorphic intermediate representation", Nature Communications
        2024; the neuron is You et al., ICML 2024, eq. 5-8.
    """
    nir = needed()
    if exact and not network.note(snn.graph, "weight_bits"):
        raise StageError(
            "Its weights are floats, whose sums are rounded in another order elsewhere. Convert with weight_bits=8, "
            "call snn.to_integer(), or give exact=False."
        )
    if snn.bias_encoding.t_off(1) > 1 or snn.bias_encoding.share(1, 1) < 1:
        raise StageError(
            f"Biases are released by {snn.bias_encoding}, and in NIR they are part of thresholds, there from the "
            "start. Give spike() or convert() bias_encoding=Pulse()."
        )
    snn = _on_cpu(snn)
    if not network.note(snn.graph, "weight_bits"):
        snn = _with_sums(snn)
    writer = _Writer(nir, snn, exact)
    for node in snn.graph.graph.nodes:
        if node.op != "output":
            writer.add(node)
    return writer.graph()


def currents(snn: SpikingNetwork, inputs: Tensor | Sequence[Tensor], steps: int) -> tuple[Tensor, ...]:
    """What the ``Input`` nodes of :func:`to_nir`'s graph get at each step: what the rounded input grows by.

    Args:
        snn: the network that was exported.
        inputs: its inputs, ``[B, ...]`` each.
        steps: how many steps.

    Returns:
        ``[steps, B, ...]`` in float64, one of each input.
    """
    snn, given = _on_cpu(snn), _all_on_cpu(inputs)
    places = [node for node in snn.graph.graph.nodes if node.op == "placeholder"]
    if len(given) != len(places):
        raise InputError(f"The network takes {len(places)} inputs, not {len(given)}.")
    found = []
    for place, x in zip(places, given, strict=True):
        grid = _grid_of(snn.graph, place) or torch.nn.Identity()
        released = [grid(snn.encoding.share(t, steps) * x).double() for t in range(1, steps + 1)]
        found.append(torch.stack(released).diff(dim=0, prepend=torch.zeros_like(released[0])[None]))
    return tuple(found)


@dataclass(frozen=True)
class Played:
    """What became of a network in NIR.

    Attributes:
        steps: how many were played.
        spikes: of the network, of all inputs.
        differing: of all neurons and steps, in how many the graph's spike was another.
        far: how far the graph's answers, in the network's type, were from the network's at any step, at most.
    """

    steps: int
    spikes: int
    differing: int
    far: float

    @property
    def equal(self) -> bool:
        """Whether nothing differed."""
        return self.differing == 0 and self.far == 0.0


def compare(
    snn: SpikingNetwork, graph: nir.NIRGraph, inputs: Tensor | Sequence[Tensor], steps: int | None = None
) -> Played:
    """Play a graph that :func:`to_nir` made, and hold it against the reference engine: every spike, every answer.

    Args:
        snn: the network that was exported.
        graph: as it was made, or as ``nir.read`` read it from a file.
        inputs: the network's inputs, ``[B, ...]`` each.
        steps: how many; by default until all inputs have settled.

    Raises:
        InputError: the encoding is a constant one, and ``steps`` is not given.
    """
    snn, given = _on_cpu(snn), _all_on_cpu(inputs)
    told: dict[str, list[Tensor]] = {name: [] for name, _ in snn.layers}

    def tell(layer: str, t: int, rows: Tensor, codes: Tensor) -> None:
        told[layer].append(codes[0].double())

    if steps is None and snn.lasts:
        raise InputError("A constant encoding lasts as long as the run. Give steps.")
    most = steps or snn.t_off(1) + snn.bound
    run = reference(snn, given, most, stop=steps is None, observe=tell)
    layers = {name: node.metadata["layer"] for name, node in graph.nodes.items() if "layer" in node.metadata}
    before = {name: neuron.start(told[name][0]) for name, neuron in snn.layers}
    wrong = 0

    def watch(name: str, t: int, spikes: Tensor) -> None:
        nonlocal wrong
        if layer := layers.get(name):
            now = told[layer][t - 1]
            wrong += int((spikes != now - before[layer]).sum())
            before[layer] = now

    made = len(run.outputs[0])
    answers = play(graph, [each[:made] for each in currents(snn, given, most)], watch)
    far = max(float((a.to(b.dtype) - b).abs().max()) for a, b in zip(answers, run.outputs, strict=True))
    return Played(made, sum(int(each.sum()) for each in run.spikes.values()), wrong, far)


def needed() -> Any:
    """The package ``nir``; OutputError, which says how to get it, where it is not installed."""
    try:
        import nir
    except ImportError as reason:
        raise OutputError("NIR is not installed. Run: pip install 'spikezip[nir]'.") from reason
    return nir


class _Writer:
    """Node by node. A stream is a tuple of NIR nodes whose outputs add up to it; a constant one is empty."""

    def __init__(self, nir: Any, snn: SpikingNetwork, exact: bool):
        self.nir, self.snn, self.gm, self.exact = nir, snn, snn.graph, exact
        self.rules = rules(snn, 1, exact=exact).of
        self.before = _Before(snn)
        self.before.run(*(torch.zeros(1, *i.shape, dtype=i.dtype) for i in network.info(self.gm).inputs))
        grids = Grids(snn.qann)
        self.grids = {n.name: grids.get(n) for n in snn.qann.graph.nodes}
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.streams: dict[fx.Node, tuple[str, ...]] = {}

    def add(self, node: fx.Node) -> None:
        rule = self.rules[node]
        if rule is Rule.INPUT:
            shape = np.array(_shape(node))
            self.streams[node] = (self._node(_name(node), self.nir.Input({"input": shape})),)
        elif rule in (Rule.SIZE, Rule.CONSTANT):
            self.streams[node] = ()
        elif rule is Rule.MEMBRANE:
            self.streams[node] = self._neurons(node)
        elif node.op == "call_module" and self._rounds(node):
            self.streams[node] = self.streams[node.all_input_nodes[0]]
        elif rule is Rule.LINEAR:
            self.streams[node] = self._linear(node)
        elif _is_last_cast(node):
            self.streams[node] = self.streams[node.all_input_nodes[0]]
        else:
            raise self._no_sum(node)

    def graph(self) -> Any:
        """The whole, with its outputs."""
        for number, node in enumerate(network.outputs(self.gm)):
            name = f"output{number}" if number else "output"
            shape = _shape(node)
            if len(shape) != 1:
                raise _refused(node, f"the network returns it, of shape {list(shape)}; vectors alone can be")
            if network.spec(node).batch_dim != 0:
                raise _refused(node, "its first dimension is not the batch")
            total = self._node(f"{name}_total", self.nir.I(np.ones(shape, np.float32)), self.streams[node])
            whole = node.all_input_nodes[0] if _is_last_cast(node) else node
            start = self.before.found[whole].double().reshape(shape).numpy()
            answer = self._node(f"{name}_answer", self.nir.Affine(np.eye(shape[0]), start), (total,))
            self._node(name, self.nir.Output({"output": np.array(shape)}), (answer,))
        about = {"made_by": f"spikezip {__version__}", "weight_bits": network.note(self.gm, "weight_bits") or 32}
        for node in self.gm.graph.nodes:
            if node.op == "placeholder" and (grid := _grid_of(self.gm, node)) is not None:
                about |= {f"{_name(node)}_steps_per_unit": 2**grid.exponent, f"{_name(node)}_most_steps": grid.limit}
        # Numbered, as files list nodes by name, and some readers compute them in that order.
        digits = len(str(len(self.nodes)))
        numbered = {name: f"n{number:0{digits}d}_{name}" for number, name in enumerate(self.nodes)}
        return self.nir.NIRGraph(
            {numbered[name]: node for name, node in self.nodes.items()},
            [(numbered[source], numbered[target]) for source, target in self.edges],
            metadata=about,
        )

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _node(self, name: str, node: Any, sources: Sequence[str] = ()) -> str:
        while name in self.nodes:
            name += "_"
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name

    def _scaled(self, name: str, factor: Any, shape: tuple[int, ...], sources: Sequence[str]) -> tuple[str, ...]:
        values = np.array(np.broadcast_to(np.asarray(factor, np.float64), shape))
        return (self._node(name, self.nir.Scale(values), sources),)

    def _rounds(self, node: fx.Node) -> bool:
        """Whether a module only rounds: the input, which ``currents`` does, or what need not be exact."""
        module = self.gm.get_submodule(str(node.target))
        of_input = isinstance(module, InputGrid) and self.rules[node.all_input_nodes[0]] is Rule.INPUT
        return of_input or (isinstance(module, FixedPoint) and not self.exact)

    def _no_sum(self, node: fx.Node) -> StageError:
        if self.exact and rules(self.snn, 1, exact=False).of[node] is not Rule.DIFFERENCE:
            return _refused(node, "sums that reach it have more digits than float64, and are rounded; give exact=False")
        why = "what it gives is no sum of what reaches it"
        pools = network.op_name(node).startswith("max_pool")
        return _refused(node, why + "; convert with Morph(pooling=Pooling.AVERAGE), or --pool average" * pools)

    def _neurons(self, node: fx.Node) -> tuple[str, ...]:
        neuron = self.gm.get_submodule(str(node.target))
        assert isinstance(neuron, STBIF)
        if neuron.slew != 1:
            raise _refused(node, f"its neurons move by up to {neuron.slew} levels a step, which is no ternary spike")
        if network.spec(node).batch_dim != 0:
            raise _refused(node, "its first dimension is not the batch")
        nir, name, shape = self.nir, _name(node), _shape(node)
        drive = node.all_input_nodes[0]
        if not self.streams[drive]:
            raise _refused(node, "nothing that changes reaches it")
        theta, codes = float(neuron.threshold), self.before.codes[node].reshape(shape).numpy()
        start = self.before.found[drive].double().reshape(shape).numpy() - theta * codes
        above, below = np.nextafter(theta / 2 - start, -np.inf), theta / 2 + start
        grid = self.grids[drive.name]
        if grid is not None:  # halfway between the values that there are
            fine = 2.0 ** float(grid.exponent.max())
            above = (np.ceil((theta / 2 - start) * fine) - 0.5) / fine
            below = (np.floor((theta / 2 + start) * fine) + 0.5) / fine

        def threshold(part: str, value: Any, *sources: str) -> str:
            values = np.array(np.broadcast_to(np.asarray(value, np.float64), shape))
            return self._node(f"{name}_{part}", nir.Threshold(values), sources)

        def times(part: str, factor: float, source: str) -> str:
            return self._scaled(f"{name}_{part}", factor, shape, (source,))[0]

        ones = np.ones(shape, np.float32)
        membrane = self._node(f"{name}_membrane", nir.I(ones), self.streams[drive])
        tracer = self._node(f"{name}_tracer", nir.I(ones))
        up = threshold(
            "up",
            _BOTH,
            threshold("above", above, membrane),
            threshold("room_up", codes - neuron.levels.highest + 0.5, times("minus_tracer", -1.0, tracer)),
        )
        down = threshold(
            "down",
            _BOTH,
            threshold("below", below, times("minus_membrane", -1.0, membrane)),
            threshold("room_down", neuron.levels.lowest - codes + 0.5, tracer),
        )
        minus = times("minus_down", -1.0, down)
        about = {"layer": str(node.target), "lowest": neuron.levels.lowest, "highest": neuron.levels.highest}
        spikes = self._node(name, nir.Scale(ones.astype(np.float64), metadata=about), (up, minus))
        self.edges += [(up, tracer), (minus, tracer), (times("reset", -theta, spikes), membrane)]
        return (spikes if theta == 1.0 else times("value", theta, spikes),)

    def _linear(self, node: fx.Node) -> tuple[str, ...]:
        op = network.op_name(node)
        make = _MAKERS.get(op)
        if make is None:
            raise _refused(node, "NIR has no node for it")
        if any(network.spec(n).batch_dim != 0 for n in (node, *self._moving(node))):
            raise _refused(node, "the batch is not its first dimension")
        return make(self, node)

    def _moving(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in node.all_input_nodes if self.streams[n]]

    # -- operations ----------------------------------------------------------------------------------------------------

    def convolution(self, node: fx.Node) -> tuple[str, ...]:
        weight = _stored(node, ops.weight_of(node))
        dims = weight.ndim - 2
        stride, padding, dilation, groups = ops.geometry(node, dims)
        (read,) = self._moving(node)
        size = _shape(read)[-dims:]
        # nir (1.0.8) takes windows for square: zeros at both ends of the shorter side.
        short = [max(weight.shape[2:]) - side for side in weight.shape[2:]]
        if any(side % 2 for side in short):
            raise _refused(node, f"its windows, {list(weight.shape[2:])}, are no squares and cannot be made such")
        weight = np.pad(weight, ((0, 0), (0, 0), *((side // 2, side // 2) for side in short)))
        padding = [p + d * side // 2 for p, d, side in zip(padding, dilation, short, strict=True)]
        kind = {1: self.nir.Conv1d, 2: self.nir.Conv2d}[dims]
        shape, *places = (each[0] if dims == 1 else tuple(each) for each in (size, stride, padding, dilation))
        weight = _dense(weight, groups)
        layer = kind(shape, weight, *places, 1, np.zeros(weight.shape[0], weight.dtype))
        return (self._node(f"{_name(node)}_synapses", layer, self.streams[read]),)

    def linear(self, node: fx.Node) -> tuple[str, ...]:
        if len(_shape(node)) != 1:
            raise _refused(node, f"it is a linear layer of {list(_shape(node))}, and NIR's are of vectors")
        (read,) = self._moving(node)
        weight = _stored(node, ops.weight_of(node))
        if network.op_name(node) != "linear":
            weight = np.ascontiguousarray(weight.T)
        return (self._node(f"{_name(node)}_synapses", self.nir.Linear(weight), self.streams[read]),)

    def sum(self, node: fx.Node) -> tuple[str, ...]:
        first, second = node.args[0], node.args[1]
        scaled = float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
        signs = {"add": (1.0, scaled), "sub": (1.0, -scaled), "rsub": (-scaled, 1.0)}[network.op_name(node)]
        found: list[str] = []
        for operand, factor in zip((first, second), signs, strict=True):
            if not isinstance(operand, fx.Node) or not self.streams[operand]:
                continue
            if _shape(operand) != _shape(node):
                raise _refused(node, "one of its operands is spread over the other's shape")
            part = self.streams[operand]
            if factor != 1.0 or set(part) & set(found):
                part = self._scaled(f"{_name(node)}_{node.name}", factor, _shape(node), part)
            found += part
        return tuple(found)

    def scale(self, node: fx.Node) -> tuple[str, ...]:
        (read,) = self._moving(node)
        if _shape(read) != _shape(node):
            raise _refused(node, "its operand is spread over a greater shape")
        name = network.op_name(node)
        if name == "neg":
            return self._scaled(f"{_name(node)}_{node.name}", -1.0, _shape(node), self.streams[read])
        other = node.args[1] if node.args[0] is read else node.args[0]
        value = _stored(node, other) if isinstance(other, fx.Node) else other
        factor = np.asarray(value, np.float64)
        if name == "div":
            factor = 1.0 / factor
        if factor.ndim == len(_shape(node)) + 1:
            factor = factor[0]
        return self._scaled(f"{_name(node)}_{node.name}", factor, _shape(node), self.streams[read])

    def pool(self, node: fx.Node) -> tuple[str, ...]:
        given: list[Any] = [*node.args[1:], *[None] * 6]
        size = ops.of_each_dim(given[0])
        stride = ops.of_each_dim(given[1]) if given[1] else size
        padding = ops.of_each_dim(given[2] or [0, 0])
        if given[3] or given[5] != 1:  # ceil_mode; an integer network's averages are sums
            raise _refused(node, "its windows differ in size")
        return self._window(node, size, stride, padding)

    def total(self, node: fx.Node) -> tuple[str, ...]:
        (read,) = self._moving(node)
        shape = _shape(read)
        dims = sorted(d % (len(shape) + 1) for d in node.args[1])  # type: ignore[union-attr]
        if len(shape) == 2 and dims == [2]:
            window = np.tile(np.eye(shape[0], dtype=np.float32)[:, :, None], shape[1])
            layer = self.nir.Conv1d(shape[1], window, 1, 0, 1, 1, np.zeros(shape[0], np.float32))
            summed = (self._node(f"{_name(node)}_{node.name}", layer, self.streams[read]),)
        elif len(shape) == 3 and dims == [2, 3]:
            summed = self._window(node, shape[1:], shape[1:], (0, 0))
        else:
            raise _refused(node, f"it adds up dimensions {dims} of [B, *{list(shape)}], not all of a line or a plane")
        ends = (shape[0], *[1] * (len(shape) - 1))
        return summed if _shape(node) == ends else self._flat(ends, node, summed)

    def shaped(self, node: fx.Node) -> tuple[str, ...]:
        (read,) = self._moving(node)
        before, after = _shape(read), _shape(node)
        if before == after:
            return self.streams[read]
        if len(after) != 1 or math.prod(before) != after[0]:
            raise _refused(node, f"it makes {list(after)} of {list(before)}, and NIR can flatten alone")
        return self._flat(before, node, self.streams[read])

    def strided(self, node: fx.Node) -> tuple[str, ...]:
        (read,) = self._moving(node)
        given: list[Any] = [*node.args[1:], *[None] * 4]
        dim, start, end, step = given[0] or 0, given[1] or 0, given[2], given[3] or 1
        shape = _shape(read)
        if len(shape) != 3 or dim not in (2, 3) or start or (end is not None and end < shape[dim - 1]):
            raise _refused(node, "it cuts out a part, and NIR can leave out lines and columns at a stride alone")
        return self._moved(node, (step, 1) if dim == 2 else (1, step), (0, 0), (0, 0))

    def padded(self, node: fx.Node) -> tuple[str, ...]:
        (read,) = self._moving(node)
        ends: list[int] = [*node.args[1], *[0] * 6][:6]  # type: ignore[misc]
        shape = _shape(read)
        even = ends[0] == ends[1] and ends[2] == ends[3]
        if len(shape) != 3 or not even or min(ends) < 0 or len(node.args[1]) > 6:  # type: ignore[arg-type]
            raise _refused(node, "NIR pads planes alone, by as much on either side")
        return self._moved(node, (1, 1), (ends[2], ends[0]), (ends[4], ends[5]))

    def _moved(
        self, node: fx.Node, stride: tuple[int, int], padding: tuple[int, int], more: tuple[int, int]
    ) -> tuple[str, ...]:
        """Values moved about by a convolution of windows of one place, with ``more`` channels of zeros at its ends."""
        (read,) = self._moving(node)
        shape = _shape(read)
        weight = np.pad(np.eye(shape[0], dtype=np.float32), (more, (0, 0)))[:, :, None, None]
        layer = self.nir.Conv2d(shape[1:], weight, stride, padding, (1, 1), 1, np.zeros(len(weight), np.float32))
        return (self._node(f"{_name(node)}_{node.name}", layer, self.streams[read]),)

    def _window(self, node: fx.Node, *window: Sequence[int]) -> tuple[str, ...]:
        (read,) = self._moving(node)
        pool = self.nir.SumPool2d(*(np.array(each) for each in window))
        return (self._node(f"{_name(node)}_{node.name}", pool, self.streams[read]),)

    def _flat(self, shape: tuple[int, ...], node: fx.Node, sources: Sequence[str]) -> tuple[str, ...]:
        flat = self.nir.Flatten({"input": np.array(shape)}, 0, -1)
        return (self._node(f"{_name(node)}_{node.name}_flat", flat, sources),)


_MAKERS: dict[str, Callable[[_Writer, fx.Node], tuple[str, ...]]] = {
    **dict.fromkeys(("conv1d", "conv2d"), _Writer.convolution),
    **dict.fromkeys(("linear", "addmm", "mm"), _Writer.linear),
    **dict.fromkeys(("add", "sub", "rsub"), _Writer.sum),
    **dict.fromkeys(("mul", "div", "neg"), _Writer.scale),
    "avg_pool2d": _Writer.pool,
    "sum": _Writer.total,
    "slice": _Writer.strided,
    **dict.fromkeys(("pad", "constant_pad_nd"), _Writer.padded),
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "squeeze", "unsqueeze", "to", "_to_copy", "contiguous", "clone"),
        _Writer.shaped,
    ),
}


class _Before(fx.Interpreter):
    """What every node holds before anything happens: no input, all of the biases, tracers where they start."""

    def __init__(self, snn: SpikingNetwork):
        super().__init__(snn.graph)
        self.extra_traceback = False
        self.found: dict[fx.Node, Any] = {}
        self.codes: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        with torch.no_grad():
            if n.op == "call_function":
                args, kwargs = self.fetch_args_kwargs_from_env(n)
                value = at_share(n, args, 1.0, kwargs)
            elif n.op == "call_module" and isinstance(neuron := self.fetch_attr(str(n.target)), STBIF):
                drive = self.fetch_args_kwargs_from_env(n)[0][0]
                self.codes[n] = neuron.start(drive).double()
                value = images_back(neuron.start(drive) * neuron.threshold, network.spec(n))
            else:
                value = super().run_node(n)
        self.found[n] = value
        return value


def _on_cpu(snn: SpikingNetwork) -> SpikingNetwork:
    return replace(snn, graph=network.fork(snn.graph).cpu())


def _with_sums(snn: SpikingNetwork) -> SpikingNetwork:
    """The network with its averages as sums and factors, as an integer network has them."""
    qann = network.fork(snn.qann)
    spell_averages(qann)
    start = snn.initial_code
    return spike(qann, snn.encoding, bias_encoding=snn.bias_encoding, slew=snn.slew, initial_code=start)


def _all_on_cpu(inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.cpu() for x in ((inputs,) if isinstance(inputs, Tensor) else inputs))


def _grid_of(gm: fx.GraphModule, place: fx.Node) -> InputGrid | None:
    """What rounds an input; None in a network of float weights."""
    readers = [gm.get_submodule(str(user.target)) for user in place.users if user.op == "call_module"]
    return next((each for each in readers if isinstance(each, InputGrid)), None)


def _stored(node: fx.Node, operand: Any) -> np.ndarray:
    value = network.constant(operand)
    if value is None:
        raise _refused(node, "its weight or factor is computed, not stored")
    return value.detach().numpy()


def _dense(weight: np.ndarray, groups: int) -> np.ndarray:
    """The weights of a grouped layer with zeros between the groups: nir (1.0.8) takes its input for one group's."""
    if groups == 1:
        return weight
    parts, inner = weight.reshape(groups, -1, *weight.shape[1:]), weight.shape[1]
    whole = np.zeros((groups, parts.shape[1], groups * inner, *weight.shape[2:]), weight.dtype)
    for g in range(groups):
        whole[g, :, g * inner : (g + 1) * inner] = parts[g]
    return whole.reshape(-1, *whole.shape[2:])


def _is_last_cast(node: fx.Node) -> bool:
    """Whether a node hands an answer out in another type: its digits are kept until then."""
    return network.op_name(node) in ("to", "_to_copy") and all(user.op == "output" for user in node.users)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(network.spec(node).shape[1:])


def _name(node: fx.Node) -> str:
    name = str(node.target) if node.op == "call_module" else network.origin(node) or node.name
    return name.replace(".", "_")


def _refused(node: fx.Node, why: str) -> StageError:
    return StageError(f"{network.describe(node)} cannot be written as NIR: {why}.")
