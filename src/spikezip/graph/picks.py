"""One place of each sample, ``x[arange(B), i]``, spelled so that nothing counts the samples of a batch."""

from __future__ import annotations

import math

import torch
from torch import fx

from spikezip.graph import network, rewrite, shapes

_aten = torch.ops.aten
_KEEP_ROWS = {
    _aten.unsqueeze.default,
    _aten.reshape.default,
    _aten.expand.default,
    _aten.to.dtype,
    _aten._to_copy.default,
}


def spell_picks(gm: fx.GraphModule) -> int:
    """``x[arange(B), i]`` -> ``gather(x, i)`` along the dimension that ``i`` indexes; ``x[arange(B)]`` -> ``x``.

    A gather reads each sample by itself, in a batch of any samples in any order. It takes no negative places, so these
    are counted from the end first.
    """
    count = 0
    for node in list(gm.graph.nodes):
        if node.target is not _aten.index.Tensor:
            continue
        x, indices = node.args
        dims = [dim for dim, index in enumerate(indices) if index is not None]
        if dims[0] != 0 or not _counts_rows(indices[0]) or not _by_rows(x):
            continue
        if dims == [0] and len(network.spec(indices[0]).shape) == 1:
            rewrite.replace(node, x)
        elif len(dims) == 2 and _covers(indices[dims[1]], indices[0]):
            _as_gather(gm, node, x, dims[1], indices[dims[1]])
        else:
            continue
        count += 1
    return shapes.rewritten(gm, count)


def _as_gather(gm: fx.GraphModule, node: fx.Node, x: fx.Node, dim: int, index: fx.Node) -> None:
    size, several = network.spec(x).shape[dim], network.spec(index).shape[1:]
    rest = network.spec(node).shape[1 + len(several) :]
    with gm.graph.inserting_before(node):

        def make(target, *args):
            return rewrite.call(gm, target, args, like=node)

        if network.spec(index).dtype is not torch.int64:
            index = make(_aten.to.dtype, index, torch.int64)
        from_end = make(_aten.add.Tensor, index, size)
        index = make(_aten.where.self, make(_aten.lt.Scalar, index, 0), from_end, index)
        index = make(_aten.reshape.default, index, [-1, math.prod(several), *[1] * len(rest)])
        index = make(_aten.expand.default, index, [-1, -1, *rest])
        x = x if dim == 1 else make(_aten.movedim.int, x, dim, 1)
        new = make(_aten.gather.default, x, 1, index)
        if math.prod(several) != 1 or len(several) != 1:
            new = make(_aten.reshape.default, new, [-1, *several, *rest])
    rewrite.replace(node, new)


def _by_rows(node: fx.Node) -> bool:
    """Whether the first dimension counts samples, and nothing else."""
    spec = network.spec(node)
    return spec.batch_dim == 0 and spec.shape[0] == 1


def _counts_rows(node: fx.Node) -> bool:
    """Whether row ``b`` of a value is ``b`` throughout, whatever the batch."""
    while _by_rows(node) and node.target in _KEEP_ROWS:
        node = node.args[0]  # type: ignore[assignment]
    if not _by_rows(node) or network.op_name(node) != "arange":
        return False
    start, _, step = {1: (0, *node.args, 1), 2: (*node.args, 1), 3: node.args}[len(node.args)]
    return start == 0 and step == 1


def _covers(index: fx.Node, rows: fx.Node) -> bool:
    """Whether an index has places for each sample, and the shape of the result."""
    spec = network.spec(index)
    wanted = torch.broadcast_shapes(spec.shape, network.spec(rows).shape)
    return _by_rows(index) and spec.dtype in (torch.int32, torch.int64) and spec.shape == wanted
