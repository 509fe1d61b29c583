"""Early exit: accuracy against the mean number of steps, beside the same number of steps for every image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spikezip.report.figures.drawing import EXITING, LEGEND, Absent, Drawing, Run, legend_below, percent_axis
from spikezip.report.schema import ExitPoint
from spikezip.report.style import colour, label, new_figure, series_style
from spikezip.report.tables import Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = dict[str, tuple[list[ExitPoint], list[ExitPoint]]]


def early_exit(runs: Sequence[Run]) -> Sequence[Drawing | Absent]:
    """Accuracy against the mean exit step of images that leave once their answer is clear, or once they settled."""
    title = "Early exit"
    shown = [(i, run, curves) for i, run in enumerate(runs) if (curves := _curves(run))]
    if not shown:
        return [Absent(title, "early exit was not measured", EXITING)]
    alone = len(runs) == 1
    figure = new_figure(330 if alone else 310 + 12 * len(shown))
    axes = figure.add_subplot()
    rows: list[tuple[Cell, ...]] = []
    for i, run, curves in shown:
        fixed = (run.record.accuracy and run.record.accuracy.snn) or ()
        last = _last_step(run, curves)
        look = {"color": colour("muted"), "linestyle": (0, (6, 3))} if alone else {**series_style(i), "marker": None}
        axes.plot(
            range(1, len(fixed[:last]) + 1),
            [100 * share for share in fixed[:last]],
            **{**look, "linewidth": 1.2, "linestyle": (0, (1.2, 1.2)) if not alone else look["linestyle"]},
            label="every image at step t" if alone else None,
        )
        rows += [(run.title, "fixed", None, t, share) for t, share in enumerate(fixed[:last], start=1)]
        chief = next((rule for rule, (curve, _) in curves.items() if curve), next(iter(curves)))
        for number, (rule, (curve, asked)) in enumerate(curves.items()):
            name = rule if alone else label(f"{run.title}: {rule}", LEGEND)
            if alone or rule == chief:  # of several runs, the first rule of each that has a curve
                _draw(axes, curve, asked, series_style(number if alone else i), name)
            rows += [(run.title, rule, p.threshold, p.mean_step, p.accuracy) for p in [*curve, *asked]]
    axes.set_xlabel("mean time steps per image")
    axes.margins(x=0.05, y=0.08)
    percent_axis(axes, "accuracy (%)")
    legend_below(figure, 2 if alone else 1)
    caption = (
        "An image leaves at the first step at which its confidence passes a threshold (a point a threshold), or once"
        " it has settled. The large open marker is what was asked for; the "
        + ("dashed" if alone else "dotted")
        + " line stops every image at the same step."
    )
    columns = ["run", "rule", "threshold", "mean_steps", "accuracy"]
    return [Drawing("early-exit", title, caption, Table.of(title, columns, rows), figure)]


def _curves(run: Run) -> Curves:
    """Per rule: its curve, and the points that were asked for."""
    found: Curves = {}
    for entry in run.record.early_exit or ():
        if entry.accuracy is None:
            continue
        curve, asked = found.setdefault(entry.rule, ([], []))
        asked.append(entry)
        if not curve:
            known = [p for p in entry.curve if p.accuracy is not None]
            curve += sorted(known, key=lambda p: (p.mean_step, p.threshold or 0.0))
    return found


def _last_step(run: Run, curves: Curves) -> int:
    """Where the axis ends: once the slowest image has settled there is nothing more to see."""
    furthest = max(p.mean_step for pair in curves.values() for points in pair for p in points)
    settled = run.record.settled
    known = settled.t_eq_max if settled and settled.t_eq_max else run.record.steps
    return max(int(furthest) + 1, known)


def _draw(axes: Axes, curve: list[ExitPoint], asked: list[ExitPoint], look: dict, name: str) -> None:
    if curve:
        x, y = [p.mean_step for p in curve], [100 * (p.accuracy or 0) for p in curve]
        axes.plot(x, y, **look, markersize=3.5, label=name)
    axes.plot(
        [p.mean_step for p in asked],
        [100 * (p.accuracy or 0) for p in asked],
        look["marker"],
        color=look["color"],
        markersize=9,
        fillstyle="none",
        markeredgewidth=1.6,
        label=None if curve else name,
    )
