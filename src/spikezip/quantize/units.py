"""The unit of every value of an integer network: wires carry codes, constants absorb the thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.errors import StageError
from spikezip.graph import network, ops, rewrite
from spikezip.graph.ops import Kind
from spikezip.quantize.grid import channels_back, channels_first, fill_value, has_width
from spikezip.quantize.quantizer import Quantizer

_aten = torch.ops.aten
_FINEST = 20  #: weights below 2**-20 count as 0, in units of a threshold or of what they multiply, whichever is finer
_FINEST_STEP = 40  #: and no step is finer than 2**-40, so that float64 holds what biases are added to
_LONGEST = 16  #: digits of a product's operand that is a product itself; past them it gets a greater unit
_COARSEST_BIAS = 2.0**-8  #: of a threshold
_CONSTANT_BITS = 16  #: of constants that are added, and of numbers that are put in
_WIDEST = 40  #: digits from the greatest of a constant's values to the step of all, where smaller values count too
_THRESHOLD_BITS = 8  #: what a step of a constant is at most, where a threshold is the unit: 2**-8
_TOO_FEW = 4  #: digits that are left of a value
_MASKED = -(2.0**20)  #: added before a softmax, leaves nothing: e**-745 is 0 in float64
_LOST = 0.05  #: share of values with so few that is no chance
_LIKE_ACTIVATIONS = {"softmax", "log_softmax", "layer_norm", "group_norm"}
_SAME = 2.0**-40  #: two numbers that differ by no more of themselves are one, reckoned in two ways

#: Operations f with f(c x) = c f(x) for c > 0: they keep whatever unit their operands have.
_HOMOGENEOUS = {"relu", "leaky_relu", "neg", "abs", "prelu"}
#: Operations that limit a value by numbers; in another unit the numbers are others.
_LIMITING = {"relu6": (0.0, 6.0), "hardtanh": (-1.0, 1.0), "clamp": (None, None), "clamp_min": (None, None)}
#: Kinds that keep their operands' unit, if all operands have the same.
_KEEPING = {Kind.SHAPE, Kind.MAXIMUM, Kind.SUM, Kind.AVERAGE}
#: Of these, what may make whole numbers, and what joins all its operands in one value.
_CASTS = {"to", "_to_copy", "type_as"}
_JOINING = {"add", "sub", "rsub", "cat", "stack"}


def snap(values: Tensor, bits: int) -> Tensor:
    """Each value rounded to ``bits`` significant binary digits (float64), none past what float32 holds."""
    mantissa, exponent = torch.frexp(_held(values, bits))
    return torch.ldexp(torch.floor(mantissa * 2.0**bits + 0.5), exponent - bits)


def _held(values: Tensor, bits: int) -> Tensor:
    """Finite values at most the greatest of ``bits`` digits in float32: ``finfo.min``, rounded, is no infinity."""
    most = math.ldexp(1 - 2.0**-bits, 128)
    return torch.where(torch.isinf(values), values, values.clamp(-most, most)).double()


def _real(node: fx.Node, stored: Tensor) -> Tensor:
    """Stored numbers of a node, in float64."""
    if stored.is_complex():
        raise StageError(
            f"{network.describe(node)} has complex weights or a complex bias; an integer network's are real. Write "
            "that product with real and imaginary parts, or keep floats (weight_bits=None)."
        )
    return stored.detach().double()


def _greatest(values: Tensor) -> float:
    """The greatest finite magnitude; 0 of none."""
    finite = values[torch.isfinite(values)]
    return float(finite.abs().max()) if finite.numel() else 0.0


def coarse(values: Tensor, bits: int) -> Tensor:
    """All values rounded to one power-of-two step, ``bits`` binary digits below the greatest (float64).

    None is past what float32 holds.

    >>> coarse(torch.tensor([1.0, 0.3, 1e-9]), 4).tolist()
    [1.0, 0.3125, 0.0]
    """
    values = _held(values, bits)
    top = _greatest(values)
    if top == 0:
        return values
    step = 2.0 ** (math.floor(math.log2(top)) - bits)
    return torch.floor(values / step + 0.5) * step


def _low_enough(node: fx.Node, values: Tensor) -> Tensor:
    """What is added before a softmax: a mask's numbers no lower than is needed to leave nothing, where others count."""
    low = values < _MASKED
    if not bool(low.any()) or not bool((values[~low].abs() < -_MASKED / 16).all()):
        return values
    while ops.kind(node) in (Kind.SUM, Kind.SHAPE) and len(node.users) == 1:
        node = next(iter(node.users))
        if network.op_name(node) in ("permute", "transpose", "movedim", "t"):  # the softmax is along another dimension
            return values
    if network.op_name(node) not in ("softmax", "_softmax"):
        return values
    dim = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
    dim = int(dim) - len(network.spec(node).shape) if int(dim) >= 0 else int(dim)  # type: ignore[arg-type]
    # Where all is masked the others count among one another.
    if values.dim() < -dim or bool(low.all(dim).any()):
        return values
    return torch.where(low & torch.isfinite(values), _MASKED, values)


def nearest(values: Tensor, step: Tensor | float, most: Tensor | float = math.inf) -> Tensor:
    """Each value rounded to whole steps, ties up, at most so many of them, either sign."""
    limit = torch.as_tensor(most, dtype=values.dtype, device=values.device)
    return torch.floor(values / step + 0.5).clamp(-limit, limit) * step


def unlike(values: Tensor, bits: int) -> bool:
    """Whether one step, ``bits`` digits below the greatest value, would erase what others say.

    That is so where it leaves few digits to all values of a row or column, or nothing to a channel's only one, or few
    to many; a value that is near 0 by chance says little.

    >>> unlike(torch.tensor([[0.1, -0.2, 0.3], [-0.7, -1e9, -1e9]]), 16), unlike(torch.tensor([3.0, 1.0, 1e-3]), 16)
    (True, False)
    """
    if (top := _greatest(values)) == 0:
        return False
    sizes = torch.where(torch.isfinite(values), values, 0).abs()
    step = 2.0 ** (math.floor(math.log2(top)) - bits)
    nonzero = sizes[sizes > 0]
    if float((nonzero < step * 2**_TOO_FEW).double().mean()) > _LOST and nonzero.numel() > 1 / _LOST:
        return True
    for dim, size in enumerate(sizes.shape):
        if size > 1:
            most = sizes.movedim(dim, 0).reshape(size, -1).amax(1)
            several = sizes.numel() > size
            if bool(((most > 0) & (most < step * (2**_TOO_FEW if several else 1))).any()):
                return True
    return False


@dataclass(frozen=True)
class Rounded:
    """The weights and bias of a layer before they were rounded, in units, and their steps.

    Attributes:
        weight: ``[output channels, ...]`` (of all groups, in order).
        step: of each output channel's weights.
        most: steps, either sign.
        bias: None where there is none.
        fine: the bias's steps.
    """

    weight: Tensor
    step: Tensor
    most: int
    bias: Tensor | None = None
    fine: Tensor | None = None


class Units:
    """Chooses the unit of every value (real = unit * stored) and rewrites constants to match, in place.

    Args:
        gm: a calibrated QANN without averages (see :func:`~spikezip.quantize.averages.spell_averages`).
        bits: of the weights.
        calibrated: whether the thresholds are those it will have; if not, only what holds for any is refused.
        keep: whether what layers' weights were before is kept, in ``rounded``.
    """

    def __init__(self, gm: fx.GraphModule, bits: int, *, calibrated: bool = True, keep: bool = False):
        self.gm, self.bits, self.calibrated, self.keep = gm, bits, calibrated, keep
        self.rounded: dict[fx.Node, Rounded] = {}
        self.wanted: dict[fx.Node, float | None] = {}
        self.unit: dict[fx.Node, float] = {}
        self.origins: dict[fx.Node, tuple[float, float]] = {}  # of converted values: see _origin
        self.ratios: dict[fx.Node, int] = {}  # how many conversions a value went through since its neurons
        self.digits: dict[fx.Node, float] = {}  # log2 of how far a value of codes goes, in its unit
        self.idle: list[fx.Node] = []  # factors that went into a unit
        self.last: set[fx.Node] = set()  # values that are only returned, after what is done to each entry

    def run(self) -> dict[fx.Node, float]:
        """Rewrite the network; all its thresholds are 1 afterwards. Returns the unit of each value."""
        nodes = list(self.gm.graph.nodes)
        for node in reversed(nodes):
            self.wanted[node] = self._wanted(node)
            if all(u.op == "output" or (u in self.last and self._is_entrywise(u)) for u in node.users):
                self.last.add(node)
        for node in nodes:
            if node.op == "output":
                node.args = (fx.map_arg(node.args[0], self._as_output),)
            elif ops.is_signal(node) and not ops.is_constant(node):
                self.unit[node] = self._rewrite(node)
                if self._keeps_unit(node) or (node.op == "call_function" and ops.kind(node) is Kind.PRODUCT):
                    self.ratios[node] = max((self.ratios.get(n, 0) for n in node.all_input_nodes), default=0)
                known = [self.digits[n] for n in node.all_input_nodes if n in self.digits]
                if known and self._keeps_unit(node):
                    self.digits[node] = max(known)
        for node in self.idle:
            node.replace_all_uses_with(node.all_input_nodes[0])
        for _, quantizer in network.modules_of(self.gm, Quantizer):
            quantizer.scale.data.fill_(1.0)
        return self.unit

    def _origin(self, node: fx.Node) -> tuple[float, float]:
        """The exact unit of a value before it was converted, and the product of the short factors since.

        ``real = unit / factor * stored`` holds for it exactly; ``self.unit`` is what the factors were to make of it.
        """
        return self.origins.get(node, (self.unit[node], 1.0))

    def _as_output(self, node: fx.Node) -> fx.Node:
        output = self.gm.graph.output_node()
        return self._converted(node, 1.0, output, exactly=False)

    def _quantizer(self, node: fx.Node) -> Quantizer | None:
        module = self.gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        return module if isinstance(module, Quantizer) else None

    def _keeps_unit(self, node: fx.Node) -> bool:
        if node.op != "call_function" or not ops.is_signal(node):
            return False
        name = network.op_name(node)
        # Whole numbers and truth values are in no unit: neither what becomes one, nor what is joined with one.
        if name in _CASTS and not has_width(node):
            return False
        if name in _JOINING and not all(has_width(n) for n in node.all_input_nodes if ops.is_signal(n)):
            return False
        return ops.kind(node) in _KEEPING or name in _HOMOGENEOUS or (name in _LIMITING and _limits(node) is not None)

    def _wanted(self, node: fx.Node) -> float | None:
        """The unit that the readers of a value ask for; None where any will do."""
        choices: list[float] = []
        for user in node.users:
            if quantizer := self._quantizer(user):
                return float(quantizer.scale.detach())
            factor = _positive_factor(user)
            if user.op == "output":
                choices.append(1.0)
            elif self._keeps_unit(user) or factor is not None:
                if (unit := self.wanted.get(user)) is not None:
                    choices.append(unit / (factor or 1.0))
            elif not self._absorbs(user):
                choices.append(1.0)
        return choices[0] if choices else None

    def _is_entrywise(self, node: fx.Node) -> bool:
        return node.op == "call_function" and (self._keeps_unit(node) or ops.kind(node) is Kind.SCALE)

    def _rounded(self, node: fx.Node, values: Tensor, bits: int, unit: float) -> Tensor:
        """A constant that joins a stream in a unit, rounded to one step, as short as what is done with it allows."""
        values = values.double()
        top = _greatest(values)
        if top == 0:
            return values
        if unit != 1.0:  # a threshold's
            bits = max(bits, math.floor(math.log2(top)) + _THRESHOLD_BITS)
        elif (node in self.last and self._is_entrywise(node)) or unlike(values, bits):
            values, bits = snap(values, _CONSTANT_BITS), _WIDEST
        plain = unit == 1.0 and all(self.unit.get(n, 1.0) == 1.0 for n in node.all_input_nodes)
        if bits >= _WIDEST and unlike(values, _WIDEST) and (plain or self.calibrated):
            raise StageError(
                f"{network.describe(node)} has a constant whose values, up to {top:.3g}, are too unlike for whole "
                "numbers of one step: the small ones would become 0. Mask with -inf, or numbers such as -1e4, or keep "
                "floats (weight_bits=None, or no to_integer())."
            )
        return coarse(values, min(bits, _WIDEST))

    def _absorbs(self, node: fx.Node) -> bool:
        """Whether a node takes operands of any unit."""
        if node.op != "call_function" or not ops.is_signal(node):
            return node.op == "call_function"
        return ops.kind(node) in (Kind.SYNAPTIC, Kind.SCALE, Kind.PRODUCT)

    def _rewrite(self, node: fx.Node) -> float:
        if node.op == "placeholder":
            return 1.0
        if quantizer := self._quantizer(node):
            theta = float(quantizer.scale.detach())
            self._convert(node, node.all_input_nodes[0], theta)
            self.digits[node] = math.log2(quantizer.levels.magnitude)
            return theta
        if node.op == "call_module":
            return self.unit[node.all_input_nodes[0]]
        kind = ops.kind(node)
        streams = [n for n in ops.data_operands(node) if n in self.unit and has_width(n)]
        if kind is Kind.SYNAPTIC and len(streams) == 1:
            if ops.weight_of(node) is not None:
                return self._weights(node, streams[0])
            if ops.left_weight_of(node) is not None:
                return self._left(node, streams[0])
        if kind is Kind.SCALE and network.op_name(node) in ("mul", "div") and len(streams) == 1:
            if (unit := self._factor(node, streams[0])) is not None:
                return unit
        if (kind is Kind.PRODUCT or (kind is Kind.SYNAPTIC and ops.bias_index(node) is None)) and len(streams) > 0:
            if all(n in self.unit for n in node.args[:2]) and len(streams) <= 2:
                return self._product(node)
        if self._keeps_unit(node) and streams:
            return self._kept(node, streams)
        if kind is Kind.SYNAPTIC and ops.bias_index(node) is None:  # what is repeated for every image, times a stream
            for constant in node.all_input_nodes:
                if constant.op == "call_function" and ops.is_constant(constant) and has_width(constant):
                    node.replace_input_with(constant, self._shifted(node, constant, 1.0, (1.0, 1.0)))
        # A general function takes real values; it is computed in float64, so the factor need be on no grid.
        for stream in streams:
            smooth = kind is Kind.ACTIVATION or network.op_name(node) in _LIKE_ACTIVATIONS
            self._convert(node, stream, 1.0, exactly=kind is not Kind.SYNAPTIC, smooth=smooth)
        return 1.0

    def _product(self, node: fx.Node) -> float:
        """The product of the operands' units: in a chain of products it would shrink without end."""
        for stream in node.all_input_nodes:
            if (digits := self.digits.get(stream, 0.0)) > _LONGEST:
                self._convert(node, stream, self.unit[stream] * 2.0 ** math.floor(digits))
        self.digits[node] = sum(self.digits.get(n, 0.0) for n in node.args[:2])  # type: ignore[misc]
        units, factors = zip(*(self._origin(n) for n in node.args[:2]), strict=True)  # type: ignore[arg-type]
        self.origins[node] = math.prod(units), math.prod(factors)
        return math.prod(self.unit[n] for n in node.args[:2])  # type: ignore[index]

    def _kept(self, node: fx.Node, streams: list[fx.Node]) -> float:
        kind, wanted = ops.kind(node), self.wanted[node]
        constants = [n for n in node.all_input_nodes if ops.is_constant(n) and has_width(n) and ops.is_signal(n)]
        if network.op_name(node) in _HOMOGENEOUS:
            self._slopes(node, constants)
            constants = []
        alone = len(streams) == 1 and kind is not Kind.SUM and not constants
        # Streams of streams keep their unit and what joins them is converted: else each sum's ratio, and the digits
        # of it, would come on top of those before.
        longest = max(streams, key=lambda n: self.ratios.get(n, 0), default=None)
        unit = self.unit[longest] if longest is not None and (alone or wanted is None) else wanted or 1.0
        origins = {self._origin(self._convert(node, stream, unit)) for stream in streams}
        origin = origins.pop() if len(origins) == 1 else (unit, 1.0)
        self.origins[node] = origin
        for constant in constants:
            node.replace_input_with(constant, self._shifted(node, constant, unit, origin))
        if network.op_name(node) in _LIMITING and (limits := _limits(node)) is not None:
            low, high = (None if v is None else _added(v, origin) for v in limits)
            node.target, node.args, node.kwargs = _aten.clamp.default, (node.args[0], low, high), {}
        if kind is Kind.SUM:
            for position, argument in enumerate(node.args[:2]):
                if isinstance(argument, int | float):
                    node.update_arg(position, _added(argument, origin))
            if isinstance(alpha := node.kwargs.get("alpha"), float):
                node.update_kwarg("alpha", float(snap(torch.tensor(alpha, dtype=torch.float64), self.bits)))
        elif (number := fill_value(node)) != 0 and math.isfinite(number):
            value = _added(number, origin)
            position = 3 if network.op_name(node) == "pad" else 2
            if len(node.args) > position:
                node.update_arg(position, value)
            else:
                node.update_kwarg("value", value)
        return unit

    def _slopes(self, node: fx.Node, constants: list[fx.Node]) -> None:
        """The slopes of leaky_relu and prelu, as short dyadic numbers."""
        if network.op_name(node) == "leaky_relu":
            slope = node.args[1] if len(node.args) > 1 else 0.01
            node.args = (node.args[0], float(snap(torch.tensor(slope, dtype=torch.float64), self.bits)))  # type: ignore[misc]
        for constant in constants:
            stored = network.constant(constant)
            if stored is None:
                continue
            with self.gm.graph.inserting_before(node):
                values = coarse(stored.detach().double(), self.bits).to(stored.dtype)
                new = rewrite.new_constant(self.gm, str(constant.target), values, like=node)
            new.meta["spec"] = constant.meta.get("spec")
            node.replace_input_with(constant, new)

    def _shifted(self, node: fx.Node, constant: fx.Node, unit: float, origin: tuple[float, float]) -> fx.Node:
        """A constant in another unit, that of a stream it joins (and see :func:`_beside`)."""
        tensor = network.constant(constant)
        inside = [n for n in constant.all_input_nodes if ops.is_signal(n)]
        if tensor is None and ops.kind(constant) is Kind.SHAPE and len(inside) == 1:  # a token for every image
            shifted = self._shifted(constant, inside[0], unit, origin)
            with self.gm.graph.inserting_before(node):
                new = self.gm.graph.node_copy(constant, lambda n: shifted if n is inside[0] else n)
            return new
        ratio = origin[1] / origin[0]
        with self.gm.graph.inserting_before(node):
            if tensor is None:
                new = rewrite.call(self.gm, _aten.mul.Tensor, (constant, ratio), like=node)
            elif tensor.is_complex():  # on no grid, as what it joins
                new = rewrite.new_constant(self.gm, str(constant.target), tensor.detach() * ratio, like=node)
            else:
                values = _low_enough(node, tensor.detach().double())
                value = _beside(values, origin, lambda v: self._rounded(node, v, _CONSTANT_BITS, unit)).to(tensor.dtype)
                new = rewrite.new_constant(self.gm, str(constant.target), value, like=node)
        new.meta["spec"] = constant.meta.get("spec")
        return new

    def _factor(self, node: fx.Node, stream: fx.Node) -> float | None:
        """Multiplication by a constant: the constant takes the units up."""
        other = node.args[1] if node.args[0] is stream else node.args[0]
        dividing = network.op_name(node) == "div"
        if dividing and (node.args[0] is not stream or node.kwargs or len(node.args) > 2):
            return None
        wanted = self.wanted[node] or 1.0
        ratio = self.unit[stream] / wanted
        before, factor = self._origin(stream)
        if isinstance(other, int | float):
            if other > 0:
                # A positive number only changes the unit: nothing is multiplied.
                value = 1 / float(other) if dividing else float(other)
                unit = self.unit[stream] * value
                if self.wanted[node] is None or math.isclose(unit, wanted, rel_tol=1e-12):
                    self.idle.append(node)
                    if stream in self.digits:
                        self.digits[node] = self.digits[stream]
                    self.origins[node] = (before * value, factor)
                    return unit
            value = 1 / other if dividing else other
            short = float(snap(torch.tensor(value * ratio, dtype=torch.float64), self.bits))
            node.target, node.args = _aten.mul.Tensor, (stream, short)
            if other != 0:
                self.origins[node] = (before * value, factor * short)
            return wanted
        tensor = network.constant(other)
        if tensor is None or not tensor.is_floating_point():
            return None
        real = 1 / tensor.detach().double() if dividing else tensor.detach().double()
        values = snap(real * ratio, self.bits)
        with self.gm.graph.inserting_before(node):
            values = self._rounded(node, values, 2 * self.bits, wanted).to(tensor.dtype)
            stored = rewrite.new_constant(self.gm, str(other.target), values, like=node)  # type: ignore[union-attr]
        stored.meta["spec"] = other.meta.get("spec")  # type: ignore[union-attr]
        node.target, node.args = _aten.mul.Tensor, (stream, stored)
        if values.numel() == 1 and float(values) != 0:
            self.origins[node] = (before * float(real), factor * float(values))
        return wanted

    def _left(self, node: fx.Node, stream: fx.Node) -> float:
        """A stored matrix on the left of a product: rounded with one step."""
        unit = self.wanted[node] or 1.0
        factor = ops.left_weight_of(node)
        stored = network.constant(factor)
        assert factor is not None and stored is not None
        values = _real(node, stored) * (self.unit[stream] / unit)
        most = 2 ** (self.bits - 1) - 1
        step = 2.0 ** -math.floor(math.log2(most / (_greatest(values) or 1.0)))
        values = nearest(values, step, most)
        with self.gm.graph.inserting_before(node):
            new = rewrite.new_constant(self.gm, str(factor.target), values.to(stored.dtype), like=node)
        new.meta["spec"] = factor.meta.get("spec")
        node.replace_input_with(factor, new)
        return unit

    def _weights(self, node: fx.Node, stream: fx.Node) -> float:
        """``W * unit_in / unit_out`` on a power-of-two grid per output channel; the bias on a finer one."""
        unit = self.wanted[node] or 1.0
        weight_node = ops.weight_of(node)
        weight = network.constant(weight_node)
        assert weight_node is not None and weight is not None
        if self.unit[stream] / unit < 2.0 ** (_FINEST - _FINEST_STEP):  # no step would be fine enough
            power = math.ceil(math.log2(unit / self.unit[stream]))
            self._convert(node, stream, self.unit[stream] * 2.0**power)
            stream = ops.data_operands(node)[0]
        ratio = self.unit[stream] / unit
        scaled = channels_first(node, _real(node, weight)) * ratio
        most = 2 ** (self.bits - 1) - 1
        finest = min(_FINEST + max(0, math.ceil(-math.log2(ratio))), _FINEST_STEP)
        top = scaled.flatten(1).abs().amax(1).clamp(min=most * 2.0**-finest)
        exponent = torch.floor(torch.log2(most / top)).clamp(max=finest)
        step = torch.ldexp(torch.ones_like(exponent), -exponent.to(torch.int32))
        step = step.reshape([-1] + [1] * (scaled.dim() - 1))
        short = nearest(scaled, step, most)
        if not bool(short.any()) and bool(weight.any()):
            # A layer that hardly moves its neurons may be none; where no neuron says how little that is, it may not.
            farthest = float(scaled.abs().flatten(1).sum(1).max()) * 2.0 ** self.digits.get(stream, math.inf)
            if self.calibrated and (unit == 1.0 or farthest >= _COARSEST_BIAS):
                raise StageError(
                    f"to_integer() would round all weights of {network.describe(node)} to 0: they are at most "
                    f"{float(weight.abs().max()):.1g}. Normalise what the layer reads, or keep floats "
                    "(weight_bits=None)."
                )
        with self.gm.graph.inserting_before(node):
            stored = channels_back(node, short).reshape(weight.shape).to(weight.dtype)
            new_weight = rewrite.new_constant(self.gm, str(weight_node.target), nn.Parameter(stored, False), like=node)
            new_weight.meta["spec"] = weight_node.meta.get("spec")
            node.args = tuple(new_weight if a is weight_node else a for a in node.args)
            index = ops.bias_index(node)
            bias_node: Any = node.args[index] if index is not None else None
            bias = network.constant(bias_node)
            before = Rounded(scaled, step.flatten(), most)
            if index is not None and bias is not None:
                values = _real(node, bias) / unit
                fine = (step.flatten() if values.numel() == step.numel() else step.min()) * 2.0**-4
                fine = fine.clamp(max=_COARSEST_BIAS)
                before = replace(before, bias=values, fine=fine)
                values = nearest(values, fine)
                new_bias = rewrite.new_constant(
                    self.gm, str(bias_node.target), nn.Parameter(values.to(bias.dtype), False), like=node
                )
                new_bias.meta["spec"] = bias_node.meta.get("spec")
                node.update_arg(index, new_bias)
            if self.keep:
                self.rounded[node] = before
        return unit

    def _convert(
        self, reader: fx.Node, stream: fx.Node, unit: float, *, exactly: bool = False, smooth: bool = False
    ) -> fx.Node:
        new = self._converted(stream, unit, reader, exactly=exactly, smooth=smooth)
        if new is not stream:
            reader.replace_input_with(stream, new)
        return new

    def _converted(
        self, stream: fx.Node, unit: float, reader: fx.Node, *, exactly: bool, smooth: bool = False
    ) -> fx.Node:
        """``stream`` in another unit: multiplied where it is not in it already, by a short dyadic factor unless
        ``exactly`` the ratio is asked for; that then makes good what short factors before have lost, but for a
        ``smooth`` reader, to which it is like the rounding of a weight."""
        if stream not in self.unit:
            return stream
        before, factors = self._origin(stream)
        now = before / factors if exactly and not smooth else self.unit[stream]
        if math.isclose(now, unit, rel_tol=1e-12):
            return stream
        ratio = torch.tensor(now / unit, dtype=torch.float64)
        factor = float(ratio) if exactly else float(snap(ratio, self.bits))
        with self.gm.graph.inserting_before(reader):
            new = rewrite.call(self.gm, _aten.mul.Tensor, (stream, factor), like=stream)
        new.meta["spec"] = stream.meta["spec"]
        self.unit[new] = unit
        self.origins[new] = (before, factors * factor)
        self.ratios[new] = self.ratios.get(stream, 0) + 1
        if stream in self.digits:
            self.digits[new] = self.digits[stream] + math.log2(self.unit[stream] / unit)
        return new


def _beside(values: Tensor, origin: tuple[float, float], rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """Real values in the unit of the stream that they join (see ``Units._origin``), rounded.

    The stream's own factor is theirs too: what cancels in real values, as 1 - 1, does so in any unit. Values that are
    short before are not rounded after.
    """
    unit, factor = origin
    before = values.double() / unit
    short = coarse(before, _CONSTANT_BITS)
    exact = torch.isclose(short, before, rtol=_SAME, atol=0.0)
    return torch.where(exact, short * factor, rounded(before * factor))


def _added(number: float, origin: tuple[float, float]) -> float:
    """A number that is added, or put in, as a short dyadic one."""
    return float(_beside(torch.tensor(number, dtype=torch.float64), origin, lambda v: coarse(v, _CONSTANT_BITS)))


def _limits(node: fx.Node) -> tuple[float | None, float | None] | None:
    """The least and greatest value of a limiting operation; None where these are no numbers."""
    name = network.op_name(node)
    first = {"hardtanh": "min_val", "clamp": "min", "clamp_min": "min"}.get(name)
    second = {"hardtanh": "max_val", "clamp": "max"}.get(name)
    found: list[float | None] = []
    for position, key in ((1, first), (2, second)):
        value: Any = _LIMITING[name][position - 1]
        if key is not None:
            value = node.args[position] if len(node.args) > position else node.kwargs.get(key, value)
        if value is not None and not isinstance(value, int | float):
            return None
        found.append(None if value is None or not math.isfinite(value) else float(value))
    return (found[0], found[1])


def _positive_factor(node: fx.Node) -> float | None:
    """The positive number by which a node multiplies its one stream; None for anything else."""
    if node.op != "call_function" or network.op_name(node) not in ("mul", "div") or node.kwargs or len(node.args) != 2:
        return None
    stream, number = node.args
    if network.op_name(node) == "mul" and isinstance(stream, int | float):
        stream, number = number, stream
    if not isinstance(stream, fx.Node) or not isinstance(number, int | float) or number <= 0:
        return None
    return 1 / number if network.op_name(node) == "div" else float(number)
