"""The ST-BIF neuron: a quantizer, followed at no more than a few levels a step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spikezip.errors import StageError
from spikezip.levels import Levels


def membrane_step(
    membrane: Tensor, tracer: Tensor, current: Tensor, threshold: Tensor | float, levels: Levels
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of ST-BIF as published (what hardware does).

    ::

        v <- v + i            o = +1 if v >= theta and S < highest;  -1 if v < 0 and S > lowest;  else 0
        v <- v - theta*o      S <- S + o                              v_0 = theta/2, S_0 = 0

    Args:
        membrane: ``v`` before the step, any shape.
        tracer: ``S`` before the step, whole numbers, same shape.
        current: ``i`` of this step, same shape.
        threshold: ``theta`` > 0.
        levels: the tracer's limits.

    Returns:
        (membrane, tracer, spikes) after the step; spikes are -1, 0 or +1.

    Source: You et al., "SpikeZIP-TF", ICML 2024, eq. 5-8.
    """
    membrane = membrane + current
    spikes = spikes_of(membrane, tracer, threshold, levels)
    return membrane - threshold * spikes, tracer + spikes, spikes


def spikes_of(membrane: Tensor, tracer: Tensor, threshold: Tensor | float, levels: Levels) -> Tensor:
    """Which neurons fire, -1, 0 or +1: the rule of :func:`membrane_step` on the membrane after its current."""
    up = (membrane >= threshold) & (tracer < levels.highest)
    down = (membrane < 0) & (tracer > levels.lowest)
    return up.to(tracer.dtype) - down.to(tracer.dtype)


class STBIF(nn.Module):
    """A layer of spike-tracking bipolar integrate-and-fire neurons, in cumulative form.

    With ``U_t`` all that a neuron has received, the published neuron is exactly::

        S_t = S_{t-1} + clip(Q(U_t) - S_{t-1}, -slew, +slew)        Q(u) = clip(floor(u/theta + 1/2), lowest, highest)

    The layer holds no state: the tracer is passed in and out, and begins at ``S_0 = initial``.

    Args:
        levels: limits of the tracer, those of the quantizer.
        threshold: theta > 0, the quantizer's scale.
        slew: levels per step; 1 is the paper's ternary spike, larger ones are graded spikes.
        initial: the code at which every tracer of the layer starts, ``S_0``; or one code a neuron, in the shape of
            the layer's tracers of one sample.

    >>> neuron = STBIF(Levels(0, 3), torch.tensor(1.0))
    >>> tracer = torch.zeros(1)
    >>> for t in range(3):
    ...     tracer = neuron(torch.tensor([2.0]), tracer)
    >>> tracer
    tensor([2.])

    Source: the identity is derived in docs/theorem.md; the neuron is You et al., ICML 2024.
    """

    threshold: Tensor
    initial_codes: Tensor | None

    def __init__(self, levels: Levels, threshold: Tensor, slew: int = 1, initial: int | Tensor = 0):
        super().__init__()
        _check_slew(slew)
        codes = initial.to(levels.storage) if isinstance(initial, Tensor) else None
        if codes is None:
            fits = isinstance(initial, int) and not isinstance(initial, bool)
            fits = fits and levels.lowest <= initial <= levels.highest
        else:
            fits = codes.numel() > 0 and bool(((codes == initial) & (codes >= levels.lowest)).all())
            fits = fits and int(codes.max()) <= levels.highest
        if not fits:
            raise StageError(f"initial={initial!r}: a tracer starts at one of its codes, {levels}.")
        self.levels = levels
        self.slew = slew
        self.initial_code = initial if isinstance(initial, int) else 0
        self.register_buffer("initial_codes", codes)
        self.register_buffer("threshold", threshold.detach().clone())

    def target(self, drive: Tensor) -> Tensor:
        """Where the tracer is heading: ``Q(drive)``, the QANN's code; where the drive is NaN, the lowest.

        A quotient of two sums is 0/0 before spikes arrive: such a drive reaches no level.
        """
        return self.levels.codes(drive, self.threshold).nan_to_num(self.levels.lowest)

    def forward(self, drive: Tensor, tracer: Tensor) -> Tensor:
        """The tracer after one step with accumulated input ``drive`` (same shape)."""
        most = min(self.slew, self.levels.range)  # a slew that no type of numbers holds is none that limits
        return tracer + torch.clamp(self.target(drive) - tracer, -most, most)

    def start(self, like: Tensor) -> Tensor:
        """The tracers before any step, in shape and type of ``like``."""
        if self.initial_codes is None:
            return torch.full_like(like, self.initial_code)
        return self.initial_codes.to(like).expand_as(like)

    @property
    def starts(self) -> tuple[int, int]:
        """The least and the greatest initial code of the layer."""
        if self.initial_codes is None:
            return self.initial_code, self.initial_code
        return int(self.initial_codes.min()), int(self.initial_codes.max())

    @property
    def starts_elsewhere(self) -> bool:
        """Whether a tracer starts at another code than 0, where the paper's do."""
        return self.starts != (0, 0)

    def settling_steps(self, *, from_start: bool = False) -> int:
        """The most steps it may need once its drive is constant, the first included.

        ``from_start``: if that is so from the first step on, so that it has gone nowhere before.
        """
        _check_slew(self.slew)  # it may have been set since
        if from_start:
            least, most = self.starts
            return -(-max(self.levels.highest - least, most - self.levels.lowest) // self.slew)
        return -(-self.levels.range // self.slew)

    def extra_repr(self) -> str:
        said = f"{self.levels.lowest}..{self.levels.highest}, theta={float(self.threshold):.4g}, slew={self.slew}"
        least, most = self.starts
        return said if least == most == 0 else f"{said}, from {least}" + (f"..{most}" if least < most else "")


def _check_slew(slew: object) -> None:
    if isinstance(slew, bool) or not isinstance(slew, int) or slew < 1:
        raise StageError(f"slew={slew!r}: a neuron moves a whole number of levels a step, at least 1.")


def check_start(code: object, layers: Iterable[Levels]) -> None:
    """Raise StageError unless tracers of a network with these levels may start at a code, a whole number, 0 or more.

    It counts in layers without negative codes alone: there it is at most the highest code of all of them.
    """
    if isinstance(code, bool) or not isinstance(code, int) or code < 0:
        raise StageError(f"initial_code={code!r}: tracers start at a whole number, 0 or more.")
    highest = max((levels.highest for levels in layers if levels.lowest >= 0), default=code)
    if code > highest:
        raise StageError(
            f"initial_code={code} is above all codes of layers without negative ones; the highest is {highest}. Lower "
            "it."
        )


def starting_code(levels: Levels, code: int) -> int:
    """Where the tracers of a layer start, if those of the network start at ``code``: 0 where codes may be negative.

    >>> [starting_code(levels, 2) for levels in (Levels(0, 7), Levels(0, 1), Levels(-4, 3))]
    [2, 1, 0]
    """
    return 0 if levels.lowest < 0 else min(code, levels.highest)
