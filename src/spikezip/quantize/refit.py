"""Weights that make up for what quantization loses, fitted layer by layer, without labels."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from spikezip.graph import network, ops
from spikezip.quantize.quantizer import Quantizer
from spikezip.quantize.windows import Windows

_aten = torch.ops.aten
_ITERATIONS = 10  #: of conjugate gradients at most
_JUDGED = (1, 2, 3, 5, 7, 10)  #: after which of them the held-out images are asked
_ROWS = 30  #: equations for each unknown of an output channel; more images change little
_PART = 64  #: images of a part at most
_JUDGES = 4  #: one of so many chunks is not fitted, but judges the fit
_RARE = 1e-3  #: of the mean square of all inputs: what is less for a single one is taken for this

_Values = list[Tensor]  #: of a layer's weight and bias
_T = TypeVar("_T")


class Refit:
    """Refits weights and biases, so that each layer gives on quantized inputs what it gives in the ANN on exact ones.

    Before the scale behind a layer is chosen, its weights move so as to lessen::

        sum over images of |f(a) - f(W x + b + r)|^2

    ``a`` is the ANN's value, ``x`` what the quantized layers before hand over, ``r`` the other operand of a residual
    sum, so that the layer makes up for that too; ``f`` is the ReLU that the neurons behind contain, if they do: what it
    hides need not fit. Where the sum comes behind the neurons (RCR), it is ``|f(a - r) - f(W x + b)|^2``.

    Conjugate gradients, preconditioned by the mean squares of the inputs, go down the quadratic function that bounds
    this sum from above; of their iterates the best counts on a quarter of the images that is left out of the fit.

    Args:
        ann: the network that was quantized, or what it was before it was morphed.
        qann: the one with quantizers, whose nodes say which of ``ann`` they were (``graph.network.stamp``); its layers
            are refitted in place.
        chunks: calibration data, as tuples of inputs, in four parts or more (:func:`divided`).
        weights: where a value holds several readings in its batch (time steps), how much each counts in the sum.

    Source: Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection", TPAMI 2016,
    section 3.3: least squares on the inputs that compressed layers give, through the ReLU. Departs: conjugate
    gradients, so that whatever is linear in its weights is fitted alike, judged by held-out images.
    """

    def __init__(
        self,
        ann: fx.GraphModule,
        qann: fx.GraphModule,
        chunks: Sequence[tuple[Tensor, ...]],
        weights: Sequence[float] = (1.0,),
    ):
        self._weights = tuple(weights)
        known = {n.name: n for n in ann.graph.nodes}
        self._layers: dict[fx.Node, list[_Layer]] = {}
        for layer in _layers(qann):
            if _alike(known.get(layer.name), layer.place):
                self._layers.setdefault(layer.node, []).append(layer)
        self._anns = [_Along(ann, chunk) for chunk in chunks]
        self._keep()

    def operands(self, node: fx.Node) -> set[fx.Node]:
        """What :meth:`apply` can make use of beside the operands of a layer."""
        return {n for way in self._layers.get(node, []) for n in way.needs}

    def apply(self, node: fx.Node, environments: Sequence[dict[fx.Node, Any]]) -> None:
        """Refit one layer, in place, before it is run; ``environments`` hold its operands, one for each chunk."""
        ways = self._layers.pop(node, [])
        layer = next((way for way in ways if way.needs <= environments[0].keys()), None)
        if layer is None:
            return
        chunks = [_Chunk(layer, *both, self._weights) for both in zip(environments, self._anns, strict=True)]
        fitted, judging = parted(chunks)
        fitted = enough(fitted, chunks[0].wanted.numel() // layer.channels, layer.unknowns)
        judging = spread(judging, len(fitted))
        if not judging:
            return  # so few images prove nothing
        start = [stored.detach().clone() for stored in layer.stored.values()]
        best, least = start, sum(c.error(start) for c in judging)
        for values in _descent(fitted, start):
            if (error := sum(c.error(values) for c in judging)) < least:
                best, least = values, error
        for stored, value in zip(layer.stored.values(), best, strict=True):
            stored.data.copy_(value)
        self._keep()

    def _keep(self) -> None:
        names = {layer.name for ways in self._layers.values() for layer in ways}
        for ann in self._anns:
            ann.keep(names)


@dataclass(frozen=True)
class _Layer:
    """A layer with a weight of its own, and where its outputs are compared.

    ``name`` is the node of the ANN whose value ``place`` is to have: the layer itself, the sum that alone reads it
    (``added`` is its other operand), the neurons that alone read that (``floor`` is 0 if they contain a ReLU), or the
    sum that alone reads those (``beyond`` is its other operand). ``stored`` holds weight and bias.
    """

    node: fx.Node
    place: fx.Node
    stored: dict[fx.Node, nn.Parameter]
    added: fx.Node | None = None
    floor: float = -torch.inf
    beyond: fx.Node | None = None

    @property
    def name(self) -> str:
        """Of the node of the ANN."""
        return self.place.meta.get("was", "")

    @property
    def needs(self) -> set[fx.Node]:
        """What must have been computed before."""
        return {n for n in (self.added, self.beyond) if n is not None}

    @property
    def channels(self) -> int:
        """Of the output (in each group, for a transposed convolution)."""
        return next(iter(self.stored.values())).shape[ops.out_channel_dim(self.node)]

    @property
    def unknowns(self) -> int:
        """Numbers of the weight for each output channel."""
        return next(iter(self.stored.values())).numel() // self.channels

    @functools.cached_property
    def windows(self) -> Windows | None:
        """How the layer sees its input, where that can be written out."""
        weight, *bias = self.stored.values()
        return Windows.of(self.node, weight) if all(b.numel() == self.channels for b in bias) else None


def _layers(qann: fx.GraphModule) -> Iterator[_Layer]:
    """Every layer, once for each place where it may be compared, the furthest first."""
    readers: dict[int, int] = {}  # by storage: tied weights have several names
    for n in qann.graph.nodes:
        if (held := network.constant(n)) is not None:
            readers[_storage(held)] = readers.get(_storage(held), 0) + len(n.users)
    for node in qann.graph.nodes:
        weight = ops.weight_of(node) if node.op == "call_function" else None
        index = ops.bias_index(node) if weight is not None else None
        stored: dict[fx.Node, nn.Parameter] = {}
        for n in (weight, None if index is None else node.args[index]):
            parameter = network.constant(n)
            if isinstance(n, fx.Node) and isinstance(parameter, nn.Parameter) and readers[_storage(parameter)] == 1:
                stored[n] = parameter
        if weight not in stored or (index is not None and node.args[index] not in stored):
            continue
        if len(ops.data_operands(node)) != 1 or not network.spec(node).dtype.is_floating_point:
            continue
        ways = [_Layer(node, node, stored)]
        total, added = _sum_of(node)
        if total is not None:
            ways.append(replace(ways[-1], place=total, added=added))
        behind = _only_reader(ways[-1].place)
        module = qann.get_submodule(str(behind.target)) if behind is not None and behind.op == "call_module" else None
        if behind is not None and isinstance(module, Quantizer):
            ways.append(replace(ways[-1], place=behind, floor=0.0 if module.levels.lowest == 0 else -torch.inf))
            total, beyond = _sum_of(behind)
            if total is not None:
                ways.append(replace(ways[-1], place=total, beyond=beyond))
        yield from reversed(ways)


def _alike(wanted: fx.Node | None, place: fx.Node) -> bool:
    """Whether there is such a node, and its values are of the same form."""
    return wanted is not None and network.spec(wanted).shape[1:] == network.spec(place).shape[1:]


def _sum_of(node: fx.Node) -> tuple[fx.Node, fx.Node] | tuple[None, None]:
    """The sum with another value that alone reads this one, and that value."""
    reader = _only_reader(node)
    if reader is not None and reader.target is _aten.add.Tensor and not reader.kwargs:
        operands = [a for a in reader.args if isinstance(a, fx.Node) and a is not node]
        if operands and not ops.is_constant(operands[0]):
            return reader, operands[0]
    return None, None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


class _Along(fx.Interpreter):
    """The ANN on one chunk, run as far as it is asked for."""

    extra_traceback = False

    def __init__(self, ann: fx.GraphModule, chunk: tuple[Tensor, ...]):
        super().__init__(ann)
        self.args_iter = iter(chunk)
        self._todo = iter(ann.graph.nodes)
        self._names: set[str] = set()
        self._kept: dict[str, Tensor] = {}

    def keep(self, names: set[str]) -> None:
        """The nodes whose values may be asked for from now on."""
        self._names = names
        self._kept = {name: value for name, value in self._kept.items() if name in names}

    def value(self, name: str) -> Tensor:
        while name not in self._kept:
            node = next(self._todo)
            self.env[node] = self.run_node(node)
            if node.name in self._names:
                self._kept[node.name] = self.env[node]
            for operand in self.user_to_last_uses.get(node, []):
                del self.env[operand]
        return self._kept[name]


class _Chunk:
    """One chunk's share of a layer's least squares."""

    def __init__(self, layer: _Layer, environment: dict[fx.Node, Any], ann: _Along, weights: Sequence[float]):
        self.layer, self._environment, self._ann, self._weights = layer, environment, ann, weights
        self._dim = network.spec(layer.place).batch_dim or 0

    @functools.cached_property
    def wanted(self) -> Tensor:
        """What the ANN has there, for every reading; less what is added beyond the neurons, which a ReLU may hide."""
        wanted = self._ann.value(self.layer.name)
        if len(self._weights) > 1:
            wanted = torch.cat([wanted] * len(self._weights), self._dim)
        return self._seen(wanted if self.layer.beyond is None else wanted - self._environment[self.layer.beyond])

    def missing(self, values: _Values) -> Tensor:
        found, added = self._run(values), self.layer.added
        return self.wanted - self._seen(found if added is None else found + self._environment[added])

    def _seen(self, values: Tensor) -> Tensor:
        return values.clamp(min=self.layer.floor) if self.layer.floor > -torch.inf else values

    def error(self, values: _Values) -> float:
        missing = self.missing(values)
        return float((missing * self._weighed(missing)).sum())

    def gradient(self, values: _Values, weights: Tensor | None = None, *, squared: bool = False) -> _Values:
        """The derivative of the weighed sum of the layer's outputs times ``weights`` (the outputs themselves, if not
        given); with ``squared`` inputs and weights of 1: the sums of squares of what each value is multiplied by."""
        with torch.enable_grad():
            at = [v.detach().requires_grad_() for v in values]
            outputs = self._run(at, squared=squared)
            along = self._weighed(outputs.detach() if weights is None else weights)
            return list(torch.autograd.grad(outputs, at, along))

    def squares(self, values: _Values) -> _Values:
        return self.gradient(values, torch.ones_like(self.wanted), squared=True)

    def pairs(self) -> Tensor:
        """Weighed sums of the products of every two of the values that weights, and the bias, are multiplied by."""
        (data,) = ops.data_operands(self.layer.node)
        readings = self._environment[data].chunk(len(self._weights), network.spec(data).batch_dim or 0)
        assert self.layer.windows is not None
        one = len(self.layer.stored) > 1
        return torch.stack(
            [w * self.layer.windows.products(x, one=one) for w, x in zip(self._weights, readings, strict=True)]
        ).sum(0)

    def _weighed(self, values: Tensor) -> Tensor:
        if len(self._weights) == 1:
            return values
        parts = values.chunk(len(self._weights), self._dim)
        return torch.cat([weight * part for weight, part in zip(self._weights, parts, strict=True)], self._dim)

    def _run(self, values: _Values, *, squared: bool = False) -> Tensor:
        node = self.layer.node
        given: dict[fx.Node, Any] = dict(zip(self.layer.stored, values, strict=True))
        if squared:
            (data,) = ops.data_operands(node)
            given[data] = self._environment[data].square()
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: given.get(n, self._environment.get(n)))
        assert callable(node.target)
        return node.target(*args, **kwargs)


def divided(chunks: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """The same data in at least as many parts as one is needed to judge by, however it came in batches."""
    whole = [torch.cat(column) for column in zip(*chunks, strict=True)]
    images = len(whole[0])
    parts = min(images, max(_JUDGES, -(-images // _PART)))
    return list(zip(*(x.tensor_split(parts) for x in whole), strict=True))


def parted(chunks: list[_T]) -> tuple[list[_T], list[_T]]:
    """Those to fit to, and those to judge by: of fewer than four, none."""
    judging = chunks[_JUDGES - 1 :: _JUDGES]
    return [c for i, c in enumerate(chunks) if i % _JUDGES != _JUDGES - 1], judging


def enough(chunks: list[_T], equations: int, unknowns: int) -> list[_T]:
    """As many chunks as a layer's unknowns need, of so many equations each, three at least."""
    return spread(chunks, max(_JUDGES - 1, -(-_ROWS * unknowns // max(equations, 1))))


def spread(chunks: list[_T], count: int) -> list[_T]:
    """So many of all, evenly: the data may be sorted."""
    count = min(count, len(chunks))
    return [chunks[i * len(chunks) // count] for i in range(count)]


class _Curvature:
    """The second derivative of the mean of all outputs' squares, of which a ReLU hides nothing.

    It takes a direction of weight and bias through the layer and back: chunk by chunk, or, where that is less work, by
    the sums of products of the values that weights are multiplied by, which are added up once.
    """

    def __init__(self, chunks: list[_Chunk], like: _Values):
        self._chunks, self._like, self._layer = chunks, like, chunks[0].layer
        self._outputs = sum(chunk.wanted.numel() for chunk in chunks)
        self._pairs: Tensor | None = None
        windows, unknowns, channels = self._layer.windows, self._layer.unknowns, self._layer.channels
        if windows is not None:
            equations = self._outputs / channels
            work = unknowns * (equations * windows.groups + _ITERATIONS * unknowns * channels)
            if work < 2 * _ITERATIONS * equations * unknowns * channels:
                self._pairs = torch.stack([chunk.pairs() for chunk in chunks]).sum(0) / self._outputs

    def diagonal(self) -> _Values:
        """Mean squares of what each value is multiplied by."""
        if self._pairs is None:
            return self.mean(chunk.squares(self._like) for chunk in self._chunks)
        squares = self._pairs.diagonal(dim1=1, dim2=2).unsqueeze(1)
        return self._values(squares.expand(-1, self._layer.channels // len(squares), -1))

    def bend(self, direction: _Values) -> _Values:
        """Through the layer and back."""
        if self._pairs is None:
            return self.mean(chunk.gradient(direction) for chunk in self._chunks)
        dim = ops.out_channel_dim(self._layer.node)
        rows = [d.movedim(dim, 0).flatten(1) if d.dim() > 1 else d.unsqueeze(1) for d in direction]
        return self._values(torch.cat(rows, 1).unflatten(0, (len(self._pairs), -1)) @ self._pairs)

    def mean(self, parts: Iterator[_Values]) -> _Values:
        """The chunks' sums, of one output."""
        return [torch.stack(same).sum(0) / self._outputs for same in zip(*parts, strict=True)]

    def _values(self, rows: Tensor) -> _Values:
        """Weight and bias from ``[groups, output channels of each, values]``."""
        dim = ops.out_channel_dim(self._layer.node)
        columns = rows.flatten(0, 1).split([v.numel() // self._layer.channels for v in self._like], 1)
        shapes = [(v.movedim(dim, 0) if v.dim() > 1 else v).shape for v in self._like]
        parts = [c.reshape(shape) for c, shape in zip(columns, shapes, strict=True)]
        return [part.movedim(0, dim) if part.dim() > 1 else part for part in parts]


def _descent(chunks: list[_Chunk], start: _Values) -> Iterator[_Values]:
    """Weight and bias after some numbers of conjugate gradients, towards the least squares of ``chunks``."""
    curvature = _Curvature(chunks, start)
    squares = curvature.diagonal()
    metric = [s.clamp(min=_RARE * float(s.mean())) for s in squares]
    if not all(float(m.min()) > 0 for m in metric):
        return
    # A ReLU changes the residue alone: with the curvature of the layer without it, the quadratic function is a bound.
    residue = curvature.mean(chunk.gradient(start, chunk.missing(start)) for chunk in chunks)
    values, direction, along = start, None, 0.0
    for iteration in range(1, _ITERATIONS + 1):
        steepest = [r / m for r, m in zip(residue, metric, strict=True)]
        product = _dot(residue, steepest)
        if not product > 0:
            return
        if direction is not None:
            steepest = [s + product / along * d for s, d in zip(steepest, direction, strict=True)]
        direction, along = steepest, product
        bent = [b + _RARE * m * d for b, m, d in zip(curvature.bend(direction), metric, direction, strict=True)]
        length = along / _dot(direction, bent)
        values = [v + length * d for v, d in zip(values, direction, strict=True)]
        residue = [r - length * b for r, b in zip(residue, bent, strict=True)]
        if iteration in _JUDGED:
            yield values


def _dot(left: _Values, right: _Values) -> float:
    return float(sum((x.double() * y.double()).sum() for x, y in zip(left, right, strict=True)))


@torch.no_grad()
def distance(ann: fx.GraphModule, qann: fx.GraphModule, chunks: list[tuple[Tensor, ...]]) -> float:
    """How far a QANN's outputs are from its ANN's: mean squared difference over mean square, summed over outputs."""
    apart: dict[int, list[float]] = {}
    for chunk in chunks:
        answers = [_floats(asked(*chunk)) for asked in (ann, qann)]
        for index, (a, q) in enumerate(zip(*answers, strict=True)):
            sums = apart.setdefault(index, [0.0, 0.0])
            sums[0] += float((a - q).double().square().sum())
            sums[1] += float(a.double().square().sum())
    return sum(error / size if size else error for error, size in apart.values())


def _floats(answer: Any) -> list[Tensor]:
    values = [answer] if isinstance(answer, Tensor) else list(answer)
    return [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]
