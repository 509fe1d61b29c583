"""How the input, and the biases, are handed to the network over time: as a share of their final value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from spikezip.errors import StageError


@runtime_checkable
class Encoding(Protocol):
    """The share of its final value that a signal has reached by step t.

    Any schedule is exact that reaches 1 at a finite step ``t_off`` and stays there (condition C3).
    """

    name: ClassVar[str]

    def share(self, t: int, steps: int) -> float:
        """The share reached by step ``t`` (from 1) of a run of ``steps`` steps."""
        ...

    def t_off(self, steps: int) -> int:
        """The first step at which the share is 1."""
        ...


@dataclass(frozen=True)
class Pulse:
    """Everything at the first step: the paper's analog encoding.

    >>> [Pulse().share(t, 4) for t in (1, 2, 3)]
    [1.0, 1.0, 1.0]
    """

    name: ClassVar[str] = "pulse"

    def share(self, t: int, steps: int) -> float:
        return 1.0

    def t_off(self, steps: int) -> int:
        return 1


@dataclass(frozen=True)
class Even:
    """Evenly released: ``1/release`` of the signal a step for ``release`` steps (the paper's T_off).

    >>> [Even(4).share(t, 8) for t in (1, 2, 4, 5)]
    [0.25, 0.5, 1.0, 1.0]
    """

    release: int
    name: ClassVar[str] = "even"

    def __post_init__(self):
        if isinstance(self.release, bool) or not isinstance(self.release, int) or self.release < 1:
            raise StageError(f"Even({self.release!r}): the release lasts a whole number of steps, at least 1.")

    def share(self, t: int, steps: int) -> float:
        return min(t / self.release, 1.0)

    def t_off(self, steps: int) -> int:
        return self.release


@dataclass(frozen=True)
class Constant:
    """A constant current for the whole run: ``1/steps`` of the signal a step, so that the last step completes it.

    >>> [Constant().share(t, 4) for t in (1, 2, 4)]
    [0.25, 0.5, 1.0]
    """

    name: ClassVar[str] = "constant"

    def share(self, t: int, steps: int) -> float:
        return min(t / steps, 1.0)

    def t_off(self, steps: int) -> int:
        return steps


@dataclass(frozen=True)
class Shares:
    """Any schedule: by step ``t``, ``reached[t - 1] / reached[-1]`` of the signal has arrived; at the end, all of it.

    Args:
        reached: whole numbers of parts that have arrived by each step, none above the last, which is a power of two:
            shares are then short binary fractions, and exact wherever biases are.

    >>> [Shares((1, 3, 4)).share(t, 8) for t in (1, 2, 3, 4)]
    [0.25, 0.75, 1.0, 1.0]
    """

    reached: tuple[int, ...]
    name: ClassVar[str] = "shares"

    def __post_init__(self):
        parts = self.reached
        whole = parts[-1] if parts else 0
        if any(isinstance(p, bool) or not isinstance(p, int) or not 0 <= p <= whole for p in parts) or (
            whole not in _WHOLES
        ):
            raise StageError(
                f"Shares({parts}): give how many parts have arrived by each step, none above the last, which is a "
                f"power of two up to {_WHOLES[-1]}, for example Shares((1, 3, 4))."
            )

    def share(self, t: int, steps: int) -> float:
        return self.reached[min(t, len(self.reached)) - 1] / self.reached[-1]

    def t_off(self, steps: int) -> int:
        late = [t for t, parts in enumerate(self.reached, 1) if parts < self.reached[-1]]
        return late[-1] + 1 if late else 1


_WHOLES = tuple(2**bits for bits in range(13))


def parse_encoding(text: str) -> Pulse | Even | Constant | Shares:
    """``pulse``, ``even:8``, ``constant`` or ``shares:1/3/4`` as written on a command line or in a recipe.

    >>> parse_encoding("even:8")
    Even(release=8)
    """
    head, _, tail = text.partition(":")
    if head == "pulse" and not tail:
        return Pulse()
    if head == "constant" and not tail:
        return Constant()
    if head == "even" and re.fullmatch("[0-9]{1,9}", tail) and int(tail) >= 1:
        return Even(int(tail))
    if head == "shares" and all(re.fullmatch("[0-9]{1,5}", part) for part in tail.split("/")):
        return Shares(tuple(int(part) for part in tail.split("/")))
    raise StageError(
        f"There is no encoding {text!r}. Use 'pulse', 'even:N' (N steps, for example even:8), 'constant', or "
        "'shares:A/B/...' (parts arrived by each step, for example shares:1/3/4)."
    )


def encoding_text(encoding: Encoding) -> str:
    """The inverse of :func:`parse_encoding`."""
    match encoding:
        case Even(release):
            return f"even:{release}"
        case Shares(reached):
            return f"shares:{'/'.join(map(str, reached))}"
    return encoding.name
