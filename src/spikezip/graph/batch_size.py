"""The size of the batch stays free while ``torch.export`` runs a model; what fixes it is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves


class FixedBatchError(Exception):
    """An operation has made the batch's size a constant."""


class FreeBatch(TorchFunctionMode):
    """While it lasts, an operation that fixes a free size raises FixedBatchError, naming itself.

    torch computes some operations from others, and reads the sizes there as numbers: those in ``_SPELLED`` are written
    with others instead.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        free = [size for x in operands for size in x.shape if isinstance(size, torch.SymInt) and _is_free(size)]
        result = _SPELLED.get(func, func)(*args, **kwargs)
        if not all(map(_is_free, free)):
            name = resolve_name(func) or getattr(func, "__name__", str(func))
            raise FixedBatchError(f"{name} fixes the batch size")
        return result


def _is_free(size: torch.SymInt) -> bool:
    return size.node.maybe_as_int() is None


def _take_along_dim(x: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """``gather``, where both have the sizes of each other in all dimensions but one."""
    if dim is None:
        return x.flatten().gather(0, indices.flatten())
    dim %= x.dim()
    sizes = list(torch.broadcast_shapes(*[(*t.shape[:dim], 1, *t.shape[dim + 1 :]) for t in (x, indices)]))
    sizes[dim] = -1

    def fitted(t: Tensor) -> Tensor:
        return t if all(size in (-1, own) for own, size in zip(t.shape, sizes, strict=True)) else t.expand(sizes)

    return fitted(x).gather(dim, fitted(indices))


_SPELLED = dict.fromkeys((torch.take_along_dim, Tensor.take_along_dim), _take_along_dim)
