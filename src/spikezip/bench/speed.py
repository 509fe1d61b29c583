"""The benchmark: time against T, levels, batch, width and activity, one axis at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from spikezip.bench.cases import make_case
from spikezip.bench.contenders import CONTENDERS, packages
from spikezip.bench.timing import ann_peak, compare
from spikezip.errors import InputError
from spikezip.kernels import threads
from spikezip.measure.provenance import provenance

FORMAT = "spikezip.speed/2"


@dataclass(frozen=True)
class Axes:
    """What is varied. The first value of each is the base; each further value is measured with the others at theirs.

    Args:
        steps: numbers of time steps, all measured everywhere.
        levels: of every neuron.
        batch: images run together.
        width: multiples of the network's own width.
        active: share of units above 0 behind BatchNorm; None leaves the network as it is, as a single share does
            where there is no BatchNorm2d.
    """

    steps: tuple[int, ...] = (8, 16, 32)
    levels: tuple[int, ...] = (8,)
    batch: tuple[int, ...] = (32,)
    width: tuple[float, ...] = (1.0,)
    active: tuple[float | None, ...] = (0.5,)

    def settings(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each setting with the axis it lies on; the base first."""
        names = ("levels", "batch", "width", "active")
        base = {name: getattr(self, name)[0] for name in names}
        yield "base", base
        for name in names:
            for value in getattr(self, name)[1:]:
                yield name, base | {name: value}


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Args:
        engines: names of contenders, the first of which the others must agree with; the slow ones run at the base.
        rounds: how often the fast ones are timed.
        slow_rounds: how often the others are.
        threads: of torch.
        all_that_run: leave out those that have no rule for an operation of the network, instead of refusing.
    """

    engines: tuple[str, ...] = ("sweep", "reference", "plain loop")
    rounds: int = 5
    slow_rounds: int = 1
    threads: int = 1
    all_that_run: bool = False


def benchmark(
    name: str,
    build: Callable[[float], nn.Module],
    shape: tuple[int, ...],
    axes: Axes = Axes(),
    effort: Effort = Effort(),
    *,
    weight_bits: int | None = 8,
    seed: int = 0,
    on_setting: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure whole runs as multiples of one ANN forward pass (float32, channels_last, BatchNorm folded, same batch).

    Args:
        name: the network's, for the record.
        build: the network at a multiple of its width; called under ``seed``.
        shape: of one image, ``(C, H, W)``.
        axes: what is varied.
        effort: which contenders, how often.
        weight_bits: of integer weights, for which contenders must agree to the bit; None for floats.
        seed: of the weights.
        on_setting: told each setting's results as they come.

    Returns:
        The record, as plain lists and dictionaries: per setting what was varied, facts of the network, and rows of
        :class:`~spikezip.bench.timing.Timing`.

    Raises:
        EquivalenceError: contenders do not agree to the bit.
        InputError: a contender is unknown, or its package is missing; an axis has values that nothing can be run at.
        StageError: a contender has no rule for an operation of the network.
    """
    for engine in effort.engines:
        _check(engine)
    several = [name for name in ("levels", "batch", "width", "active") if len(getattr(axes, name)) > 1]
    if several and not any(CONTENDERS[engine].fast for engine in effort.engines):
        fast = ", ".join(name for name, contender in CONTENDERS.items() if contender.fast)
        raise InputError(f"Several values of {', '.join(several)} are timed with the fast engines alone: add {fast}.")
    settings: list[dict[str, Any]] = []
    with threads(effort.threads):
        for axis, values in axes.settings():
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                module = build(values["width"])
            if not any(isinstance(m, nn.BatchNorm2d) for m in module.modules()):
                if "active" in several:
                    raise InputError(
                        "The share of active units is set behind BatchNorm2d, of which this network has none."
                    )
                values = {**values, "active": None}
            case = make_case(
                module,
                shape,
                values["levels"],
                batch=values["batch"],
                active=values["active"],
                weight_bits=weight_bits,
            )
            engines = [e for e in effort.engines if axis == "base" or CONTENDERS[e].fast]
            if effort.all_that_run:
                engines = [e for e in engines if CONTENDERS[e].runs(case)]
            facts = case.facts()
            rows = compare(case, axes.steps, engines, effort.rounds, effort.slow_rounds) if engines else []
            settings.append(
                {"axis": axis, **values, **facts, "ann_peak_mib": ann_peak(case), "rows": [asdict(r) for r in rows]}
            )
            if on_setting:
                on_setting(settings[-1])
    record = provenance(seed)
    record["versions"] |= packages(list(effort.engines))
    return {
        "format": FORMAT,
        **record,
        "model": name,
        "weight_bits": weight_bits,
        "threads": effort.threads,
        "settings": settings,
    }


def _check(engine: str) -> None:
    if engine not in CONTENDERS:
        raise InputError(f"There is no contender {engine!r}. There are: {', '.join(CONTENDERS)}.")
    contender = CONTENDERS[engine]
    if not contender.installed:
        raise InputError(
            f"{engine!r} needs the package {contender.package}: pip install 'spikezip[bench]', or leave it out."
        )
