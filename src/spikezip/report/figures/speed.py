"""The benchmark of speed as one figure: time against T and whatever else was varied, spikes, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spikezip.report.style import WIDTH, colour, series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AXES = {
    "levels": "levels",
    "batch": "images in a batch",
    "width": "width, multiples",
    "active": "share of units above 0 behind BatchNorm",
}
_HEIGHT = 215.0


def speed(content: Mapping[str, Any]) -> Figure:
    """Time of whole runs in ANN forward passes; one panel for T, one per further axis, spikes per step, memory.

    Args:
        content: the record of ``spikezip.bench.benchmark``.
    """
    from matplotlib.figure import Figure

    settings = content["settings"]
    varied = [name for name in _AXES if any(s["axis"] == name for s in settings)]
    panels = 3 + len(varied)
    rows = -(-panels // 2)
    figure = Figure(figsize=(2 * WIDTH * 0.82 / 72, rows * _HEIGHT / 72 + 0.45), layout="constrained")
    places = list(figure.subplots(rows, 2, squeeze=False).flat)
    for place in places[panels:]:
        place.set_axis_off()
    engines = list(dict.fromkeys(row["engine"] for row in settings[0]["rows"]))
    looks = {engine: series_style(i) for i, engine in enumerate(engines)}
    _against_steps(places[0], settings[0], looks)
    for place, name in zip(places[1:], varied):
        _against(place, name, [s for s in settings if s["axis"] in ("base", name)], looks)
    _spikes(places[1 + len(varied)], settings)
    _memory(places[2 + len(varied)], settings[0], looks)
    handles, names = places[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=4, columnspacing=1.4)
    return figure


def _time_axis(axes: Axes, most: float) -> None:
    axes.set_ylabel("ANN forward passes")
    axes.grid(axis="y")
    if most > 20:
        from matplotlib.ticker import LogLocator, NullLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, most * 1.1)


def _lines(
    axes: Axes, engine: str, points: Sequence[tuple[float, Mapping[str, Any]]], look: Mapping[str, Any]
) -> float:
    points = sorted(points, key=lambda p: p[0])
    x, y = [p[0] for p in points], [p[1]["ann_forwards"] for p in points]
    below = [p[1]["ann_forwards"] - p[1]["least"] for p in points]
    above = [p[1]["most"] - p[1]["ann_forwards"] for p in points]
    axes.errorbar(x, y, yerr=[below, above], label=engine, markersize=4.5, capsize=2.5, elinewidth=0.9, **look)
    return max(p[1]["most"] for p in points)


def _against_steps(axes: Axes, base: Mapping[str, Any], looks: Mapping[str, Mapping[str, Any]]) -> None:
    most = 0.0
    for engine, look in looks.items():
        points = [(row["steps"], row) for row in base["rows"] if row["engine"] == engine]
        most = max(most, _lines(axes, engine, points, look))
    axes.set_xlabel("time steps T")
    axes.set_xticks(sorted({row["steps"] for row in base["rows"]}))
    axes.set_title(
        f"Whole run, {base['levels']} levels, batch {base['batch']} (median, least to most)", loc="left", fontsize=10
    )
    _time_axis(axes, most)


def _against(
    axes: Axes, name: str, settings: Sequence[Mapping[str, Any]], looks: Mapping[str, Mapping[str, Any]]
) -> None:
    steps = max(row["steps"] for row in settings[0]["rows"])
    everywhere = [e for e in looks if all(any(row["engine"] == e for row in s["rows"]) for s in settings)]
    most = 0.0
    for engine in everywhere:
        points = [
            (s[name], row) for s in settings for row in s["rows"] if row["engine"] == engine and row["steps"] == steps
        ]
        most = max(most, _lines(axes, engine, points, looks[engine]))
    axes.set_xlabel(_AXES[name])
    ticks = sorted({s[name] for s in settings})
    if max(ticks) > 8 * min(ticks):
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title(f"T = {steps}", loc="left", fontsize=10)
    _time_axis(axes, most)


def _spikes(axes: Axes, settings: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    shown = [s for s in settings if s["axis"] in ("base", "levels", "active")]
    for i, setting in enumerate(shown):
        density = [100 * s / setting["neurons"] for s in setting["spikes_per_step"]]
        name = f"{setting['levels']} levels" + (f", {setting['active']:g} active" if setting["active"] else "")
        style = series_style(i)
        axes.plot(range(1, len(density) + 1), density, **{**style, "marker": None}, label=name)
    axes.set_xlabel("time step t")
    axes.set_ylabel("neurons that fire (%)")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_title("Spikes", loc="left", fontsize=10)
    axes.grid(axis="y")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")


def _memory(axes: Axes, base: Mapping[str, Any], looks: Mapping[str, Mapping[str, Any]]) -> None:
    steps = max(row["steps"] for row in base["rows"])
    peaks = [("one ANN forward", base["ann_peak_mib"], colour("muted"))]
    peaks += [
        (row["engine"], row["peak_mib"], looks[row["engine"]]["color"]) for row in base["rows"] if row["steps"] == steps
    ]
    known = [(name, peak, hue) for name, peak, hue in peaks if peak is not None]
    axes.set_title(f"Peak memory over the start, T = {steps}", loc="left", fontsize=10)
    if not known:
        axes.text(0.5, 0.5, "this system does not tell", ha="center", transform=axes.transAxes)
        return
    names = [name.replace(" ", "\n", 1) if len(name) > 16 else name for name, _, _ in known]
    bars = axes.barh(names, [peak for _, peak, _ in known], color=[hue for *_, hue in known], height=0.62)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=10)
    axes.invert_yaxis()
    axes.set_xlabel("MiB")
    axes.set_xlim(0, 1.18 * max(max(peak for _, peak, _ in known), 1))
    axes.tick_params(axis="y", length=0)
