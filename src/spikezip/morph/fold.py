"""BatchNorm into the weights before it, so that all paths and all time steps share one affine map."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn

from spikezip.errors import StageError
from spikezip.graph import network, ops

_aten = torch.ops.aten
_BATCH_NORMS = {
    _aten._native_batch_norm_legit_no_training.default,
    _aten.batch_norm.default,
    _aten.native_batch_norm.default,
    _aten.cudnn_batch_norm.default,
}


def fold_batch_norm(gm: fx.GraphModule) -> int:
    """Fold every BatchNorm of a network, in place, and return how many there were.

    After a convolution or linear layer whose result nobody else reads, with ``a = gamma / sqrt(var + eps)``::

        W' = a W        b' = a (b - mean) + beta

    Anywhere else it becomes one multiplication and one addition per channel. Computed in float64, stored in the
    weights' own type. Weights shared by several layers are copied first.

    Raises:
        StageError: a BatchNorm uses the statistics of the batch.

    Source: Jacob et al., CVPR 2018, section 3.2.
    """
    count = 0
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and node.target in _BATCH_NORMS:
            _fold(gm, node)
            count += 1
    if count:
        network.tidy(gm)
        network.annotate(gm, anew=False)
    return count


def _fold(gm: fx.GraphModule, norm: fx.Node) -> None:
    factor, shift = _affine(norm)
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    result = norm
    readers = list(norm.users)
    if all(u.target is operator.getitem for u in readers) and readers:
        used = [u for u in readers if u.args[1] == 0]
        for other in [u for u in readers if u.args[1] != 0]:
            if other.users:
                raise StageError(f"{network.describe(norm)} hands out its statistics; only its result can be used.")
            gm.graph.erase_node(other)
        result = used[0]
    weight_node = ops.weight_of(source) if source.op == "call_function" else None
    foldable = weight_node is not None and len(source.users) == 1 and _channels_match(source)
    with gm.graph.inserting_before(norm):
        if foldable:
            assert weight_node is not None
            new = _fold_into(gm, source, weight_node, factor, shift)
        else:
            new = _stand_alone(gm, norm, source, factor, shift)
    network.replace(result, new)
    if norm is not result:
        gm.graph.erase_node(norm)


def _channels_match(layer: fx.Node) -> bool:
    """Whether BatchNorm's channels, dimension 1, are what the layer's weight makes, and its bias is a stored one."""
    name = _name(layer)
    if layer.kwargs or name == "matmul":  # addmm(alpha=, beta=) scales its parts
        return False
    if not name.startswith("conv") and len(network.spec(layer).shape) != 2:
        return False  # linear on [B, L, C]: BatchNorm1d normalises L
    place = {"addmm": 0, "mm": len(layer.args)}.get(name, 2)
    bias = next(iter(layer.args[place : place + 1]), None)
    return bias is None or network.constant(bias) is not None


def _affine(norm: fx.Node) -> tuple[Tensor, Tensor]:
    """``factor`` and ``shift`` per channel, in float64."""
    gamma, beta, mean, var = (network.constant(a) for a in norm.args[1:5])
    training = norm.target is not _aten._native_batch_norm_legit_no_training.default and bool(norm.args[5])
    if mean is None or var is None or training:
        raise StageError(
            f"{network.describe(norm)} normalises by the statistics of the batch (track_running_stats=False, or "
            "mode): one image would change another's answer. Give it running statistics."
        )
    eps = float(norm.args[6] if norm.target is _aten._native_batch_norm_legit_no_training.default else norm.args[7])  # type: ignore[arg-type]
    factor = torch.rsqrt(var.double() + eps)
    if gamma is not None:
        factor = factor * gamma.detach().double()
    shift = -mean.double() * factor
    if beta is not None:
        shift = shift + beta.detach().double()
    return factor, shift


def _fold_into(gm: fx.GraphModule, layer: fx.Node, weight_node: fx.Node, factor: Tensor, shift: Tensor) -> fx.Node:
    weight = network.constant(weight_node)
    assert weight is not None
    name = _name(layer)
    wide = weight.detach().double()
    if name.startswith("conv_transpose"):
        groups = int(layer.args[6]) if len(layer.args) > 6 else 1  # type: ignore[arg-type]
        grouped = wide.reshape(groups, wide.shape[0] // groups, *wide.shape[1:])
        per_group = factor.reshape(groups, 1, -1, *[1] * (wide.dim() - 2))
        wide = (grouped * per_group).reshape(wide.shape)
    else:
        dim = ops.out_channel_dim(layer) % wide.dim()
        wide = wide * factor.reshape([-1 if i == dim else 1 for i in range(wide.dim())])
    index = ops.bias_index(layer)
    bias = network.constant(layer.args[index]) if index is not None else None
    shift = shift + (bias.detach().double() * factor if bias is not None else 0)
    base = str(weight_node.target)
    new_weight = network.new_constant(gm, base, nn.Parameter(wide.to(weight.dtype)), like=layer)
    new_bias = network.new_constant(
        gm,
        base.rpartition(".")[0] + ".bias" if "." in base else base + "_bias",
        nn.Parameter(shift.to(weight.dtype)),
        like=layer,
    )
    if name in ("mm", "addmm"):
        left = layer.args[-2]  # type: ignore[index]
        new = network.call(gm, _aten.addmm.default, (new_bias, left, new_weight), like=layer)
    else:
        args = list(layer.args) + [None] * (3 - len(layer.args))
        args[1:3] = [new_weight, new_bias]
        new = network.call(gm, layer.target, tuple(args), like=layer)  # type: ignore[arg-type]
    return new


def _stand_alone(gm: fx.GraphModule, norm: fx.Node, source: fx.Node, factor: Tensor, shift: Tensor) -> fx.Node:
    dims = len(network.spec(source).shape)
    shape = [1, -1] + [1] * (dims - 2)
    dtype = network.spec(source).dtype
    base = network.origin(norm)
    scale = network.new_constant(gm, f"{base}.weight", nn.Parameter(factor.reshape(shape).to(dtype)), like=norm)
    bias = network.new_constant(gm, f"{base}.bias", nn.Parameter(shift.reshape(shape).to(dtype)), like=norm)
    product = network.call(gm, _aten.mul.Tensor, (source, scale), like=norm)
    return network.call(gm, _aten.add.Tensor, (product, bias), like=norm)


def _name(node: fx.Node) -> str:
    return network.op_name(node)
