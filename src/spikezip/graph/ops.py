"""The operations of a graph by what they do to spikes: one row a kind.

Nothing here is needed for the SNN to be *right*: every pure operation is, as the SNN at step t is the QANN's own graph
on accumulated values. The kinds decide where neurons must sit, what may be folded, and what an operation costs. An
operation in no row is a general function (``ANALOG``).
"""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten


class Kind(enum.Enum):
    """What an operation does to the spikes (increments of codes) that reach it."""

    SYNAPTIC = "weights each spike and adds it up (convolution, linear, matmul)"
    SHAPE = "moves values about, unchanged"
    MAXIMUM = "chooses among values under one threshold: ternary spikes stay ternary"
    AVERAGE = "adds and divides: spikes become fractional"
    SUM = "adds streams"
    SCALE = "multiplies by a constant"
    PRODUCT = "multiplies two streams"
    RECTIFIER = "an activation that a quantizer from 0 upwards contains"
    ACTIVATION = "an activation function"
    ANALOG = "a general function of accumulated values"
    SIZE = "computes sizes, not values"
    CONSTANT = "makes a constant"


def _named(kind: Kind, names: str) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), kind)


_KINDS: dict[str, Kind] = {
    **_named(
        Kind.SYNAPTIC,
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution linear addmm mm bmm matmul"
        " baddbmm einsum",
    ),
    **_named(
        Kind.SHAPE,
        "view reshape _unsafe_view flatten unflatten permute transpose t squeeze unsqueeze expand select slice split"
        " split_with_sizes chunk unbind cat stack pad constant_pad_nd reflection_pad2d reflection_pad1d"
        " replication_pad2d roll flip index index_select gather pixel_shuffle pixel_unshuffle channel_shuffle"
        " upsample_nearest1d upsample_nearest2d upsample_nearest3d repeat tile movedim swapaxes narrow unfold im2col"
        " getitem expand_as view_as masked_fill repeat_interleave to _to_copy type_as contiguous",
    ),
    **_named(Kind.MAXIMUM, "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d amax"),
    **_named(
        Kind.AVERAGE,
        "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean sum"
        " upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa cumsum",
    ),
    **_named(Kind.SUM, "add sub rsub"),
    **_named(Kind.SCALE, "neg div"),
    **_named(Kind.RECTIFIER, "relu"),
    **_named(
        Kind.ACTIVATION,
        "relu6 hardtanh leaky_relu prelu hardswish hardsigmoid silu gelu sigmoid elu selu celu tanh mish softplus"
        " log_sigmoid softsign tanhshrink threshold rrelu clamp clamp_min",
    ),
    **_named(Kind.SIZE, "sym_size sym_numel sym_stride floordiv truediv mod"),
    **_named(
        Kind.CONSTANT,
        "zeros ones full arange zeros_like ones_like full_like new_zeros new_ones new_full empty scalar_tensor linspace"
        " eye triu tril lift_fresh",
    ),
}
#: Operations whose results jump, or whose places do, where operands move by their last bit.
_JUMPS = {
    "sign", "sgn", "heaviside", "signbit", "floor", "ceil", "round", "trunc", "fix", "frac", "floor_divide", "fmod",
    "remainder", "gt", "ge", "lt", "le", "eq", "ne", "isclose", "logical_and", "logical_or", "logical_xor",
    "logical_not", "any", "all", "nonzero", "argmax", "argmin", "argsort", "sort", "topk", "kthvalue", "median",
    "mode", "max", "min", "cummax", "cummin", "max_pool1d_with_indices", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "bucketize", "searchsorted",
}  # fmt: skip
_INTEGER_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod}


def kind(node: fx.Node) -> Kind:
    """The kind of a call_function node (quantizers and inputs are not operations)."""
    target = node.target
    name = _name(target)
    if target in _INTEGER_ARITHMETIC:
        return Kind.SIZE
    if "spec" not in node.meta and target is not operator.getitem and not _returns_tensors(target):
        return _KINDS.get(name, Kind.SIZE)
    if name == "mul":
        streams = [a for a in node.args[:2] if isinstance(a, fx.Node) and not is_constant(a)]
        return Kind.PRODUCT if len(streams) == 2 else Kind.SCALE
    if name == "div" and len(node.args) > 1 and isinstance(node.args[1], fx.Node) and not is_constant(node.args[1]):
        return Kind.ANALOG
    if (
        name == "index"
        and len(node.args) > 1
        and any(
            isinstance(a, fx.Node) and not is_constant(a)
            for a in node.args[1]  # type: ignore[union-attr]
        )
    ):
        return Kind.ANALOG
    return _KINDS.get(name, Kind.ANALOG)


def _returns_tensors(target: Any) -> bool:
    """Whether an operation without a Spec returns several tensors (split, topk), not a size."""
    return isinstance(target, torch._ops.OpOverload) and any("Tensor" in str(r.type) for r in target._schema.returns)


def _name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    return getattr(target, "__name__", str(target))


def is_constant(value: Any) -> bool:
    """True for numbers, stored tensors, and whatever is computed from these and from sizes alone."""
    # Iterative: graphs may be deeper than Python's stack.
    todo, seen = [value] if isinstance(value, fx.Node) else [], set()
    while todo:
        node = todo.pop()
        if node.op in ("placeholder", "call_module", "output"):
            return False
        if node.op != "get_attr" and node not in seen and not _is_size(node.target):
            seen.add(node)
            todo.extend(node.all_input_nodes)
    return True


def _is_size(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and _name(target) in ("sym_size", "sym_numel", "sym_stride")


def is_signal(node: fx.Node) -> bool:
    """Whether a node carries tensors (one, or several to be picked from, as ``unbind`` gives) and not sizes."""
    if "spec" in node.meta or node.op in ("placeholder", "get_attr", "call_module"):
        return True
    return node.op == "call_function" and kind(node) is not Kind.SIZE


def data_operands(node: fx.Node) -> list[fx.Node]:
    """The operands of a synaptic operation that carry signals (not stored weights or biases)."""
    return [a for a in node.all_input_nodes if not is_constant(a) and is_signal(a)]


def appearances(node: fx.Node) -> list[fx.Node]:
    """The operands that carry signals, in the order of the arguments: as often as each appears (``h @ h``: twice)."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), lambda n: found.append(n) or n)
    return [n for n in found if not is_constant(n) and is_signal(n)]


def bias_index(node: fx.Node) -> int | None:
    """Where a synaptic operation keeps its bias among its positional arguments; None where it has none."""
    name = _name(node.target)
    if name.startswith("conv") or name == "linear":
        index = 2
        return index if len(node.args) > index and node.args[index] is not None else None
    if name in ("addmm", "baddbmm") and is_constant(node.args[0]) and not node.kwargs:  # alpha, beta: left whole
        return 0
    return None


def weight_of(node: fx.Node) -> fx.Node | None:
    """The stored weight of a convolution or linear layer; None for a product of two signals."""
    name = _name(node.target)
    index = 1 if name.startswith("conv") or name == "linear" else None
    if name == "addmm":
        index = 2
    if name in ("mm", "matmul", "bmm"):
        index = 1
    if index is None:
        return None
    weight = node.args[index]
    return weight if isinstance(weight, fx.Node) and weight.op == "get_attr" else None


def left_weight_of(node: fx.Node) -> fx.Node | None:
    """The stored matrix on the left of a matrix product, as in ``W @ x``; None where there is none."""
    left = node.args[0] if _name(node.target) in ("mm", "matmul", "bmm") else None
    return left if isinstance(left, fx.Node) and left.op == "get_attr" else None


def factor_of(node: fx.Node) -> fx.Node | None:
    """The stored factor of a synaptic operation, on whichever side of a product; None for a product of two signals."""
    return weight_of(node) or left_weight_of(node)


def out_channel_dim(node: fx.Node) -> int:
    """The dimension of the weight that runs over output channels (within a group, for transposed convolutions)."""
    name = _name(node.target)
    return 1 if name.startswith("conv_transpose") else -1 if name in ("addmm", "mm", "matmul", "bmm") else 0


def geometry(node: fx.Node, dims: int) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding and dilation of a convolution, each of ``dims`` numbers, and its groups."""
    given: Any = [*node.args[3:], *[[1], [0], [1], 1][max(len(node.args) - 3, 0) :]]
    stride, padding, dilation = (of_each_dim(values, dims) for values in given[:3])
    return stride, padding, dilation, given[3]


def of_each_dim(values: Sequence[int], dims: int = 2) -> list[int]:
    """What a window has in each dimension: one number stands for all."""
    return list(values) if len(values) == dims else [values[0]] * dims


def jumps(node: fx.Node) -> bool:
    """Whether a result may jump where an operand moves by its last bit, as that of ``sign`` or a comparison does (but
    one with infinity)."""
    name = _name(node.target)
    if name in ("to", "_to_copy", "type_as"):
        dtype = node.meta["spec"].dtype if "spec" in node.meta else torch.float32
        return not (dtype.is_floating_point or dtype.is_complex)
    if name == "div":
        return node.kwargs.get("rounding_mode") is not None
    return name in _JUMPS and not any(isinstance(a, float) and math.isinf(a) for a in node.args)


def only_divides(node: fx.Node) -> bool:
    """Whether a value is read as a divisor alone, as the clamped norm in ``x / max(|x|, eps)``: rounded to 0 it would
    make infinities, so it stays as it is. It may be scaled, or its root taken, on the way."""
    return bool(node.users) and all(_leads_to_division(user, node) for user in node.users)


def _leads_to_division(user: fx.Node, node: fx.Node) -> bool:
    name = _name(user.target) if user.op == "call_function" else ""
    if name in ("reciprocal", "rsqrt") or (name == "div" and user.args[1] is node and user.args[0] is not node):
        return True
    passes = user.op == "call_function" and (kind(user) in (Kind.SHAPE, Kind.SCALE) or name == "sqrt")
    return passes and "spec" in user.meta and only_divides(user)


def limits_functions(node: fx.Node) -> bool:
    """Whether a value is limited by a clamp that is no ReLU, and then read by general functions alone, as a mask before
    a softmax is: no synapse asks for spikes there, and the mask's numbers would coarsen the others'."""
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    if _name(node.target) not in ("clamp", "clamp_min") or low == 0:
        return False
    todo, seen = list(node.users), set()
    while todo:
        user = todo.pop()
        if user in seen:
            continue
        seen.add(user)
        found = kind(user) if user.op == "call_function" else None
        if found in (Kind.SHAPE, Kind.SCALE, Kind.SUM):
            todo.extend(user.users)
        elif found is not Kind.ANALOG:
            return False
    return bool(seen)
