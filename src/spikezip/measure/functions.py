"""What a general function costs in one evaluation: counted where it is arithmetic, named where it is not."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from spikezip.graph import network, ops
from spikezip.graph.ops import Kind

#: What is said of a function that is in none of these tables.
NO_RULE = "no rule counts it"
#: Comparisons per value of functions that only compare.
_COMPARES = {
    "relu": 1, "relu6": 2, "hardtanh": 2, "clamp": 2, "clamp_min": 1, "maximum": 1, "minimum": 1, "sign": 1,
    "gt": 1, "ge": 1, "lt": 1, "le": 1, "eq": 1, "ne": 1,
}  # fmt: skip
#: Those that compare all values of a dimension.
_EXTREMES = {"max", "min", "amin", "argmax", "argmin"}
#: The same of functions that compare and then multiply: (comparisons, multiplications, additions) per value.
_PIECEWISE = {
    "leaky_relu": (1, 1, 0),
    "prelu": (1, 1, 0),
    "hardsigmoid": (2, 1, 1),
    "hardswish": (2, 2, 1),
    "square": (0, 1, 0),
    "abs": (1, 0, 0),
    "neg": (0, 0, 0),
    "rsub": (0, 0, 1),
    "where": (0, 0, 0),
    "fill": (0, 0, 0),
}
_NORMS = {"layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm"}
_EVALUATED = {
    "silu", "sigmoid", "gelu", "tanh", "elu", "selu", "celu", "mish", "softplus", "exp", "expm1", "erf", "log",
    "log1p", "sqrt", "rsqrt", "reciprocal", "div", "pow", "sin", "cos",
}  # fmt: skip
#: Beside what moves values about: rows read from a table, complex numbers taken apart and put together.
_MOVES = {"embedding", "index", "view_as_real", "view_as_complex", "complex"}
_SOFTMAX = {"softmax", "_softmax", "log_softmax", "_log_softmax"}


def cost_of(node: fx.Node) -> tuple[dict[str, float], str | None]:
    """(counts of one evaluation for one image, what of it is not counted).

    LayerNorm and its kin: mean, variance, normalisation and affine map are 3 multiplications and 4 additions a value;
    the reciprocal root of each row is not counted. Softmax: one comparison, addition and multiplication a value; the
    exponentials are not counted. ``scaled_dot_product_attention``: its two matrix products as MACs, and its softmax.
    """
    name = network.op_name(node)
    size = float(network.spec(node).numel) if "spec" in node.meta else 0.0
    if name in _COMPARES:
        return {"compare": _COMPARES[name] * size}, None
    if name in _PIECEWISE:
        compare, mul, add = _PIECEWISE[name]
        return {"compare": compare * size, "mul": mul * size, "add": add * size}, None
    if name in _EXTREMES:
        return {"compare": float(sum(network.spec(n).numel for n in ops.data_operands(node))) - size}, None
    if name in _EVALUATED and ops.data_operands(node):
        return {}, f"{size:.0f} evaluations of {name}"
    if name in _NORMS:
        size = size or float(network.spec(node.all_input_nodes[0]).numel)
        return {"mul": 3 * size, "add": 4 * size}, "the reciprocal square root of each row"
    if name in ("rms_norm", "_fused_rms_norm"):
        size = size or float(network.spec(node.all_input_nodes[0]).numel)
        return {"mul": 3 * size, "add": size}, "the reciprocal square root of each row"
    if name == "linalg_vector_norm" and node.args[1:2] in ((), (2,)):
        read = float(network.spec(node.all_input_nodes[0]).numel)
        return {"mul": read, "add": read}, f"the root of {size:.0f} sums"
    if name in _SOFTMAX:
        return {"mul": size, "add": size, "compare": size}, f"{size:.0f} exponentials and the division of each row"
    if name == "scaled_dot_product_attention":
        return _attention(node)
    if name.startswith("upsample_bilinear") or name.startswith("upsample_bicubic") or name.startswith("_upsample"):
        taps = 16 if "bicubic" in name else 4
        return {"mac": taps * size}, None
    if name in _MOVES or ops.kind(node) is Kind.SHAPE:
        return {}, None  # also moved by a mask or by places: no arithmetic
    if name in ("add", "sub", "mul", "div") and not ops.data_operands(node):
        return {}, None
    return {}, f"{name}: {NO_RULE}"


def _attention(node: fx.Node) -> tuple[dict[str, float], str]:
    query, key, value = (network.spec(a).shape for a in node.args[:3])  # type: ignore[arg-type]
    heads = math.prod(query[:-2])
    scores = float(heads * query[-2] * key[-2])
    counts: dict[str, Any] = {
        "mac": scores * (query[-1] + value[-1]),
        "mul": 2 * scores,
        "add": scores,
        "compare": scores,
    }
    return counts, f"{scores:.0f} exponentials and the division of each row of its softmax"
