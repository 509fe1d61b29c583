"""What nirtorch has to be told of NIR's nodes, to run the graphs of :mod:`spikezip.export.nir`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def nirtorch_nodes() -> dict[Any, Callable[[Any], nn.Module]]:
    """The ``node_map`` of ``nirtorch.nir_to_torch(graph, nirtorch_nodes(), dtype=torch.float64)``.

    Integrators, thresholds and factors, for which nirtorch has no rule; affine and flattening nodes, as its own (2.6)
    leave out the bias, and count the batch as a dimension.

    Raises:
        OutputError: the package ``nir`` is not installed.
    """
    from spikezip.export.nir import needed

    nir = needed()
    return {
        nir.Affine: _affine,
        nir.Flatten: lambda node: nn.Flatten(int(node.start_dim) + 1),
        nir.I: lambda node: _Integrator(node.r),
        nir.Scale: lambda node: _Scale(node.scale),
        nir.Threshold: lambda node: _Threshold(node.threshold),
    }


class _Node(nn.Module):
    """A node with an array."""

    values: Tensor

    def __init__(self, values: Any):
        super().__init__()
        self.register_buffer("values", torch.as_tensor(np.asarray(values)))


class _Integrator(_Node):
    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = self.values * x if state is None else state + self.values * x
        return total, total


class _Threshold(_Node):
    def forward(self, x: Tensor) -> Tensor:
        return (x > self.values).to(x.dtype)


class _Scale(_Node):
    def forward(self, x: Tensor) -> Tensor:
        return self.values * x


def _affine(node: Any) -> nn.Linear:
    layer = nn.Linear(*node.weight.shape[::-1])
    layer.weight.data, layer.bias.data = torch.as_tensor(node.weight), torch.as_tensor(node.bias)
    return layer
