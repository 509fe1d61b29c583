"""Several readings of one network, paths or time steps, in one batch: a graph that shares its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.graph import network, ops
from spikezip.graph.network import Spec
from spikezip.morph.fold import LiveBatchNorm
from spikezip.quantize.quantizer import Quantizer


def in_one_batch(
    qann: fx.GraphModule,
    shares: Sequence[float],
    read: Callable[[Any, int], nn.Module],
    bias_shares: nn.Module | None = None,
) -> fx.GraphModule:
    """The network on ``P`` readings of its input at once, one call per operation.

    Args:
        qann: a graph with quantizers, whose batch is merged into no other dimension.
        shares: for each reading, the share of its input and of its biases that it is given.
        read: what takes the ``P*B`` values of a quantizer, or a live BatchNorm, in its place; told the dimension of the
            samples.
        bias_shares: gives the shares of the biases, ``[P]``, if they are other than those of the input.

    Returns:
        A GraphModule from ``[B, ...]`` to ``[P, B, ...]`` with the parameters of ``qann`` itself.
    """
    graph, kept = copy_of(qann)
    nodes = list(graph.nodes)
    released_by: Any = shares
    if bias_shares is not None:
        kept["bias_shares"] = bias_shares
        with graph.inserting_before(next(n for n in nodes if n.op != "placeholder")):
            released_by = graph.call_module("bias_shares")
    for node in nodes:
        if node.op == "placeholder":
            with graph.inserting_after(node):
                released = graph.call_function(_released, (node, shares))
            node.replace_all_uses_with(released, delete_user_cb=lambda user, new=released: user is not new)
        elif node.op == "call_module" and isinstance(module := kept[str(node.target)], Quantizer | LiveBatchNorm):
            kept[str(node.target)] = read(module, batch_dim_of(node))
        elif node.op == "output":
            with graph.inserting_before(node):
                node.args = (
                    fx.map_arg(node.args[0], lambda n: graph.call_function(parted, (n, len(shares), batch_dim_of(n)))),
                )
        elif node.op == "call_function" and ops.bias_index(node) is not None:
            if bias_shares is not None or min(shares) < 1:
                _release_bias(graph, node, released_by)
    return fx.GraphModule(kept, graph)


def copy_of(qann: fx.GraphModule) -> tuple[fx.Graph, dict[str, Any]]:
    """The graph anew, and what its nodes refer to: the very modules and tensors."""
    graph = fx.Graph()
    result = graph.graph_copy(qann.graph, {})
    graph.output(result)
    kept: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            owner, _, leaf = str(node.target).rpartition(".")
            kept[str(node.target)] = getattr(qann.get_submodule(owner), leaf)
    return graph, kept


def batch_dim_of(node: fx.Node) -> int:
    """The dimension of a node's value that holds the samples."""
    spec = node.meta.get("spec")
    return spec.batch_dim if isinstance(spec, Spec) and spec.batch_dim is not None else 0


def parted(x: Tensor, paths: int, dim: int) -> Tensor:
    """A batch that holds path after path (or step after step), as ``[P, B, ...]``."""
    return x.unflatten(dim, (paths, x.shape[dim] // paths)).movedim(dim, 0)


def _released(x: Any, shares: Sequence[float]) -> Any:
    if not isinstance(x, Tensor):
        return x
    return torch.cat([x if share == 1 or not x.is_floating_point() else share * x for share in shares])


def _release_bias(graph: fx.Graph, node: fx.Node, shares: Any) -> None:
    """Split a synaptic operation into its product and a bias of which each step has its share."""
    index = ops.bias_index(node)
    assert index is not None
    bias = node.args[index]
    with graph.inserting_after(node):
        spatial = len(network.spec(node).shape) - 2 if network.op_name(node).startswith("conv") else 0
        added = graph.call_function(_with_bias, (node, bias, shares, spatial, batch_dim_of(node)))
    node.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)
    if index == 0:  # addmm: bias + a b
        node.target, node.args = torch.matmul, node.args[1:]
    else:
        node.args = tuple(None if i == index else a for i, a in enumerate(node.args))


def _with_bias(bare: Tensor, bias: Tensor, shares: Sequence[float] | Tensor, spatial: int, dim: int) -> Tensor:
    steps = bare.unflatten(dim, (len(shares), bare.shape[dim] // len(shares)))
    column = shares.to(bias) if isinstance(shares, Tensor) else bias.new_tensor(shares)
    column = column.reshape([-1 if i == dim else 1 for i in range(steps.dim())])
    return (steps + column * bias.reshape(-1, *[1] * spatial)).flatten(dim, dim + 1)
