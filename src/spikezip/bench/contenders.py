"""The ways of running an SNN that are timed side by side; other packages' where they are installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spikezip.bench.cases import Case
from spikezip.bench.loops import Layer, LayerLoop, StepLoop, without_rule
from spikezip.kernels import dense_synapses, no_compiler, torch_alone
from spikezip.run.reference import reference
from spikezip.run.sweep import sweep
from spikezip.spike import STBIF


@dataclass(frozen=True)
class Contender:
    """A way of running an SNN.

    Attributes:
        run: from a case and a number of steps to the outputs at every step, ``[t, B, ...]``; a run that settles may end
            sooner.
        what: one line for the reader of a table.
        fast: timed in every round and on every axis; the others in few rounds, on the first values alone.
        package: the distribution it needs beside spikezip.
        linear: it has rules for linear operations and maxima alone.
    """

    run: Callable[[Case, int], Tensor]
    what: str
    fast: bool = False
    package: str | None = None
    linear: bool = False

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return self.package is None or importlib.util.find_spec(self.package) is not None

    def runs(self, case: Case) -> bool:
        """Whether it has a rule for every operation."""
        return not self.linear or without_rule(case.snn) is None


def _jelly_node(neuron: STBIF, mode: str) -> Layer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what another package warns of while it is imported is not ours to mend
        from spikingjelly.activation_based.neuron import STBIFNode  # pyright: ignore[reportMissingImports]

    levels, threshold = neuron.levels, neuron.threshold
    highest, lowest = float(levels.highest), float(levels.lowest)
    node: Any = STBIFNode(threshold, levels.count, pos_max=highest, neg_min=lowest, step_mode=mode)
    return node.eval().to(threshold.device)


def _sweep(case: Case, steps: int) -> Tensor:
    return sweep(case.snn, (case.images,), steps).logits


def _without(switch: Callable[[], AbstractContextManager[None]]) -> Callable[[Case, int], Tensor]:
    def run(case: Case, steps: int) -> Tensor:
        with switch():
            return _sweep(case, steps)

    return run


CONTENDERS: dict[str, Contender] = {
    "sweep": Contender(_sweep, "this library's default: layer by layer, on what changes", fast=True),
    "torch alone": Contender(
        _without(torch_alone), "the same sweep without compiled kernels and without 8-bit operations"
    ),
    "no compiler": Contender(_without(no_compiler), "the same sweep as on a machine without a compiler"),
    "reference": Contender(
        lambda c, steps: reference(c.snn, (c.images,), steps).logits,
        "this library's step by step form, the one everything else is compared with",
    ),
    "dense sweep": Contender(_without(dense_synapses), "the same sweep without the event-driven kernel"),
    "plain loop": Contender(
        lambda c, steps: StepLoop(c.snn).outputs(c.images, steps),
        "SpikeZIP-TF's loop restated: membranes, one operation a step, in plain torch",
        linear=True,
    ),
    "spikingjelly step": Contender(
        lambda c, steps: StepLoop(c.snn, lambda n: _jelly_node(n, "s")).outputs(c.images, steps),
        "SpikingJelly's STBIFNode on the same graph, step by step",
        package="spikingjelly",
        linear=True,
    ),
    "spikingjelly multi-step": Contender(
        lambda c, steps: LayerLoop(c.snn, lambda n: _jelly_node(n, "m")).outputs(c.images, steps),
        "SpikingJelly's STBIFNode on the same graph, all steps folded into the batch",
        package="spikingjelly",
        linear=True,
    ),
}


def installed() -> list[str]:
    """The contenders whose packages are there."""
    return [name for name, contender in CONTENDERS.items() if contender.installed]


def packages(names: list[str]) -> dict[str, str]:
    """Versions of the packages that some contenders need."""
    needed = {CONTENDERS[name].package for name in names} - {None}
    return {str(package): importlib.metadata.version(str(package)) for package in sorted(map(str, needed))}
