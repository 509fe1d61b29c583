"""The values that each weight of a layer is multiplied by, and the sums of their products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

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
        settings: Any = [*node.args[3:], *[[1], [0], [1], 1][max(len(node.args) - 3, 0) :]]
        flat = weight.dim() == 3

        def of_both(values: list[int], missing: int) -> list[int]:
            return [missing, *values] if flat else list(values) * (3 - len(values))

        stride, padding, dilation = (of_both(v, m) for v, m in zip(settings[:3], (1, 0, 1), strict=True))
        kernel = of_both([*weight.shape[2:]], 1)
        return cls(settings[3], {"kernel_size": kernel, "dilation": dilation, "padding": padding, "stride": stride})

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
        total: Tensor | float = 0.0
        for seen in self.columns(x):
            seen = F.pad(seen, (0, 0, 0, 1), value=1.0) if one else seen
            total = total + seen @ seen.mT
        assert isinstance(total, Tensor)
        return total
