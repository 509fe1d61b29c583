"""Heat maps of layer by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spikezip.report.figures.drawing import (
    Absent,
    Drawing,
    Run,
    heat,
    heat_key,
    layer_axis,
    rows_height,
    step_axis,
    steps_shown,
)
from spikezip.report.schema import Layer
from spikezip.report.style import colour, new_figure
from spikezip.report.tables import Cell, Table, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _map(run: Run, layers: Sequence[Layer], values: list[list[float]], key: str) -> tuple[Figure, Axes]:
    import numpy as np

    steps = min(steps_shown([run]), len(values[0]))
    values = [row[:steps] for row in values]
    figure = new_figure(rows_height(len(layers)))
    axes = figure.add_subplot()
    top = max(max(row) for row in values) or 1.0
    heat(axes, np.array(values), (0.5, steps + 0.5, len(layers) - 0.5, -0.5), top)
    step_axis(axes, steps)
    axes.set_xlim(0.5, steps + 0.5)
    layer_axis(axes, [layer.name for layer in layers])
    axes.spines[:].set_visible(False)
    heat_key(figure, axes, key, top)
    return figure, axes


def firing_rates(run: Run) -> Sequence[Drawing | Absent]:
    """Spikes per neuron, of either sign, for each layer and step; where spikes have several levels, levels."""
    title = "Firing rate"
    layers = [layer for layer in run.record.layers if layer.rate]
    if not layers:
        return [Absent(title, "the record holds no firing rates")]
    graded = run.record.graded
    figure, _ = _map(run, layers, [list(x.rate) for x in layers], f"{'levels' if graded else 'spikes'} per neuron")
    rows = [(x.name, t, rate) for x in layers for t, rate in enumerate(x.rate, start=1)]
    if graded:  # how many neurons sent them is not recorded
        caption = "Levels sent, up or down, per neuron, for each layer and step (mean over images)."
        table = Table.of(title, ["layer", "t", "rate"], rows)
    else:
        neurons = sum(layer.neurons for layer in layers) or 1
        steps = run.record.busy_steps
        mean = sum(sum(layer.rate) * layer.neurons for layer in layers) / neurons / steps
        until = f"t = {steps}{', T_eq of the slowest image' if steps < run.record.steps else ''}"
        caption = (
            f"Spikes of either sign per neuron, for each layer and step (mean over images). Sparsity is one minus it:"
            f" up to {until}, {percent(1 - mean)} of neurons are silent in a step."
        )
        table = Table.of(title, ["layer", "t", "rate", "sparsity"], [(*row, 1 - row[2]) for row in rows])
    return [Drawing("firing-rate", title, caption, table, figure)]


def settled_step(layer: Layer) -> int | None:
    """First step from which every neuron of the layer holds its QANN code in all images compared; none if never."""
    if not layer.differ or layer.differ[-1] > 0:
        return None
    return 1 + max((t for t, share in enumerate(layer.differ, start=1) if share > 0), default=0)


def l1_distance(run: Run) -> Sequence[Drawing | Absent]:
    """How far each layer is from its QANN activations at each step."""
    title = "L1 distance, QANN – SNN"
    layers = [layer for layer in run.record.layers if layer.l1]
    if not layers:
        return [Absent(title, "the record holds no distances to the QANN")]
    figure, axes = _map(run, layers, [[d / layer.scale for d in layer.l1] for layer in layers], "mean |S − Q|, levels")
    reached = 0
    for row, layer in enumerate(layers):
        step = settled_step(layer)
        if step is not None:
            reached += 1
            axes.plot([step - 0.5] * 2, [row - 0.5, row + 0.5], color=colour("s2"), linewidth=2)
    some = run.record.compared_images
    caption = (
        "Mean distance between tracer S at step t and the QANN's code Q, in levels (the data give it in units too)"
        f"{f', over the {some}' if some else ''}."
    )
    if any(layer.differ for layer in layers):
        caption += (
            f" The orange edge is where a layer holds its QANN's codes for good, in"
            f" {f'each of the {some}' if some else 'every image'}:"
            f" {reached} of {len(layers)} layers do."
        )
    rows: list[tuple[Cell, ...]] = [
        (layer.name, t, d, d / layer.scale, layer.differ[t - 1] if layer.differ else None)
        for layer in layers
        for t, d in enumerate(layer.l1, start=1)
    ]
    columns = ["layer", "t", "l1", "l1_levels", "share_of_codes_that_differ"]
    return [Drawing("l1-distance", title, caption, Table.of(title, columns, rows), figure)]
