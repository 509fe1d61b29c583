"""The integers a quantizer, and the tracer of its neuron, may take: the one truth both share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikezip.errors import StageError


@dataclass(frozen=True)
class Levels:
    """The admissible integers ``lowest..highest`` of a quantizer and of the ST-BIF neuron it becomes.

    The quantizer is ``Q(u) = clip(floor(u / scale + 1/2), lowest, highest)``; zero is always admissible, as the
    neuron starts there.

    Args:
        lowest: least code, at most 0.
        highest: greatest code, at least 0.

    Raises:
        StageError: the range is empty or excludes 0, or its ends are no whole numbers.

    >>> Levels.unsigned(8)
    Levels(lowest=0, highest=7)
    >>> Levels.signed(8)
    Levels(lowest=-4, highest=3)
    >>> Levels.unsigned(8).codes(torch.tensor([-1.0, 0.25, 0.24, 9.0]), 0.5)
    tensor([0., 1., 0., 7.])

    Source: SpikeZIP (ICLR 2025 submission); SpikeZIP-TF, You et al., ICML 2024, eq. 4.
    """

    lowest: int
    highest: int

    def __post_init__(self):
        if not all(isinstance(end, int) and not isinstance(end, bool) for end in (self.lowest, self.highest)):
            raise StageError(f"levels {self.lowest!r}..{self.highest!r}: give whole numbers, such as Levels(0, 7).")
        if not self.lowest <= 0 <= self.highest or self.lowest == self.highest:
            raise StageError(
                f"levels {self.lowest}..{self.highest} are not admissible: a neuron starts at 0, so the range must hold"
                " 0 and one more integer. Use for example Levels(0, 7) or Levels(-4, 3)."
            )

    @classmethod
    def unsigned(cls, count: int) -> Levels:
        """``count`` levels from 0: ``0..count-1``. (The paper's *n steps* are ``Levels(0, n)``.)"""
        return cls(0, count - 1)

    @classmethod
    def signed(cls, count: int) -> Levels:
        """``count`` levels around 0, one more below for an even count: ``-count//2 .. (count-1)//2``."""
        return cls(-(count // 2), (count - 1) // 2)

    @property
    def count(self) -> int:
        """How many levels there are."""
        return self.highest - self.lowest + 1

    @property
    def range(self) -> int:
        """``highest - lowest``: the most spikes a neuron may need to get from one code to another."""
        return self.highest - self.lowest

    @property
    def magnitude(self) -> int:
        """The greatest magnitude of a code."""
        return max(self.highest, -self.lowest)

    @property
    def storage(self) -> torch.dtype:
        """The shortest type of whole numbers that holds every level."""
        kinds = (torch.int8, torch.int16, torch.int32)
        fits = (k for k in kinds if torch.iinfo(k).min <= self.lowest and self.highest <= torch.iinfo(k).max)
        return next(fits, torch.int64)

    def codes(self, drive: Tensor, scale: Tensor | float) -> Tensor:
        """The code of each accumulated drive: ``clip(floor(drive / scale + 1/2), lowest, highest)``.

        Args:
            drive: accumulated input ``U``, any shape.
            scale: threshold ``theta`` > 0, scalar or broadcastable.

        Returns:
            Whole numbers, in ``drive``'s floating-point type and shape.
        """
        return torch.clamp(torch.floor(drive / scale + 0.5), self.lowest, self.highest)
