"""Single neurons: the spike raster, and membrane and tracer over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spikezip.report.figures.drawing import Absent, Drawing, Run, legend_below, step_axis, steps_of, steps_shown
from spikezip.report.schema import Gaps, Trace
from spikezip.report.style import colour, label, new_figure
from spikezip.report.tables import Cell, Table, plain

MOST_SPIKES = 12_000  # beyond it a page grows heavy and the eye sees no more
MOST_TRACES = 8
_REST = "0 ≤ v < θ".replace(" ", "\N{NO-BREAK SPACE}")


def raster(run: Run) -> Sequence[Drawing | Absent]:
    """Every spike of some neurons, by sign."""
    title = "Spike raster"
    part = run.record.raster
    layers = [layer for layer in part.layers if layer.neurons] if part else []
    if not part or not layers:
        return [Absent(title, "no raster was recorded")]
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    share = min(1.0, MOST_SPIKES / max(sum(len(layer.spikes) for layer in layers), 1))
    kept = {layer.name: max(1, int(len(layer.neurons) * share)) for layer in layers}
    figure = new_figure(min(130 + 4.0 * sum(kept.values()) + 8 * len(layers), 640))
    axes = figure.add_subplot()
    marks: dict[int, list[tuple[float, float]]] = {1: [], -1: []}
    total = sum(kept.values())
    gap, top, ticks = max(1.0, 0.03 * total), 0.0, []
    for layer in layers:
        for t, index, sign in layer.spikes:
            if index < kept[layer.name]:
                marks[sign] += [(t, top + index + 0.1), (t, top + index + 0.9)]
        ticks.append((top + kept[layer.name] / 2, layer.name))
        axes.axhspan(top, top + kept[layer.name], color=colour("grid"), alpha=0.35, linewidth=0)
        top += kept[layer.name] + gap
    last = steps_shown([run])
    wide = min(max(90 / last, 2.0), 7.0)  # a third of a step, so that single spikes are seen
    names = ("spike up", "spike down") if run.record.graded else ("spike +1", "spike −1")
    for sign, ink, name in zip((1, -1), ("s1", "s2"), names, strict=True):
        if marks[sign]:
            path = Path(marks[sign], [Path.MOVETO, Path.LINETO] * (len(marks[sign]) // 2))
            axes.add_patch(PathPatch(path, edgecolor=colour(ink), facecolor="none", linewidth=wide))
            axes.plot([], [], "|", color=colour(ink), markersize=9, markeredgewidth=2, label=name)
    step_axis(axes, last)
    axes.set_xlim(0.4, last + 0.6)
    axes.set_ylim(top - gap, 0)
    axes.set_yticks([y for y, _ in ticks], [label(name) for _, name in ticks], fontsize=10)
    axes.tick_params(axis="y", length=0)
    legend_below(figure)
    caption = f"Spikes of chosen neurons for image {part.image}; one row a neuron, grouped by layer."
    if share < 1:
        caption += (
            f" The first {total:,} neurons of {sum(len(x.neurons) for x in layers):,} are drawn; the data hold all."
        )
    rows: list[tuple[Cell, ...]] = [
        (layer.name, layer.neurons[index], t, sign) for layer in layers for t, index, sign in layer.spikes
    ]
    return [Drawing("raster", title, caption, Table.of(title, ["layer", "neuron", "t", "sign"], rows), figure)]


def traces(run: Run) -> Sequence[Drawing | Absent]:
    """Membrane and tracer of chosen neurons, step by step."""
    if not run.record.traces:
        return [Absent("Membrane and tracer", "no neuron was traced")]
    chosen = run.record.traces[:MOST_TRACES]
    drawings: list[Drawing | Absent] = [_trace(run, trace, number) for number, trace in enumerate(chosen, start=1)]
    more = len(run.record.traces) - len(chosen)
    if more:
        drawings.append(Absent("Further traces", f"{more} more neurons were traced; the first {MOST_TRACES} are shown"))
    return drawings


def _in_levels(values: Gaps, scale: float) -> list[float]:
    """In units of the threshold; NaN, which is drawn as a gap, for what is not finite."""
    return [math.nan if value is None else value / scale for value in values]


def _trace(run: Run, trace: Trace, number: int) -> Drawing:
    steps = list(steps_of(trace.tracer))
    figure = new_figure(330)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    if trace.drive:
        drive = _in_levels(trace.drive, trace.scale)
        upper.plot(steps, drive, color=colour("s2"), linewidth=1.1, linestyle=(0, (5, 1.5)), label="drive U / θ")
    upper.step(steps, trace.tracer, where="post", color=colour("s1"), label="tracer S")
    if trace.target is not None:
        upper.axhline(
            trace.target, color=colour("ink"), linewidth=1, linestyle=(0, (1, 2)), label=f"QANN code {trace.target:g}"
        )
    upper.set_ylabel("levels")
    upper.grid(axis="y")
    lower.axhspan(0, 1, color=colour("grid"), alpha=0.6, linewidth=0)
    membrane = _in_levels(trace.membrane, trace.scale)
    lower.plot(steps, membrane, color=colour("s4"), label="membrane v / θ after firing")
    low, high = lower.get_ylim()
    for sign, mark in ((1, "^"), (-1, "v")):
        at = [t for t, o in zip(steps, trace.spikes, strict=False) if o * sign > 0]
        if at:
            place = high + 0.12 * (high - low)
            lower.plot(at, [place] * len(at), mark, color=colour("s1" if sign > 0 else "s2"), markersize=5)
    lower.set_ylabel("v / θ")
    step_axis(lower, min(steps_shown([run]), len(steps)))
    legend_below(figure, 2)
    where = f"Membrane and tracer: {label(trace.layer, 30)}, neuron {trace.neuron}"
    end = (
        ""
        if trace.target is None
        else (" and ends on it" if trace.tracer[-1] == trace.target else " and has not reached it")
    )
    pace, signs = "one level", "up +1, down −1"
    if run.record.graded:
        pace, signs = f"up to {plain(run.record.slew)} levels", "up, down"
    caption = (
        f"Image {trace.image}. The tracer follows the drive at {pace} a step"
        f"{f' towards the QANN code {trace.target:g}{end}' if trace.target is not None else ''}."
        f" Triangles are spikes ({signs}); shaded is {_REST}, where no spike is due."
    )
    if None in (*trace.drive, *trace.membrane):
        caption += " Lines have gaps where a value is not finite, such as the logarithm of 0 before spikes arrive."
    series = (trace.membrane, trace.tracer, trace.spikes, trace.drive)
    rows = [(t, *(s[t - 1] if s else None for s in series)) for t in steps]
    table = Table.of(
        f"Trace of {trace.layer}, neuron {trace.neuron}", ["t", "membrane", "tracer", "spike", "drive"], rows
    )
    return Drawing(f"trace-{number}", where, caption, table, figure)
