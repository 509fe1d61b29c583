"""Figures of what an answer costs: SynOps and energy, across runs and by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spikezip.report.figures.drawing import (
    COUNTING,
    LEGEND,
    Absent,
    Drawing,
    Run,
    layer_axis,
    legend_below,
    percent_axis,
    rows_height,
    step_axis,
    steps_of,
    steps_shown,
)
from spikezip.report.schema import EnergyLayer, EnergyModel
from spikezip.report.style import colour, label, new_figure, series_style
from spikezip.report.tables import Cell, Table, energy_unit

Point = tuple[float, float]


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none costs less (or as much) and gives more.

    >>> pareto_front([(1, 0.2), (2, 0.1), (3, 0.9), (3, 0.8), (4, 0.9)])
    [(1, 0.2), (3, 0.9)]
    """
    front: list[Point] = []
    for cost, gain in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return front


def _gains(runs: Sequence[Run]) -> tuple[str, str, dict[str, Sequence[float]]]:
    """What is gained: accuracy where every run has it, else agreement with the QANN."""
    by_accuracy = {r.slug: r.record.accuracy.snn for r in runs if r.record.accuracy and r.record.accuracy.snn}
    if len(by_accuracy) == len(runs):
        return "accuracy", "accuracy (%)", {k: v for k, v in by_accuracy.items() if v}
    return "agreement", "agreement with the QANN (%)", {r.slug: r.record.agreement for r in runs if r.record.agreement}


def _pareto(
    name: str,
    title: str,
    runs: Sequence[Run],
    costs: Mapping[str, Sequence[float]],
    axis: tuple[str, float, str],
    anchors: Sequence[tuple[str, str, float, float]] = (),
    further: bool = False,
) -> Sequence[Drawing | Absent]:
    """Gain against cost at every t of every run, and the front over all of them.

    Args:
        costs: cumulative cost per image, by run.
        axis: the cost's label, how much of the raw cost is one of its units, the column's name.
        anchors: (run slug, network, cost, gain) of the networks without time.
        further: see :class:`Drawing`.
    """
    text, unit, column = axis
    gain, gain_text, gains = _gains([run for run in runs if run.slug in costs])
    if not gains:
        return [Absent(title, "neither labels nor the QANN's predictions were given")]
    alone = len(runs) == 1
    figure = new_figure(310 + (0 if alone else 12 * len(costs)))
    axes = figure.add_subplot()
    rows: list[tuple[Cell, ...]] = []
    every: list[Point] = []
    for i, run in enumerate(runs):
        if run.slug not in costs or run.slug not in gains:
            continue
        look = series_style(i)
        points = list(zip(costs[run.slug], gains[run.slug], strict=True))
        every += points
        axes.plot(
            [c / unit for c, _ in points],
            [100 * g for _, g in points],
            **{**look, "linewidth": 0.9},
            markersize=4,
            label="SNN, a point a step" if alone else label(run.title, LEGEND),
        )
        rows += [(run.title, "snn", t, c, g) for t, (c, g) in enumerate(points, start=1)]
    front = pareto_front(every)
    axes.step(
        [c / unit for c, _ in front],
        [100 * g for _, g in front],
        where="post",
        color=colour("ink"),
        linewidth=1.2,
        marker="o",  # a front may be a single point
        markersize=7,
        markeredgewidth=0.8,
        fillstyle="none",
        label="Pareto front",
        zorder=1,
    )
    rows += [("all", "pareto front", None, c, g) for c, g in front]
    titles = {run.slug: run.title for run in runs}
    index = {run.slug: i for i, run in enumerate(runs)}
    for slug, network, cost, share in anchors:
        mark, size = ("*", 11) if network == "QANN" else ("X", 8)
        axes.plot(
            [cost / unit],
            [100 * share],
            mark,
            color=colour("ink") if alone else series_style(index[slug])["color"],
            markersize=size,
            fillstyle="full" if network == "QANN" else "none",
            label=network if alone else None,
            linestyle="none",
        )
        rows.append((titles[slug], network.lower(), None, cost, share))
    reach = [cost for cost, _ in every] + [a[2] for a in anchors]
    if min(reach) > 0 and max(reach) / min(reach) > 30:
        from matplotlib.ticker import FuncFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.6g}"))
    axes.set_xlabel(text)
    axes.grid(axis="x")
    percent_axis(axes, gain_text)
    legend_below(figure, 2 if alone else 1)
    caption = (
        "Each point is a step t; cost is everything spent up to t, per image. The front joins the steps that no other"
        " step shown beats; a QANN may."
    )
    if anchors and not alone:
        caption += " Stars are the runs' QANNs, crosses their ANNs."
    missing = [run.title for run in runs if run.slug not in costs]
    if missing:
        caption += f" Not measured for: {'; '.join(missing)}."
    table = Table.of(title, ["run", "network", "t", column, gain], rows)
    return [Drawing(name, title, caption, table, figure, further)]


def pareto_synops(runs: Sequence[Run]) -> Sequence[Drawing | Absent]:
    """Accuracy against synaptic operations per image."""
    title = "Accuracy against SynOps"
    costs = {run.slug: run.record.synops for run in runs if run.record.synops}
    if not costs:
        return [Absent(title, "synaptic operations were not counted", COUNTING)]
    most = max(max(values) for values in costs.values())
    unit, prefix = next(((u, p) for u, p in ((1e9, "10⁹ "), (1e6, "10⁶ "), (1e3, "10³ ")) if most >= u), (1.0, ""))
    return _pareto(
        "pareto-synops", title, runs, costs, (f"SynOps per image ({prefix.strip() or 'count'})", unit, "synops")
    )


def pareto_energy(runs: Sequence[Run]) -> Sequence[Drawing | Absent]:
    """Accuracy against energy per image, a figure for each energy model."""
    title = "Accuracy against energy"
    models = list(
        dict.fromkeys(m.name for run in runs if run.record.energy for m in run.record.energy.models if m.snn_pj)
    )
    if not models:
        return [Absent(title, "energy was not measured", COUNTING)]
    drawings: list[Drawing | Absent] = []
    for number, model_name in enumerate(models, start=1):
        costs: dict[str, Sequence[float]] = {}
        anchors = []
        for run in runs:
            for model in run.record.energy.models if run.record.energy else ():
                if model.name != model_name or not model.snn_pj:
                    continue
                costs[run.slug] = model.snn_pj
                result = run.record.accuracy
                for network, cost, share in (
                    ("QANN", model.qann_pj, result and result.qann),
                    ("ANN", model.ann_pj, result and result.ann),
                ):
                    if cost is not None and share is not None and result and result.snn:
                        anchors.append((run.slug, network, cost, share))
        unit, symbol = energy_unit(max(max(c) for c in costs.values()))
        name = "pareto-energy" if len(models) == 1 else f"pareto-energy-{number}"
        axis = (f"energy per image ({symbol})", unit, "energy_pj")
        drawings += _pareto(name, f"{title}: {model_name}", runs, costs, axis, anchors, further=number > 1)
    return drawings


def energy_ratio(runs: Sequence[Run]) -> Sequence[Drawing | Absent]:
    """Energy of the SNN as a multiple of its bit-matched QANN's, at every t; a figure a model for several runs."""
    title = "Energy, SNN / QANN"
    lines = [
        (i, run, model)
        for i, run in enumerate(runs)
        for model in (run.record.energy.models if run.record.energy else ())
        if model.qann_pj and model.snn_pj
    ]
    if not lines:
        return [Absent(title, "energy was not measured for both the SNN and the QANN")]
    if len(runs) == 1:
        shown = [(i, run, model, model.name) for i, (_, run, model) in enumerate(lines)]
        return [_ratio("energy-ratio", title, shown)]
    models = list(dict.fromkeys(model.name for _, _, model in lines))
    return [
        _ratio(
            "energy-ratio" if len(models) == 1 else f"energy-ratio-{number}",
            f"{title}: {name}",
            [(i, run, model, run.title) for i, run, model in lines if model.name == name],
            further=number > 1,
        )
        for number, name in enumerate(models, start=1)
    ]


def _ratio(name: str, title: str, lines: Sequence[tuple[int, Run, EnergyModel, str]], further: bool = False) -> Drawing:
    """SNN / QANN over time; each line with the index of its style and its name."""
    figure = new_figure(310 + 12 * max(len(lines) - 2, 0))
    axes = figure.add_subplot()
    rows: list[tuple[Cell, ...]] = []
    for i, run, model, said in lines:
        ratio = [e / (model.qann_pj or 1.0) for e in model.snn_pj]
        axes.plot(
            steps_of(ratio),
            ratio,
            **{**series_style(i), "marker": "o"},
            markersize=3,
            label=f"{label(said, LEGEND - 8)}: {ratio[-1]:.3g} at the end",
        )
        rows += [(run.title, model.name, t, r) for t, r in zip(steps_of(ratio), ratio, strict=True)]
    step_axis(axes, steps_shown([run for _, run, _, _ in lines]))
    most = [max(m.snn_pj) / (m.qann_pj or 1.0) for _, _, m, _ in lines]
    if min(most) > 0 and max(most) / min(most) > 10:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(0, 1.05 * max(1.0, *most))
    axes.axhline(1, color=colour("ink"), linewidth=1, linestyle=(0, (6, 3)))
    axes.set_ylabel("energy / energy of the QANN")
    axes.grid(axis="y")
    legend_below(figure, 1)
    caption = "Under the dashed line the SNN, stopped at step t, has spent less than the QANN with the same bits."
    return Drawing(name, title, caption, Table.of(title, ["run", "model", "t", "ratio"], rows), figure, further)


def _greatest(layers: Sequence[EnergyLayer], most: int) -> tuple[list[EnergyLayer], int]:
    """The rows that cost most, in their order, the others as one row at the end; and how many those are."""
    if len(layers) <= most:
        return list(layers), 0
    cost = [max(x.snn_pj or 0, x.qann_pj or 0) for x in layers]
    total = sum(cost)
    kept = {i for i in sorted(range(len(layers)), key=lambda i: -cost[i])[: most - 1] if cost[i] > 0.002 * total}
    others = [x for i, x in enumerate(layers) if i not in kept]
    known = [x.qann_pj for x in others if x.qann_pj is not None]
    together = EnergyLayer(
        name=f"{len(others)} others", snn_pj=sum(x.snn_pj or 0 for x in others), qann_pj=sum(known) if known else None
    )
    return [*(x for i, x in enumerate(layers) if i in kept), together], len(others)


def audit_bars(run: Run) -> Sequence[Drawing | Absent]:
    """Accumulates and multiply-accumulates of each synaptic operation, beside the MACs of reading it as integers."""
    title = "AC against MAC"
    audit = run.record.audit
    rows = [r for r in (audit.rows if audit else ()) if r.acs is not None]
    if not audit or not rows:
        return [Absent(title, "the operations were not audited", COUNTING)]
    most = max(max((r.acs or 0) + (r.macs or 0), r.as_macs or 0, r.synapses) for r in rows)
    unit, power = next(((u, p) for u, p in ((1e9, "10⁹"), (1e6, "10⁶"), (1e3, "10³")) if most >= u), (1.0, "count"))
    figure = new_figure(rows_height(len(rows)))
    axes = figure.add_subplot()
    places = range(len(rows))
    acs = [(r.acs or 0) / unit for r in rows]
    axes.barh(places, acs, height=0.66, color=colour("s1"), label="ACs, stream by stream")
    axes.barh(
        places, [(r.macs or 0) / unit for r in rows], left=acs, height=0.66, color=colour("s2"), label="MACs needed"
    )
    read = [(r.as_macs or 0) / unit for r in rows]
    axes.plot(read, places, "|", color=colour("ink"), markersize=9, markeredgewidth=2, label="MACs, read as integers")
    dense = [r.synapses / unit for r in rows]
    rim, inside = colour("s5"), colour("surface")
    axes.plot(dense, places, "o", color=rim, markerfacecolor=inside, markersize=5, label="MACs of the QANN")
    layer_axis(axes, [r.name for r in rows])
    axes.set_xlim(left=0)
    axes.set_xlabel(f"operations per image ({power})")
    axes.grid(axis="x")
    legend_below(figure, 2)
    caption = (
        f"What each synaptic operation does in {audit.steps} steps: accumulates as its streams of spikes come, or"
        " multiply-accumulates if each step's operand were read as integers instead."
    )
    columns = ["operation", "receives", "synapses", "acs", "macs", "macs_as_integers"]
    data = [(r.name, r.input, r.synapses, r.acs, r.macs, r.as_macs) for r in rows]
    return [Drawing("audit", title, caption, Table.of(title, columns, data), figure)]


def energy_by_layer(run: Run) -> Sequence[Drawing | Absent]:
    """Where the energy goes: SNN and QANN, layer by layer."""
    title = "Energy by layer"
    layers = [x for x in (run.record.energy.layers if run.record.energy else ()) if x.snn_pj is not None]
    if not layers:
        return [Absent(title, "energy was not measured by layer", COUNTING)]
    layers, rest = _greatest(layers, 36)
    most = max(max(x.snn_pj or 0, x.qann_pj or 0) for x in layers)
    unit, symbol = energy_unit(most)
    figure = new_figure(rows_height(len(layers)))
    axes = figure.add_subplot()
    places = range(len(layers))
    axes.barh(places, [(x.snn_pj or 0) / unit for x in layers], height=0.66, color=colour("s1"), label="SNN")
    known = [i for i in places if layers[i].qann_pj is not None]
    if known:
        values = [(layers[i].qann_pj or 0) / unit for i in known]
        axes.plot(values, known, "|", color=colour("s2"), markersize=9, markeredgewidth=2.2, label="QANN")
    layer_axis(axes, [x.name for x in layers])
    axes.set_xlim(left=0)
    axes.set_xlabel(f"energy per image ({symbol})")
    axes.grid(axis="x")
    legend_below(figure)
    model = run.record.energy.models[0].name if run.record.energy and run.record.energy.models else None
    every = [x for x in (run.record.energy.layers if run.record.energy else ()) if x.snn_pj is not None]
    caption = f"Energy of one image over all {run.record.steps} steps{f', model {model}' if model else ''}."
    if rest:
        caption += f" The {rest} rows that cost least are shown together; the data hold each."
    if run.record.energy and run.record.energy.uncounted:
        caption += f" Not counted, so not here: {', '.join(run.record.energy.uncounted)}."
    rows = [(x.name, x.kind, x.input, x.snn_pj, x.qann_pj) for x in every]
    return [
        Drawing(
            "energy-by-layer",
            title,
            caption,
            Table.of(title, ["layer", "kind", "input", "snn_pj", "qann_pj"], rows),
            figure,
        )
    ]
