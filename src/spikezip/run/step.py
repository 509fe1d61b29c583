"""One operation of an SNN at given shares of its bias, and the layout of a layer's neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from spikezip.graph import network, ops
from spikezip.graph.network import Spec
from spikezip.kernels import conv2d


def bias_of(node: fx.Node) -> int | None:
    """Where a call_function node keeps a stored bias; None where it has none."""
    return ops.bias_index(node) if node.op == "call_function" else None


def operation_of(node: fx.Node) -> Callable[..., Any]:
    """What a call_function node computes with."""
    return conv2d if node.target is torch.ops.aten.conv2d.default else node.target  # type: ignore[return-value]


def without_bias(node: fx.Node, args: tuple[Any, ...], index: int) -> Tensor:
    """The operation's result without its bias."""
    if index == 0:  # addmm: bias + a b
        return torch.matmul(args[1], args[2])
    bare = list(args)
    bare[index] = None
    return operation_of(node)(*bare, **node.kwargs)


def shaped_bias(node: fx.Node, bias: Tensor) -> Tensor:
    """The bias shaped so that it broadcasts over the operation's result."""
    if network.op_name(node).startswith("conv"):
        return bias.reshape(-1, *[1] * (len(network.spec(node).shape) - 2))
    return bias


def at_share(node: fx.Node, args: tuple[Any, ...], share: float, kwargs: dict[str, Any]) -> Tensor:
    """The operation's result with ``share`` of its bias; at a share of 1 the very operation of the QANN."""
    index = bias_of(node)
    if index is None or share == 1.0:
        return operation_of(node)(*args, **kwargs)
    return without_bias(node, args, index) + share * shaped_bias(node, args[index])


def first_tensor(returned: Any) -> Tensor:
    """The first tensor that a network returned, however it returns it."""
    return next(leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor))


def images_first(value: Tensor, spec: Spec, images: int) -> Tensor:
    """A layer's values as ``[images, ...]`` whatever dimension holds the batch (and what it is merged with)."""
    dim = spec.batch_dim or 0
    value = value.movedim(dim, 0) if dim else value
    if value.shape[0] != images:
        merged = value.shape[0] // images
        if spec.inner:
            return value.reshape(merged, images, *value.shape[1:]).movedim(1, 0)
        if spec.stretch:
            apart = value.reshape(merged // spec.stretch, images, spec.stretch, *value.shape[1:])
            return apart.movedim(1, 0).flatten(1, 2)
        value = value.reshape(images, merged, *value.shape[1:])
    return value


def scattered(spec: Spec) -> bool:
    """Whether the images are neither the slowest nor the fastest index, so that rows cannot be told apart."""
    return spec.batch_dim is not None and not (spec.outer or spec.inner)


def untold(spec: Spec) -> bool:
    """Whether nobody knows which of a layer's neurons are which image's, so that all images settle together."""
    return scattered(spec) and not spec.stretch


def pieces(inputs: tuple[Tensor, ...], batch: int) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """So many images of every input at a time, each time with the number of the first."""
    for start in range(0, inputs[0].shape[0], batch):
        yield start, tuple(x[start : start + batch] for x in inputs)


def outputs_first(gm: fx.GraphModule, values: Any, images: int) -> tuple[Tensor, ...]:
    """What a network returned, one tensor or several, as ``[images, ...]`` each."""
    several = values if isinstance(values, tuple) else (values,)
    return tuple(images_first(v, network.spec(n), images) for v, n in zip(several, network.outputs(gm), strict=True))


def images_back(value: Tensor, spec: Spec) -> Tensor:
    """The inverse of :func:`images_first`."""
    dim = spec.batch_dim or 0
    if value.dim() > len(spec.shape):
        merged = value.shape[0] * value.shape[1]
        if spec.stretch:
            value = value.unflatten(1, (-1, spec.stretch))
        value = value.movedim(0, 1) if spec.inner or spec.stretch else value
        value = value.reshape(merged, *value.shape[3 if spec.stretch else 2 :])
    return value.movedim(0, dim) if dim else value
