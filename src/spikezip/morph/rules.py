"""The rewriting rules, one row each: what it matches, what it puts there, why, and whose idea it is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from spikezip.errors import StageError
from spikezip.graph import network, ops, purity, rewrite, shapes
from spikezip.graph.modes import building
from spikezip.graph.network import Stage
from spikezip.graph.ops import Kind
from spikezip.morph.choices import Activation, BatchNorm, Morph, Pooling, Residual
from spikezip.morph.constants import fold_constants
from spikezip.morph.fold import fold_batch_norm, keep_batch_norm
from spikezip.morph.residual import add_spikes, inhibit_spikes, reroute_residuals, shortcut_membranes

_aten = torch.ops.aten


@dataclass(frozen=True)
class Rule:
    """One rewriting rule.

    Attributes:
        name: how the command line and the docs call it.
        why: one sentence.
        keeps: the network's function is kept (to rounding).
        source: whose idea.
        asked: whether the user's choices ask for it.
        apply: rewrites the network in place; returns how many places it changed.
    """

    name: str
    why: str
    keeps: bool
    source: str
    asked: Callable[[Morph], bool]
    apply: Callable[[fx.GraphModule], int]


def _always(_: Morph) -> bool:
    return True


def spell_attention(gm: fx.GraphModule) -> int:
    """``scaled_dot_product_attention(q, k, v)`` -> ``softmax(q k^T * scale + mask) v``; 0 where a mask hides a row."""
    count = 0
    for node in list(gm.graph.nodes):
        if node.target is not _aten.scaled_dot_product_attention.default:
            continue
        names = ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"]
        given = {**dict(zip(names, node.args)), **node.kwargs}
        q, k, v = given["query"], given["key"], given["value"]
        width, tokens, sources = q.meta["spec"].shape[-1], q.meta["spec"].shape[-2], k.meta["spec"].shape[-2]
        scale = given.get("scale") or 1.0 / math.sqrt(width)
        with gm.graph.inserting_before(node):

            def make(target, *args, node=node):
                return rewrite.call(gm, target, args, like=node)

            if given.get("enable_gqa") and (shared := q.meta["spec"].shape[-3] // k.meta["spec"].shape[-3]) > 1:
                k, v = (make(_aten.repeat_interleave.self_int, stream, shared, -3) for stream in (k, v))
            scores = make(_aten.mul.Tensor, make(_aten.matmul.default, q, make(_aten.transpose.int, k, -2, -1)), scale)
            mask, visible = given.get("attn_mask"), None
            if given.get("is_causal"):
                hidden = torch.full((tokens, sources), float("-inf"), device=network.device(gm)).triu(1)
                hidden = hidden.to(q.meta["spec"].dtype)
                mask = rewrite.new_constant(gm, f"{network.origin(node)}.causal_mask", hidden, like=node)
            elif isinstance(mask, fx.Node):
                visible = _hiding_rows(mask, make)
                if mask.meta["spec"].dtype is torch.bool:
                    stored = network.constant(mask)
                    if stored is None:
                        scores = make(_aten.where.ScalarOther, mask, scores, float("-inf"))
                        mask = None
                    else:
                        hidden = torch.zeros_like(stored, dtype=q.meta["spec"].dtype)
                        hidden = hidden.masked_fill(~stored, float("-inf"))
                        mask = rewrite.new_constant(gm, f"{network.origin(node)}.mask", hidden, like=node)
            if mask is not None:
                scores = make(_aten.add.Tensor, scores, mask)
            attention = make(_aten.softmax.int, scores, -1)
            if visible is not None:
                attention = make(_aten.where.ScalarOther, visible, attention, 0.0)
            result = make(_aten.matmul.default, attention, v)
        rewrite.replace(node, result)
        count += 1
    return shapes.rewritten(gm, count)


def _hiding_rows(mask: fx.Node, make: Callable[..., fx.Node]) -> fx.Node | None:
    """What a mask lets through, where it may hide all of a row: softmax alone would make NaN of that."""
    stored, truth = network.constant(mask), mask.meta["spec"].dtype is torch.bool
    if stored is not None and bool((stored if truth else stored > float("-inf")).any(-1).all()):
        return None
    return mask if truth else make(_aten.gt.Scalar, mask, float("-inf"))


def spell_fused_sums(gm: fx.GraphModule) -> int:
    """``addmm``, ``baddbmm`` other than ``bias + x W`` -> a product, perhaps scaled, and a sum."""
    count = 0
    for node in list(gm.graph.nodes):
        if node.target not in _FUSED:
            continue
        added, left, right = node.args[:3]
        if node.target is _aten.addmm.default and not node.kwargs and ops.bias_index(node) is not None:
            if network.constant(right) is not None:
                continue  # a linear layer
        alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
        with gm.graph.inserting_before(node):
            product = rewrite.call(gm, _FUSED[node.target], (left, right), like=node)
            if alpha != 1:
                product = rewrite.call(gm, _aten.mul.Tensor, (product, alpha), like=node)
            if beta != 1:
                added = rewrite.call(gm, _aten.mul.Tensor, (added, beta), like=node)
            new = product if beta == 0 else rewrite.call(gm, _aten.add.Tensor, (product, added), like=node)
        rewrite.replace(node, new)
        count += 1
    return shapes.rewritten(gm, count)


_FUSED = {_aten.addmm.default: _aten.mm.default, _aten.baddbmm.default: _aten.bmm.default}

_POOLS = {
    _aten.max_pool1d.default: _aten.avg_pool1d.default,
    _aten.max_pool2d.default: _aten.avg_pool2d.default,
    _aten.max_pool3d.default: _aten.avg_pool3d.default,
}


def average_pooling(gm: fx.GraphModule) -> int:
    """Max-pooling -> average pooling of the same window, border values averaged over what is there."""
    count = 0
    for node in list(gm.graph.nodes):
        if node.target not in _POOLS:
            continue
        args = [*node.args, *[None] * (6 - len(node.args))]
        x, kernel, stride, padding, dilation, ceil = args
        if dilation not in (None, 1) and any(d != 1 for d in dilation):
            continue  # no average pooling is dilated; max-pooling is exact anyway
        with gm.graph.inserting_before(node):
            window = (x, kernel, stride or kernel, padding or 0, bool(ceil), False)
            new = rewrite.call(gm, _POOLS[node.target], window, like=node)
        rewrite.replace(node, new)
        count += 1
    return shapes.rewritten(gm, count)


def only_relu(gm: fx.GraphModule) -> int:
    """Every activation function -> ReLU."""
    count = 0
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and "spec" in node.meta and ops.kind(node) is Kind.ACTIVATION:
            if network.op_name(node) in ("sigmoid", "hardsigmoid", "tanh"):
                continue  # gates, not activations: a ReLU in a squeeze-excitation would not be a gate
            if ops.only_divides(node) or ops.limits_functions(node):
                continue  # keeps a divisor or a function's argument within bounds, which a ReLU would not
            with gm.graph.inserting_before(node):
                new = rewrite.call(gm, _aten.relu.default, (node.args[0],), like=node)
            rewrite.replace(node, new)
            count += 1
    return shapes.rewritten(gm, count)


RULES: tuple[Rule, ...] = (
    Rule(
        "fold constants",
        "weights computed from weights become weights: foldable, roundable, countable",
        True,
        "constant folding",
        _always,
        fold_constants,
    ),
    Rule(
        "spell fused sums",
        "a product of two streams and a sum need rules of their own",
        True,
        "definition of the operation",
        _always,
        spell_fused_sums,
    ),
    Rule(
        "fold BatchNorm",
        "paths and time steps then share one affine map",
        True,
        "Jacob et al., CVPR 2018; before PET: ours, see docs",
        lambda choice: choice.batch_norm is BatchNorm.FOLDED,
        fold_batch_norm,
    ),
    Rule(
        "live BatchNorm",
        "each path of the ensemble can then have statistics of its own",
        True,
        "switchable BatchNorm, Yu et al., ICLR 2019",
        lambda choice: choice.batch_norm is BatchNorm.LIVE,
        keep_batch_norm,
    ),
    Rule(
        "spell attention",
        "its two products need neurons of their own",
        True,
        "SpikeZIP-TF, You et al., ICML 2024",
        _always,
        spell_attention,
    ),
    Rule(
        "average pooling",
        "a linear pooling; max-pooling is exact too, so this is a choice",
        False,
        "SpikeZIP",
        lambda choice: choice.pooling is Pooling.AVERAGE,
        average_pooling,
    ),
    Rule(
        "ReLU only",
        "a quantizer from 0 upwards contains ReLU",
        False,
        "SpikeZIP (LeakyReLU -> ReLU in YOLOv3)",
        lambda choice: choice.activation is Activation.RELU,
        only_relu,
    ),
    Rule(
        "residual connection re-routing (RCR)",
        "the identity path then carries integer sums of spikes and no neuron delays it",
        False,
        "SpikeZIP",
        lambda choice: choice.residual is Residual.RCR,
        reroute_residuals,
    ),
    Rule(
        "SEW residuals, ADD",
        "the sum of two branches of spikes, with nothing to delay the identity",
        False,
        "SEW ResNet, Fang et al., NeurIPS 2021",
        lambda choice: choice.residual is Residual.SEW_ADD,
        add_spikes,
    ),
    Rule(
        "SEW residuals, IAND",
        "spikes of the main branch take spikes of the shortcut away: what is sent on stays ternary",
        False,
        "SEW ResNet, Fang et al., NeurIPS 2021",
        lambda choice: choice.residual is Residual.IAND,
        inhibit_spikes,
    ),
    Rule(
        "membrane shortcuts (MS)",
        "identities hand currents on, so that no neuron delays them and synapses read single streams",
        False,
        "MS-ResNet, Hu et al., IEEE TNNLS 2024",
        lambda choice: choice.residual is Residual.MS,
        shortcut_membranes,
    ),
)


@building()
def morph(ann: fx.GraphModule, choice: Morph = Morph()) -> fx.GraphModule:
    """Rewrite an ANN into one that spikes can compute.

    Applies :data:`RULES` in order. Those that change the function are only applied when ``choice`` asks for them.

    Args:
        ann: what :func:`spikezip.capture` returned.
        choice: pooling, activations and residual wiring.

    Returns:
        A new ANN; morphing it again with the same choice changes nothing.

    Raises:
        StageError: ``ann`` is not an ANN, or a BatchNorm uses the statistics of the batch.
    """
    network.expect(ann, Stage.ANN, "morph")
    if not isinstance(choice, Morph):
        raise StageError(
            f"{choice!r} is no choice of shape; give Morph(), or for example Morph(residual=Residual.RCR)."
        )
    new = network.fork(ann)
    network.stamp(new)
    applied = {}
    for rule in RULES:
        if rule.asked(choice) and (count := rule.apply(new)):
            applied[rule.name] = count
    if applied:
        purity.refuse_batch_mixing(new)  # marks where the batch lies in the new nodes
    morphed = {**network.note(ann, "morphed", {}), **applied}
    residual = choice.residual
    rewiring = [rule for rule in RULES if rule.asked(Morph(residual=residual)) and not rule.asked(Morph())]
    if rewiring and not any(rule.name in morphed for rule in rewiring):
        warnings.warn(
            f"residual={residual.value} changed nothing: there is no block that it rewires, a ReLU of the sum of a "
            "branch and a shortcut.",
            stacklevel=3,
        )
        residual = Residual.VANILLA
    network.remark(
        new, morphed=morphed, pooling=choice.pooling.value, activation=choice.activation.value, residual=residual.value
    )
    return new
