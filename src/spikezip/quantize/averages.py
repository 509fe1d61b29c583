"""Averages as sums and a factor: whole numbers stay whole, and the factor goes into a unit."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.graph import network, ops, rewrite, shapes
from spikezip.graph.ops import Kind

_aten = torch.ops.aten


def spell_averages(gm: fx.GraphModule) -> int:
    """Average pooling and means -> a sum over the window, times one over its size, in place; returns how many.

    Where windows differ in size (a border that is not counted), the factor is a tensor. Adaptive pooling with windows
    that overlap, and interpolation, are left: their results are rounded to fixed point.
    """
    count = 0
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or "spec" not in node.meta or ops.kind(node) is not Kind.AVERAGE:
            continue
        with gm.graph.inserting_before(node):
            found = _sum_and_sizes(gm, node)
            if found is None:
                continue
            total, sizes = found
            if total is not node.args[0]:  # how far it goes follows from how far the average went
                total.meta["averages"] = node.name, sizes if isinstance(sizes, int) else int(sizes.max())
            factor: Any = 1.0 / sizes if isinstance(sizes, int) else None
            if isinstance(sizes, Tensor):
                inverse = (1.0 / sizes).to(network.spec(node).dtype)
                factor = rewrite.new_constant(gm, f"{network.origin(node)}.factor", inverse, like=node)
            new = rewrite.call(gm, _aten.mul.Tensor, (total, factor), like=node) if factor != 1.0 else total
            if new is not total:
                new.meta["averages"] = node.name, 1
        new.meta.setdefault("spec", network.spec(node))  # an average of it may be next
        rewrite.replace(node, new)
        count += 1
    return shapes.rewritten(gm, count)


def _sum_and_sizes(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, int | Tensor] | None:
    name, x = network.op_name(node), node.args[0]
    assert isinstance(x, fx.Node)
    before, after = network.spec(x), network.spec(node)
    if name == "mean" and len(node.args) > 1 and not node.kwargs:
        keep = node.args[2] if len(node.args) > 2 else False
        total = rewrite.call(gm, _aten.sum.dim_IntList, (x, node.args[1], keep), like=node)
        return total, max(before.numel // max(after.numel, 1), 1)
    if name.startswith("adaptive_avg_pool"):
        dims = int(name[-2])
        sizes, wanted = before.shape[-dims:], after.shape[-dims:]
        if sizes == wanted:
            return x, 1
        if all(want % size == 0 for size, want in zip(sizes, wanted, strict=True)):  # every window holds one value
            for dim, (size, want) in enumerate(zip(sizes, wanted, strict=True), start=-dims):
                x = rewrite.call(gm, _aten.repeat_interleave.self_int, (x, want // size, dim), like=node)
            return x, 1
        if any(size % want for size, want in zip(sizes, wanted, strict=True)):
            return None
        kernel = [size // want for size, want in zip(sizes, wanted, strict=True)]
        if math.prod(wanted) == 1:
            total = rewrite.call(gm, _aten.sum.dim_IntList, (x, list(range(-dims, 0)), True), like=node)
        else:
            total = _pool(gm, node, x, kernel, kernel, [0] * dims, False)
        return total, math.prod(kernel)
    if name in ("avg_pool1d", "avg_pool2d", "avg_pool3d"):
        dims = int(name[-2])
        rest = [*node.args[2:], *[[], 0, False, True, None][len(node.args) - 2 :]]
        kernel = _each(node.args[1], dims)  # type: ignore[misc]
        stride, padding = _each(rest[0], dims) or kernel, _each(rest[1], dims)
        ones = torch.ones(1, *before.shape[1:], dtype=torch.float64, device=network.device(gm))
        target: Any = node.target
        share = target(ones, *node.args[1:])
        whole = _total(ones, kernel, stride, padding, bool(rest[2]))
        sizes = (whole / share).round().flatten(0, -dims - 1)[0]  # images, and channels where there are any
        total = _pool(gm, node, x, kernel, stride, padding, bool(rest[2]))
        return total, int(sizes.max()) if bool((sizes == sizes.max()).all()) else sizes
    return None


def _each(value: Any, dims: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * dims if len(values) == 1 else values


def _total(x: Tensor, kernel: list[int], stride: list[int], padding: list[int], ceil: bool) -> Tensor:
    if len(kernel) == 1:
        return _aten.avg_pool2d(x.unsqueeze(-2), [1, *kernel], [1, *stride], [0, *padding], ceil, True, 1).squeeze(-2)
    pool: Any = _aten.avg_pool2d if len(kernel) == 2 else _aten.avg_pool3d
    return pool(x, kernel, stride, padding, ceil, True, 1)


def _pool(
    gm: fx.GraphModule,
    node: fx.Node,
    x: fx.Node,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil: bool,
) -> fx.Node:
    """A pool that adds: average pooling with a divisor of 1."""
    if len(kernel) > 1:
        target: Any = _aten.avg_pool2d.default if len(kernel) == 2 else _aten.avg_pool3d.default
        return rewrite.call(gm, target, (x, kernel, stride, padding, ceil, True, 1), like=node)
    flat = rewrite.call(gm, _aten.unsqueeze.default, (x, -2), like=node)
    args = (flat, [1, *kernel], [1, *stride], [0, *padding], ceil, True, 1)
    total = rewrite.call(gm, _aten.avg_pool2d.default, args, like=node)
    return rewrite.call(gm, _aten.squeeze.dim, (total, -2), like=node)
