"""Every figure of the report, each made from records alone by one function of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spikezip.report.figures.cost import (
    audit_bars,
    energy_by_layer,
    energy_ratio,
    pareto_energy,
    pareto_synops,
)
from spikezip.report.figures.distributions import code_histograms, scales, t_eq_histogram, weight_histograms
from spikezip.report.figures.drawing import Absent, Drawing, Run
from spikezip.report.figures.exits import early_exit
from spikezip.report.figures.maps import firing_rates, l1_distance
from spikezip.report.figures.neurons import raster, traces
from spikezip.report.figures.over_time import accuracy, agreement

__all__ = ["ACROSS_RUNS", "OF_A_RUN", "Absent", "Drawing", "Run"]

Result = Sequence[Drawing | Absent]

ACROSS_RUNS: tuple[Callable[[Sequence[Run]], Result], ...] = (
    accuracy,
    energy_ratio,
    pareto_synops,
    pareto_energy,
    early_exit,
    agreement,
)
OF_A_RUN: tuple[tuple[str, tuple[Callable[[Run], Result], ...]], ...] = (
    ("Inside the network", (firing_rates, l1_distance, t_eq_histogram, raster, traces)),
    ("Energy", (energy_by_layer, audit_bars)),
    ("Quantization", (code_histograms, scales, weight_histograms)),
)
