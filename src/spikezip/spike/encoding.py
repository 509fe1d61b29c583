"""How the input, and the biases, are handed to the network over time: as a share of their final value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from spikezip.errors import StageError


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
    """Evenly released: ``1/steps`` of the signal a step for ``release`` steps (the paper's T_off).

    >>> [Even(4).share(t, 8) for t in (1, 2, 4, 5)]
    [0.25, 0.5, 1.0, 1.0]
    """

    release: int
    name: ClassVar[str] = "even"

    def __post_init__(self):
        if not isinstance(self.release, int) or self.release < 1:
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


def parse_encoding(text: str) -> Pulse | Even | Constant:
    """``pulse``, ``even:8`` or ``constant`` as written on a command line or in a recipe.

    >>> parse_encoding("even:8")
    Even(release=8)
    """
    head, _, tail = text.partition(":")
    if head == "pulse" and not tail:
        return Pulse()
    if head == "constant" and not tail:
        return Constant()
    if head == "even" and tail.isdigit() and int(tail) >= 1:
        return Even(int(tail))
    raise StageError(
        f"There is no encoding {text!r}. Use 'pulse', 'even:N' (N steps, for example even:8) or 'constant'."
    )


def encoding_text(encoding: Encoding) -> str:
    """The inverse of :func:`parse_encoding`."""
    return f"even:{encoding.release}" if isinstance(encoding, Even) else encoding.name
