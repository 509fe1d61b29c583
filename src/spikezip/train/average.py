"""Averaged weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of a network's weights.

    ``a <- d a + (1 - d) w`` after each step, with ``d = min(decay, (1 + k) / (10 + k))``.

    Args:
        network: whose floating-point tensors are followed.
        decay: share of the average that a step keeps; less during the first steps ``k``.

    Source: Polyak & Juditsky, SIAM J. Control Optim. 1992; the warm-up is TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.steps = 0
        self._live = {n: t for n, t in network.state_dict().items() if t.is_floating_point()}
        self.tensors = {name: tensor.clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Follow the network after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, tensor in self._live.items():
            self.tensors[name].lerp_(tensor, 1 - decay)

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Go on from a checkpoint."""
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)
        self.steps = steps

    @torch.no_grad()
    def put(self) -> None:
        """Give the network its averaged weights."""
        for name, tensor in self._live.items():
            tensor.copy_(self.tensors[name])

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The network has its averaged weights inside the block, and its own again after it."""
        own = {name: tensor.clone() for name, tensor in self._live.items()}
        self.put()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self._live.items():
                    tensor.copy_(own[name])
