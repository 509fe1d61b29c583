"""The paths of paths-ensemble training (PET): one network, read at several numbers of levels."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from spikezip.errors import RecipeError, StageError
from spikezip.levels import Levels
from spikezip.spike.encoding import Encoding, Even, Pulse


@dataclass(frozen=True)
class Reading:
    """How one path reads a quantizer: scale ``factor * s`` and admissible codes ``levels``."""

    factor: float
    levels: Levels


@dataclass(frozen=True)
class Main:
    """The QANN itself: every quantizer as it is. It is always path 0 of an ensemble."""

    def reading(self, levels: Levels) -> Reading:
        """Factor 1 and the quantizer's own levels."""
        return Reading(1.0, levels)

    def __str__(self) -> str:
        return "main"


@dataclass(frozen=True)
class Capped:
    """The quantizers' scale ``s``, with codes of magnitude ``top`` at most.

    ``Q_p(u) = clip(floor(u/s + 1/2), max(lowest, -top), min(highest, top))``: what an SNN holds at step ``t = top``
    when its whole input arrives at ``t = 1`` (pulse) and no neuron lags.

    >>> Capped(2).reading(Levels(-4, 7))
    Reading(factor=1.0, levels=Levels(lowest=-2, highest=2))

    Source: derived in spikezip (a neuron sends one spike a step at most). Departs: the SpikeZIP paper re-scales all
    its sub-paths, which matches even release only.
    """

    top: int

    def __post_init__(self):
        _check_steps(self.top, "Capped")

    def reading(self, levels: Levels) -> Reading:
        """Factor 1, codes within ``-top..top``."""
        return Reading(1.0, _within(levels, self.top))

    def __str__(self) -> str:
        return f"capped{self.top}"


@dataclass(frozen=True)
class Rescaled:
    """Fewer, coarser levels over the same range: scale ``s * n / t`` with codes up to ``t``.

    ``Q_p(u) = clip(floor(u t / (n s) + 1/2), max(lowest, -t), min(highest, t))``: what an SNN holds at step ``t``
    when its input and biases arrive evenly over ``n`` steps and no neuron lags (times ``t/n``, which linear operations
    pass on).

    Args:
        steps: ``t``, the sub-path's greatest code.
        release: ``n``, the steps of the even release; None takes each quantizer's own greatest magnitude, with which
            the sub-path clips where the main path does.

    >>> Rescaled(2).reading(Levels(0, 7))
    Reading(factor=3.5, levels=Levels(lowest=0, highest=2))

    Source: SpikeZIP (ICLR 2025 submission), "one scale re-scaled with the level". Departs: where one
    side of the range is shorter it keeps the codes a neuron may hold, ``max(lowest, -t)``, not its part of the range.
    """

    steps: int
    release: int | None = None

    def __post_init__(self):
        _check_steps(self.steps, "Rescaled")
        if self.release is not None and self.release < self.steps:
            raise StageError(
                f"Rescaled({self.steps}, release={self.release}): the release ends before the step. Use at most "
                f"{self.release} steps, or Capped({self.steps})."
            )

    def reading(self, levels: Levels) -> Reading:
        """Factor ``n / t`` (1 at least), codes within ``-t..t``."""
        release = levels.magnitude if self.release is None else self.release
        return Reading(max(release / self.steps, 1.0), _within(levels, self.steps))

    def __str__(self) -> str:
        return f"rescaled{self.steps}"


class PathScale(enum.Enum):
    """Whose scales a sub-path reads."""

    SHARED = "shared"  #: the QANN's, times the path's factor: what the SNN holds at its first steps
    FREE = "free"  #: its own, which start there, are trained beside the network, and are dropped at the end


class PathStatistics(enum.Enum):
    """Whose statistics normalise a sub-path where BatchNorm is live."""

    PRIVATE = "private"  #: its own, as in switchable BatchNorm; they are dropped at the end
    SHARED = "shared"  #: those of all paths together, so that all have the affine map that is folded at the end


Path: TypeAlias = Main | Capped | Rescaled


def paths_for(encoding: Encoding, levels: Levels) -> tuple[Path, ...]:
    """The sub-paths that train what an SNN computes in its first steps, for the encoding it will run with.

    Args:
        encoding: how the input will be handed to the SNN.
        levels: the quantizers' levels (the widest, if they differ).

    Returns:
        ``Capped`` 1, 2, 4 for a pulse, those below the main path's greatest code; ``Rescaled`` 2, 4, 8 for an even
        release, those before its end.

    Raises:
        RecipeError: the encoding is another.

    >>> [str(p) for p in paths_for(Pulse(), Levels(0, 7))], [str(p) for p in paths_for(Even(7), Levels(0, 7))]
    (['capped1', 'capped2', 'capped4'], ['rescaled2', 'rescaled4'])
    """
    match encoding:
        case Pulse() | Even(1):
            return tuple(Capped(top) for top in (1, 2, 4) if top < levels.magnitude)
        case Even(release):
            return tuple(Rescaled(steps, release) for steps in (2, 4, 8) if steps < release)
    raise RecipeError(
        f"There are no default paths for {encoding!r}: only a pulse and an even release of N steps have some. "
        "Train for Even(N) with the N steps it will run, or give the paths."
    )


def names_of(paths: tuple[Path, ...]) -> list[str]:
    """Each path's name in a log; the release is told where two would be called the same without.

    >>> names_of((Main(), Rescaled(2, 8), Rescaled(4), Rescaled(4, 8)))
    ['main', 'rescaled2', 'rescaled4', 'rescaled4of8']
    """
    short = [str(path) for path in paths]
    return [
        f"{name}of{path.release}" if isinstance(path, Rescaled) and path.release and short.count(name) > 1 else name
        for name, path in zip(short, paths, strict=True)
    ]


def _within(levels: Levels, steps: int) -> Levels:
    return Levels(max(levels.lowest, -steps), min(levels.highest, steps))


def _check_steps(steps: int, name: str) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise StageError(f"{name}({steps!r}): a path needs a whole number of levels, 1 or more.")
