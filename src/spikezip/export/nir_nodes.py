"""What each node of NIR does, as a torch module: for :func:`spikezip.export.nir_play.play`, and to tell nirtorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def nirtorch_nodes() -> dict[Any, Callable[[Any], nn.Module]]:
    """The ``node_map`` of ``nirtorch.nir_to_torch(graph, nirtorch_nodes(), dtype=torch.float64)``.

    nirtorch (2.6) has no rule for integrators, thresholds and factors; its own leave out the bias of an affine node and
    the padding of a sum over windows, and count the batch as a dimension of what is flattened.

    Raises:
        OutputError: the package ``nir`` is not installed.
    """
    from spikezip.export.nir import needed

    nir = needed()
    return {getattr(nir, kind): make for kind, make in NODES.items()}


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


def _linear(node: Any) -> nn.Linear:
    return _filled(nn.Linear(*node.weight.shape[::-1], bias=hasattr(node, "bias")), node)


def _convolution(node: Any) -> nn.Module:
    kind: Any = {3: nn.Conv1d, 4: nn.Conv2d}[node.weight.ndim]
    outs, ins, *window = node.weight.shape
    places = (_numbers(each) for each in (node.stride, node.padding, node.dilation))
    groups = int(node.groups)
    return _filled(kind(ins * groups, outs, window, *places, groups), node)


def _filled(layer: Any, node: Any) -> Any:
    layer.weight.data = torch.as_tensor(node.weight)
    if layer.bias is not None:
        layer.bias.data = torch.as_tensor(node.bias)
    return layer


def _sum_pool(node: Any) -> nn.Module:
    size, stride, padding = (_numbers(each) for each in (node.kernel_size, node.stride, node.padding))
    return nn.AvgPool2d(size, stride, padding, divisor_override=1)


def _numbers(values: Any) -> Any:
    return tuple(int(v) for v in np.asarray(values).flatten())


#: The nodes that :func:`spikezip.export.nir.to_nir` writes, but for inputs and outputs.
NODES: dict[str, Callable[[Any], nn.Module]] = {
    "Affine": _linear,
    "Conv1d": _convolution,
    "Conv2d": _convolution,
    "Flatten": lambda node: nn.Flatten(int(node.start_dim) + 1),
    "I": lambda node: _Integrator(node.r),
    "Linear": _linear,
    "Scale": lambda node: _Scale(node.scale),
    "SumPool2d": _sum_pool,
    "Threshold": lambda node: _Threshold(node.threshold),
}
