"""The values that each weight of a layer is multiplied by, and the sums of their products."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from spikezip.graph import ops

_aten = torch.ops.aten
_PRODUCTS = (_aten.linear.default, _aten.addmm.default, _aten.mm.default, _aten.matmul.default)
_CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default)
_AT_ONCE = 1024  #: windows of a convolution that are written out, or one image's


@dataclass(frozen=True)
class Windows:
    """How a layer sees its input: all output channels of a group multiply the same windows of it.

    Attributes:
        groups: of a convolution; 1 for a matrix product.
        geometry: keywords of ``F.unfold``; None where a window is the input's last dimension.
    """

    groups: int = 1
    geometry: dict[str, Any] | None = None

    @classmethod
    def of(cls, node: fx.Node, weight: Tensor) -> Windows | None:
        """Of a layer with a stored weight; None where it is no product of a matrix, or convolution of one or two
        dimensions."""
        if node.kwargs or (node.target in _PRODUCTS and weight.dim() != 2):
            return None
        if node.target in _PRODUCTS:
            return cls()
        if node.target not in _CONVOLUTIONS:
            return None
        kernel = [*weight.shape[2:]]
        stride, padding, dilation, groups = ops.geometry(node, len(kernel))
        if len(kernel) == 1:
            kernel, stride, padding, dilation = [1, *kernel], [1, *stride], [0, *padding], [1, *dilation]
        return cls(groups, {"kernel_size": kernel, "dilation": dilation, "padding": padding, "stride": stride})

    def columns(self, x: Tensor) -> Iterator[Tensor]:
        """All windows of ``x``, as ``[groups, values of a window, windows]``, some images at a time."""
        if self.geometry is None:
            yield x.flatten(0, -2).T.unsqueeze(0)
            return
        x = x if x.dim() == 4 else x.unsqueeze(2)
        for part in x.split(max(1, _AT_ONCE // max(1, x[0, 0].numel()))):
            seen = F.unfold(part, **self.geometry).unflatten(1, (self.groups, -1))
            yield seen.permute(1, 2, 0, 3).flatten(2)

    def products(self, x: Tensor, *, one: bool) -> Tensor:
        """The sums over windows of the products of every two values: ``[groups, values, values]``; with ``one``, of the
        number 1 as a further value of each."""
        columns = (F.pad(seen, (0, 0, 0, 1), value=1.0) if one else seen for seen in self.columns(x))
        return functools.reduce(torch.add, (seen @ seen.mT for seen in columns))
