"""Timing in turns: every contender between two forward passes of the ANN, answers compared to the bit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikezip.bench.cases import Case
from spikezip.bench.contenders import CONTENDERS
from spikezip.bench.memory import peak_mib
from spikezip.errors import EquivalenceError

_WARM = 6  #: runs after which layers of the sweep have chosen between their kernels


@dataclass(frozen=True)
class Timing:
    """How long one contender took for so many steps, as multiples of the ANN's forward pass beside it.

    Attributes:
        engine: the contender's name.
        steps: T.
        ann_forwards: median over rounds; ``least`` and ``most`` are the extremes.
        rounds: how many.
        seconds: median of the whole run.
        ann_seconds: median of the ANN's forward passes just before and after.
        peak_mib: most memory over the start.
    """

    engine: str
    steps: int
    ann_forwards: float
    least: float
    most: float
    rounds: int
    seconds: float
    ann_seconds: float
    peak_mib: float | None


def compare(case: Case, steps: Sequence[int], engines: Sequence[str], rounds: int, slow_rounds: int) -> list[Timing]:
    """Time contenders in turns and compare what they give.

    Every timed call stands between two forward passes of the ANN, whose mean it is divided by: on a machine that others
    use too, a ratio to another minute's forward pass would mean little.

    Args:
        case: network and images.
        steps: numbers of steps.
        engines: names of :data:`~spikezip.bench.contenders.CONTENDERS`.
        rounds: how often the fast ones are timed.
        slow_rounds: how often the others are.

    Raises:
        EquivalenceError: two do not give the same outputs at every step, and the network is one of integers.
    """
    ann = _ann(case)
    calls = {(t, name): _call(case, name, t) for t in steps for name in engines}
    ann()
    for name in engines:  # compilers, caches, packed weights, imports and choices are ready before anything is timed
        fast = CONTENDERS[name].fast
        for _ in range(_WARM if fast else 1):
            _call(case, name, max(steps) if fast else 1)()
    found = {key: peak_mib(call) for key, call in calls.items()}  # apart: memory that was handed back costs time
    times: dict[tuple[int, str], list[tuple[float, float]]] = {key: [] for key in calls}
    for i in range(max(rounds, slow_rounds)):
        before = _seconds(ann)
        for key, call in calls.items():
            fast = CONTENDERS[key[1]].fast
            if i >= (rounds if fast else slow_rounds):
                continue
            took, after = _seconds(call), _seconds(ann)
            times[key].append((took, (before + after) / 2))
            before = after
    for (t, name), (answer, _) in found.items():
        first = found[t, engines[0]][0]
        if case.integer and not torch.equal(_held(answer, t), _held(first, t)):
            raise EquivalenceError(
                f"{name} and {engines[0]} do not agree at {t} steps, though arithmetic is exact: one of them is wrong. "
                "Times of different results say nothing; leave it out with --engines, and report it."
            )
    return [_timing(key, times[key], found[key][1]) for key in calls]


def ann_peak(case: Case) -> float | None:
    """The most memory that one forward pass of the ANN takes over the start, in MiB."""
    call = _ann(case)
    call()
    return peak_mib(call)[1]


def _ann(case: Case) -> Callable[[], Any]:
    def call() -> Any:
        with torch.no_grad():
            return case.ann(case.images)

    return call


def _call(case: Case, name: str, steps: int) -> Callable[[], Tensor]:
    return lambda: CONTENDERS[name].run(case, steps)


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _held(outputs: Tensor, steps: int) -> Tensor:
    """Outputs of a run that may have ended sooner, its last held."""
    return torch.cat([outputs, outputs[-1:].expand(steps - outputs.shape[0], *outputs.shape[1:])])


def _timing(key: tuple[int, str], times: list[tuple[float, float]], peak: float | None) -> Timing:
    ratios = [took / unit for took, unit in times]
    return Timing(
        engine=key[1],
        steps=key[0],
        ann_forwards=round(statistics.median(ratios), 3),
        least=round(min(ratios), 3),
        most=round(max(ratios), 3),
        rounds=len(ratios),
        seconds=round(statistics.median(took for took, _ in times), 5),
        ann_seconds=round(statistics.median(unit for _, unit in times), 5),
        peak_mib=peak,
    )
