"""BatchNorm: into the weights before it, so that all paths and time steps share one affine map; or kept to train."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn

from spikezip.errors import StageError
from spikezip.graph import network, ops, rewrite, shapes

_aten = torch.ops.aten
_WITHOUT_TRAINING = _aten._native_batch_norm_legit_no_training.default
_BATCH_NORMS = {
    _WITHOUT_TRAINING,
    _aten.batch_norm.default,
    _aten.native_batch_norm.default,
    _aten.cudnn_batch_norm.default,
}


_MODULES = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}

#: The class of all BatchNorm modules; in a captured graph these are the live ones.
LiveBatchNorm = nn.modules.batchnorm._BatchNorm


def fold_batch_norm(gm: fx.GraphModule) -> int:
    """Fold every BatchNorm of a network, live ones too, in place, and return how many there were.

    After a convolution or linear layer whose result nobody else reads, with ``a = gamma / sqrt(var + eps)``::

        W' = a W        b' = a (b - mean) + beta

    Anywhere else it becomes one multiplication and one addition per channel. Computed in float64, stored in the
    weights' own type. Weights shared by several layers are copied first. Frozen parameters
    give frozen ones.

    Raises:
        StageError: a BatchNorm uses the statistics of the batch.

    Source: Jacob et al., CVPR 2018, section 3.2.
    """
    live = {node for node, _ in network.modules_of(gm, LiveBatchNorm)}
    count = 0
    for node in list(gm.graph.nodes):
        if _is_function(node) or node in live:
            _fold(gm, node)
            count += 1
    return shapes.rewritten(gm, count)


def keep_batch_norm(gm: fx.GraphModule) -> int:
    """Make every BatchNorm a module that training keeps live, in place, and return how many there were.

    A graph is captured with the statistics as constants. As a module under its author's name it has its own copy of
    them and of its weight and bias, and follows the data in training mode.

    Raises:
        StageError: a BatchNorm uses the statistics of the batch.
    """
    count = 0
    for node in list(gm.graph.nodes):
        if not _is_function(node):
            continue
        _affine(node)  # refuses what has no statistics
        gamma, beta, mean, var = (network.constant(a) for a in node.args[1:5])
        momentum, eps = node.args[-2:] if node.target is _WITHOUT_TRAINING else node.args[6:8]
        assert mean is not None and var is not None
        source = node.args[0]
        assert isinstance(source, fx.Node)
        kind = _MODULES[len(network.spec(source).shape)]
        rate = None if node.meta.get("cumulative") else float(momentum)  # type: ignore[arg-type]
        module = kind(len(mean), float(eps), rate).to(mean.device, mean.dtype).eval()  # type: ignore[arg-type]
        values = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": var}
        for name, value in values.items():
            if value is not None:
                getattr(module, name).data.copy_(value.detach())
            if name in ("weight", "bias"):
                getattr(module, name).requires_grad_(value is not None and value.requires_grad)
        name = _place_of(gm, node)
        gm.set_submodule(name, module)
        result = _result(gm, node)
        with gm.graph.inserting_before(node):
            new = gm.graph.call_module(name, (source,))
        new.meta = {"origin": node.meta.get("origin", ""), "spec": network.spec(result)}
        rewrite.replace(result, new)
        if node is not result:
            gm.graph.erase_node(node)
        count += 1
    return shapes.rewritten(gm, count)


def refuse_live(gm: fx.GraphModule, verb: str) -> None:
    """Raise StageError naming the first live BatchNorm of a network."""
    for node, _ in network.modules_of(gm, LiveBatchNorm):
        raise StageError(
            f"{network.describe(node)} is a live BatchNorm, and {verb}() takes a network without. Call finetune(), "
            "which folds it when training is done, or morph(ann), which folds it at once."
        )


def _is_function(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in _BATCH_NORMS


def _place_of(gm: fx.GraphModule, norm: fx.Node) -> str:
    """The author's name for a BatchNorm, if nothing but its own tensors is stored there; else a free one."""
    name = rewrite.plain(network.origin(norm))
    own = {str(n.target) for n in norm.all_input_nodes if n.op == "get_attr"}
    try:
        holder = gm.get_submodule(name)
    except AttributeError:
        return rewrite.free_name(gm, name)
    held = {f"{name}.{tensor}" for tensor in holder.state_dict()}
    return name if name and type(holder) is nn.Module and held <= own else rewrite.free_name(gm, name)


def weight_before(norm: fx.Node) -> fx.Node | None:
    """The weight of the layer that a BatchNorm can be folded into; None where it will be a product and a sum."""
    source = norm.args[0]
    if not isinstance(source, fx.Node) or source.op != "call_function" or len(source.users) > 1:
        return None
    weight = ops.weight_of(source)
    return weight if weight is not None and _channels_match(source) else None


def _fold(gm: fx.GraphModule, norm: fx.Node) -> None:
    factor, shift = _affine(norm)
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    result = _result(gm, norm)
    weight_node = weight_before(norm)
    with gm.graph.inserting_before(norm):
        if weight_node is not None:
            new = _fold_into(gm, source, weight_node, factor, shift, _own(norm))
        else:
            new = _stand_alone(gm, norm, source, factor, shift)
    rewrite.replace(result, new)
    if norm is not result:
        gm.graph.erase_node(norm)


def _result(gm: fx.GraphModule, norm: fx.Node) -> fx.Node:
    """The node that holds a BatchNorm's result: itself, or the one that picks it from its several answers."""
    readers = list(norm.users)
    if not readers or any(u.target is not operator.getitem for u in readers):
        return norm
    for other in [u for u in readers if u.args[1] != 0]:
        if other.users:
            raise StageError(f"{network.describe(norm)} hands out its statistics; only its result can be used.")
        gm.graph.erase_node(other)
    return next(u for u in readers if u.args[1] == 0)


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


def _own(norm: fx.Node) -> tuple[Tensor | None, Tensor | None]:
    """A BatchNorm's weight and bias."""
    if norm.op == "call_module":
        module = norm.graph.owning_module.get_submodule(str(norm.target))  # type: ignore[union-attr]
        return module.weight, module.bias  # type: ignore[return-value]
    return network.constant(norm.args[1]), network.constant(norm.args[2])


def _affine(norm: fx.Node) -> tuple[Tensor, Tensor]:
    """``factor`` and ``shift`` per channel, in float64."""
    if norm.op == "call_module":
        module = norm.graph.owning_module.get_submodule(str(norm.target))  # type: ignore[union-attr]
        assert isinstance(module, LiveBatchNorm)
        mean, var = module.running_mean, module.running_var
        training, eps = False, module.eps
    else:
        mean, var = (network.constant(a) for a in norm.args[3:5])
        training = norm.target is not _WITHOUT_TRAINING and bool(norm.args[5])
        eps = norm.args[6 if norm.target is _WITHOUT_TRAINING else 7]
    if mean is None or var is None or training:
        raise StageError(
            f"{network.describe(norm)} normalises by the statistics of the batch (track_running_stats=False, or "
            "mode): one image would change another's answer. Give it running statistics."
        )
    gamma, beta = _own(norm)
    factor = torch.rsqrt(var.double() + float(eps))  # type: ignore[arg-type]
    if gamma is not None:
        factor = factor * gamma.detach().double()
    shift = -mean.double() * factor
    if beta is not None:
        shift = shift + beta.detach().double()
    return factor, shift


def _fold_into(
    gm: fx.GraphModule,
    layer: fx.Node,
    weight_node: fx.Node,
    factor: Tensor,
    shift: Tensor,
    own: tuple[Tensor | None, Tensor | None],
) -> fx.Node:
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
    new_weight = rewrite.new_constant(
        gm, base, rewrite.parameter_of(wide.to(weight.dtype), (weight, own[0])), like=layer
    )
    new_bias = rewrite.new_constant(
        gm,
        base.rpartition(".")[0] + ".bias" if "." in base else base + "_bias",
        rewrite.parameter_of(shift.to(weight.dtype), (bias, *own)),
        like=layer,
    )
    if name in ("mm", "addmm"):
        left = layer.args[-2]  # type: ignore[index]
        new = rewrite.call(gm, _aten.addmm.default, (new_bias, left, new_weight), like=layer)
    else:
        args = list(layer.args) + [None] * (3 - len(layer.args))
        args[1:3] = [new_weight, new_bias]
        new = rewrite.call(gm, layer.target, tuple(args), like=layer)  # type: ignore[arg-type]
    return new


def _stand_alone(gm: fx.GraphModule, norm: fx.Node, source: fx.Node, factor: Tensor, shift: Tensor) -> fx.Node:
    dims = len(network.spec(source).shape)
    shape = [1, -1] + [1] * (dims - 2)
    dtype = network.spec(source).dtype
    base = network.origin(norm)
    own = _own(norm)
    weight = rewrite.parameter_of(factor.reshape(shape).to(dtype), own[:1])
    added = rewrite.parameter_of(shift.reshape(shape).to(dtype), own)
    scale = rewrite.new_constant(gm, f"{base}.weight", weight, like=norm)
    bias = rewrite.new_constant(gm, f"{base}.bias", added, like=norm)
    product = rewrite.call(gm, _aten.mul.Tensor, (source, scale), like=norm)
    return rewrite.call(gm, _aten.add.Tensor, (product, bias), like=norm)


def _name(node: fx.Node) -> str:
    return network.op_name(node)
