"""Histograms: T_eq, codes, scales, weights."""

from __future__ import annotations

from collections.abc import Sequence

from spikezip.report.figures.drawing import Absent, Drawing, Run, heat, heat_key, layer_axis, legend_below, rows_height
from spikezip.report.schema import Layer, Record
from spikezip.report.style import colour, new_figure
from spikezip.report.tables import Cell, Table, plain


def t_eq_histogram(run: Run) -> Sequence[Drawing | Absent]:
    """When each image fell silent for good, with the bound said."""
    title = "Time to equilibrium"
    settled = run.record.settled
    if not settled or not settled.t_eq_histogram:
        why = (
            "no image settled within the steps given" if settled and settled.outcome == "STEP_LIMIT" else "not measured"
        )
        return [Absent(title, why)]
    from matplotlib.ticker import MaxNLocator

    counts = sorted(settled.t_eq_histogram.items())
    figure = new_figure()
    axes = figure.add_subplot()
    axes.bar([t for t, _ in counts], [n for _, n in counts], width=0.84, color=colour("s1"))
    if settled.t_eq_mean is not None:
        axes.axvline(
            settled.t_eq_mean,
            color=colour("s2"),
            linestyle=(0, (6, 3)),
            linewidth=1.4,
            label=f"mean {settled.t_eq_mean:.2f}",
        )
    first, last = counts[0][0], counts[-1][0]
    caption = "Step from which all neurons hold their final codes, by image."
    if settled.bound is not None:
        if settled.bound <= last + 2 * (last - first + 4):
            axes.axvline(settled.bound, color=colour("ink"), linewidth=1.2, label=f"bound {settled.bound}")
            caption += f" The proven bound is {settled.bound}."
        else:
            caption += f" The proven bound, {settled.bound}, lies far to the right of the axis."
    images = sum(n for _, n in counts)
    if settled.outcome == "STEP_LIMIT":
        caption += f" Only images that settled within {run.record.steps} steps are counted ({images:,})."
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    axes.set_xlim(min(axes.get_xlim()[0], first - 1.5), max(axes.get_xlim()[1], last + 1.5))
    axes.set_xlabel("T_eq (time steps)")
    axes.set_ylabel("images")
    axes.grid(axis="y")
    legend_below(figure)
    return [Drawing("t-eq", title, caption, Table.of(title, ["t_eq", "images"], counts), figure)]


def code_histograms(run: Run) -> Sequence[Drawing | Absent]:
    """Which codes each layer ends on."""
    title = "Codes in use"
    layers = [layer for layer in run.record.layers if layer.codes]
    if not layers:
        return [Absent(title, "the record holds no code histograms")]
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    low, high = min(layer.lowest for layer in layers), max(layer.highest for layer in layers)
    values = np.full((len(layers), high - low + 1), np.nan)  # codes a layer has not are left blank
    for row, layer in enumerate(layers):
        values[row, layer.lowest - low : layer.highest - low + 1] = layer.codes
    figure = new_figure(rows_height(len(layers)))
    axes = figure.add_subplot()
    top = float(np.nanmax(values)) or 1.0
    heat(axes, np.ma.masked_invalid(values), (low - 0.5, high + 0.5, len(layers) - 0.5, -0.5), top)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    layer_axis(axes, [layer.name for layer in layers])
    axes.set_xlabel("code (level)")
    axes.spines[:].set_visible(False)
    heat_key(figure, axes, "share of neurons", top)
    unused = [layer.name for layer in layers if layer.codes[-1] == 0 and layer.highest > 0]
    caption = "Share of neurons that end on each code."
    if unused:
        caption += (
            f" {len(unused)} of {len(layers)} layers never reach their highest code: fewer levels would do there."
        )
    rows: list[tuple[Cell, ...]] = [
        (layer.name, code, share) for layer in layers for code, share in enumerate(layer.codes, start=layer.lowest)
    ]
    return [Drawing("codes", title, caption, Table.of(title, ["layer", "code", "share"], rows), figure)]


def layer_unit(record: Record, layer: Layer) -> float | None:
    """What one level is worth in activation units; None where an integer network divided it out untold."""
    if layer.unit is not None:
        return layer.unit
    return None if record.network.weight_bits and all(x.scale == 1 for x in record.layers) else layer.scale


def scales(run: Run) -> Sequence[Drawing | Absent]:
    """Threshold of every layer."""
    title = "Scales (thresholds θ)"
    layers = run.record.layers
    if not layers:
        return [Absent(title, "the record lists no layers")]
    known = [unit for layer in layers if (unit := layer_unit(run.record, layer)) is not None]
    if len(known) < len(layers):
        why = "an integer network's thresholds are all 1: they were divided out, and this record does not hold them"
        return [Absent(title, why)]
    values = known
    figure = new_figure(rows_height(len(layers)))
    axes = figure.add_subplot()
    axes.hlines(range(len(layers)), min(values) / 1.5, values, color=colour("grid"), linewidth=1.2)
    axes.plot(values, range(len(layers)), "o", color=colour("s1"), markersize=5)
    axes.set_xscale("log")
    if max(values) / min(values) < 50:  # a decade or so: plain numbers read better than powers
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(values) / 1.5, max(values) * 1.5)
    layer_axis(axes, [layer.name for layer in layers])
    axes.set_xlabel("θ (activation units per level, log scale)")
    axes.grid(axis="x")
    caption = "Step size of each quantizer, which is the threshold of its neurons."
    if any(layer.unit for layer in layers):
        caption += " This is an integer network: it has divided them out, and its own thresholds are all 1."
    rows = [
        (layer.name, value, layer.scale, layer.lowest, layer.highest)
        for layer, value in zip(layers, values, strict=True)
    ]
    columns = ["layer", "scale", "threshold", "lowest", "highest"]
    return [Drawing("scales", title, caption, Table.of(title, columns, rows), figure)]


def weight_histograms(run: Run) -> Sequence[Drawing | Absent]:
    """Distribution of the weights of every layer, one ridge each."""
    title = "Weights"
    layers = [w for w in run.record.weights if w.histogram and sum(w.histogram.counts) > 0]
    if not layers:
        return [Absent(title, "the record holds no weight histograms")]
    figure = new_figure(rows_height(len(layers)))
    axes = figure.add_subplot()
    rows: list[tuple[Cell, ...]] = []
    for place, weights in enumerate(layers):
        assert weights.histogram is not None
        edges, counts = weights.histogram.edges, weights.histogram.counts
        reach = max(abs(edges[0]), abs(edges[-1])) or 1.0
        tallest = max(counts)
        base = place + 0.45
        axes.stairs(
            [base - 0.92 * n / tallest for n in counts],
            [e / reach for e in edges],
            baseline=base,
            fill=True,
            color=colour("s1"),
            linewidth=0,
        )
        rows += [(weights.name, weights.bits, a, b, n) for a, b, n in zip(edges, edges[1:], counts)]
    layer_axis(axes, [w.name for w in layers])
    axes.set_ylim(len(layers) - 0.4, -0.65)
    axes.set_xlim(-1.02, 1.02)
    axes.set_xlabel("weight / greatest |weight| of the layer")
    axes.grid(axis="x")
    bits = sorted({plain(w.bits) if w.bits else "float" for w in layers})
    caption = f"One histogram a layer, each as tall as its fullest bin. Bits: {', '.join(bits)}."
    columns = ["layer", "bits", "from", "to", "count"]
    return [Drawing("weights", title, caption, Table.of(title, columns, rows), figure)]
