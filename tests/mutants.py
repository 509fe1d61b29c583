"""ST-BIF in exact rational arithmetic, and wrong versions of it that the theorem's tests must tell apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from spikezip.levels import Levels
from spikezip.spike import membrane_step


class Exact:
    """A rational number with as much of a tensor's face as ``membrane_step`` uses: the library's own code, exact."""

    dtype = None

    def __init__(self, value: Fraction | int | bool):
        self.value = Fraction(value)

    def to(self, _: None) -> Exact:
        return self

    def __add__(self, other: Exact) -> Exact:
        return Exact(self.value + other.value)

    def __sub__(self, other: Exact) -> Exact:
        return Exact(self.value - other.value)

    def __mul__(self, other: Exact) -> Exact:
        return Exact(self.value * other.value)

    def __and__(self, other: Exact) -> Exact:
        return Exact(bool(self.value) and bool(other.value))

    def __ge__(self, other: Exact | int) -> Exact:
        return Exact(self.value >= _number(other))

    def __gt__(self, other: Exact | int) -> Exact:
        return Exact(self.value > _number(other))

    def __lt__(self, other: Exact | int) -> Exact:
        return Exact(self.value < _number(other))


def _number(x: Exact | int) -> Fraction:
    return x.value if isinstance(x, Exact) else Fraction(x)


def code(drive: Fraction, theta: Fraction, levels: Levels) -> int:
    """``Q(u) = clip(floor(u/theta + 1/2), lowest, highest)``, exactly."""
    return min(max(math.floor(drive / theta + Fraction(1, 2)), levels.lowest), levels.highest)


Step = Callable[[Exact, Exact, Exact, Exact, Levels], tuple[Exact, Exact, Exact]]


@dataclass(frozen=True)
class Neuron:
    """A membrane's step, and the potential it starts from as a share of the threshold."""

    step: Step
    start: Fraction = Fraction(1, 2)

    def run(self, currents: list[Fraction], theta: Fraction, levels: Levels) -> list[tuple[Fraction, int, int]]:
        """``(v, S, o)`` after each step."""
        membrane, tracer, history = Exact(self.start * theta), Exact(0), []
        for current in currents:
            membrane, tracer, spike = self.step(membrane, tracer, Exact(current), Exact(theta), levels)
            history.append((membrane.value, int(tracer.value), int(spike.value)))
        return history


def _fire(v: Exact, s: Exact, theta: Exact, up: Exact, down: Exact) -> tuple[Exact, Exact, Exact]:
    spike = up - down
    return v - theta * spike, s + spike, spike


def _strict_threshold(v: Exact, s: Exact, i: Exact, theta: Exact, levels: Levels):
    v = v + i
    return _fire(v, s, theta, (v > theta) & (s < levels.highest), (v < 0) & (s > levels.lowest))


def _no_upper_bound(v: Exact, s: Exact, i: Exact, theta: Exact, levels: Levels):
    v = v + i
    return _fire(v, s, theta, v >= theta, (v < 0) & (s > levels.lowest))


def _no_lower_bound(v: Exact, s: Exact, i: Exact, theta: Exact, levels: Levels):
    v = v + i
    return _fire(v, s, theta, (v >= theta) & (s < levels.highest), v < 0)


def _no_negative_spike(v: Exact, s: Exact, i: Exact, theta: Exact, levels: Levels):
    v = v + i
    return _fire(v, s, theta, (v >= theta) & (s < levels.highest), Exact(0))


def _hard_reset(v: Exact, s: Exact, i: Exact, theta: Exact, levels: Levels):
    v = v + i
    _, s, spike = _fire(v, s, theta, (v >= theta) & (s < levels.highest), (v < 0) & (s > levels.lowest))
    return (theta * Exact(Fraction(1, 2)) if spike.value else v), s, spike


def _starts_a_step_late(v: Exact, s: Exact, i: Exact, theta: Exact, levels: Levels):
    v, s, spike = _fire(v, s, theta, (v >= theta) & (s < levels.highest), (v < 0) & (s > levels.lowest))
    return v + i, s, spike


def _bound_off_by_one(v: Exact, s: Exact, i: Exact, theta: Exact, levels: Levels):
    v = v + i
    return _fire(v, s, theta, (v >= theta) & (s < levels.highest - 1), (v < 0) & (s > levels.lowest))


#: The neuron of the library, run by the library's own code.
PUBLISHED = Neuron(membrane_step)  # type: ignore[arg-type] - Exact has the face of a Tensor

#: Each differs from the published neuron in one place.
MUTANTS = {
    "> for >=": Neuron(_strict_threshold),
    "missing upper bound": Neuron(_no_upper_bound),
    "missing lower bound": Neuron(_no_lower_bound),
    "no negative spike": Neuron(_no_negative_spike),
    "hard reset": Neuron(_hard_reset),
    "off by one: starts from 0, not theta/2": Neuron(membrane_step, start=Fraction(0)),  # type: ignore[arg-type]
    "off by one: a step late": Neuron(_starts_a_step_late),
    "off by one: bound": Neuron(_bound_off_by_one),
}
