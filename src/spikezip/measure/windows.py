"""Pooling windows: how many hold each position, and averages as plain sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from spikezip.graph import network


def _each(value: Any, dims: int, default: int) -> list[int]:
    """A pooling argument as one number per dimension (an empty list and None mean the default)."""
    if value is None or value == []:
        return [default] * dims
    if isinstance(value, int):
        return [value] * dims
    values = [int(v) for v in value]
    return values * dims if len(values) == 1 else values


def result_of(node: fx.Node) -> fx.Node:
    """The node itself, or the first of its several results (adaptive max-pooling gives indices too)."""
    if "spec" in node.meta:
        return node
    return next(user for user in node.users if network.op_name(user) == "getitem" and user.args[1] == 0)


def _bins(length: int, out: int) -> list[range]:
    """The windows of adaptive pooling along one dimension."""
    return [range(i * length // out, -((i + 1) * length // -out)) for i in range(out)]


def _strided(out: int, kernel: int, stride: int, padding: int, dilation: int) -> list[range]:
    return [range(i * stride - padding, i * stride - padding + kernel * dilation, dilation) for i in range(out)]


def _along_dims(node: fx.Node, dims: int) -> list[list[range]]:
    before = network.spec(node.all_input_nodes[0]).shape[-dims:]
    after = network.spec(result_of(node)).shape[-dims:]
    if network.op_name(node).startswith("adaptive"):
        return [_bins(n, m) for n, m in zip(before, after, strict=True)]
    given = [*node.args[1:], *[None] * 4]
    kernel = _each(given[0], dims, 1)
    stride = [s or k for s, k in zip(_each(given[1], dims, 0), kernel, strict=True)]
    padding, dilation = _each(given[2], dims, 0), _each(given[3], dims, 1)
    return [_strided(*each) for each in zip(after, kernel, stride, padding, dilation, strict=True)]


def _outer(counts: list[list[int]]) -> Tensor:
    result = torch.ones((), dtype=torch.float64)
    for row in counts:
        result = result.unsqueeze(-1) * torch.tensor(row, dtype=torch.float64)
    return result


def windows_per_position(node: fx.Node) -> Tensor:
    """For a max-pool, how many of its windows hold each position of its input; padding holds none. ``[*spatial]``.

    >>> from spikezip.graph import capture
    >>> pool = capture(torch.nn.Sequential(torch.nn.MaxPool1d(3, 2, 1)), torch.rand(1, 1, 5))
    >>> windows_per_position(next(n for n in pool.graph.nodes if "max_pool" in n.name)).tolist()
    [1.0, 2.0, 1.0, 2.0, 1.0]
    """
    name = network.op_name(node)
    if name == "amax":
        return torch.ones(network.spec(node.all_input_nodes[0]).shape, dtype=torch.float64)
    dims = int(name[-2])
    shape = network.spec(node.all_input_nodes[0]).shape[-dims:]
    counts = []
    for length, windows in zip(shape, _along_dims(node, dims), strict=True):
        counts.append([sum(i in window for window in windows) for i in range(length)])
    return _outer(counts)


def summed(node: fx.Node, x: Tensor) -> Tensor | None:
    """An average without its division: each window's sum; None for averages of unequal weights (bilinear, ...)."""
    name = network.op_name(node)
    if name in ("sum", "cumsum"):
        return node.target(x, *node.args[1:], **_without_dtype(node))  # type: ignore[operator]
    if name == "mean":
        result = node.target(x, *node.args[1:], **_without_dtype(node))  # type: ignore[operator]
        return result * (x.numel() / max(result.numel(), 1))
    if name in ("avg_pool1d", "avg_pool2d", "avg_pool3d"):
        return _pooled_sum(node, x, int(name[-2]))
    if name in ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"):
        sizes = [[len(window) for window in windows] for windows in _along_dims(node, int(name[-2]))]
        return node.target(x, *node.args[1:]) * _outer(sizes).to(x)  # type: ignore[operator]
    return None


def _pooled_sum(node: fx.Node, x: Tensor, dims: int) -> Tensor:
    given = [*node.args[1:], *[None] * 5]
    kernel = _each(given[0], dims, 1)
    stride = [s or k for s, k in zip(_each(given[1], dims, 0), kernel, strict=True)]
    padding, ceil = _each(given[2], dims, 0), bool(given[3])
    if dims == 3:
        return F.avg_pool3d(x, kernel, stride, padding, ceil, divisor_override=1)
    if dims == 2:
        return F.avg_pool2d(x, kernel, stride, padding, ceil, divisor_override=1)
    flat = F.avg_pool2d(x.unsqueeze(-2), (1, kernel[0]), (1, stride[0]), (0, padding[0]), ceil, divisor_override=1)
    return flat.squeeze(-2)


def _without_dtype(node: fx.Node) -> dict[str, Any]:
    return {k: v for k, v in node.kwargs.items() if k != "dtype"}
