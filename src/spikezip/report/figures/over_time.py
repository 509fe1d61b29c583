"""Figures along the time axis: accuracy and agreement with the QANN."""

from __future__ import annotations

from collections.abc import Sequence

from spikezip.report.figures.drawing import (
    LEGEND,
    Absent,
    Drawing,
    Run,
    legend_below,
    mark_steps,
    percent_axis,
    step_axis,
    steps_of,
    steps_shown,
)
from spikezip.report.style import colour, label, new_figure, series_style
from spikezip.report.tables import Cell, Table, percent


def accuracy(runs: Sequence[Run]) -> Sequence[Drawing | Absent]:
    """Accuracy of the SNN at every t, with the ANN's and the QANN's as lines and T_off and T_eq marked."""
    title = "Accuracy against time"
    shown = [
        (i, run, run.record.accuracy) for i, run in enumerate(runs) if run.record.accuracy and run.record.accuracy.snn
    ]
    if not shown:
        return [Absent(title, "no labels were given")]
    alone = len(runs) == 1
    figure = new_figure(310 + (0 if alone else 12 * len(shown)))
    axes = figure.add_subplot()
    columns, rows = ["run", "t", "snn", "qann", "ann"], []
    for i, run, result in shown:
        assert result.snn is not None
        look = series_style(i)
        steps = steps_of(result.snn)
        name = "SNN" if alone else label(run.title, LEGEND)
        last = percent(result.snn[-1])
        axes.plot(steps, [100 * a for a in result.snn], **{**look, "marker": "o"}, markersize=3, label=f"{name} {last}")
        if result.qann is not None:
            axes.axhline(
                100 * result.qann,
                color=colour("ink") if alone else look["color"],
                linewidth=1.1,
                linestyle=(0, (6, 3)) if alone else (0, (1, 1.5)),
                label=f"QANN {percent(result.qann)}" if alone else None,
            )
        if result.ann is not None and alone:
            axes.axhline(
                100 * result.ann,
                color=colour("muted"),
                linewidth=1.2,
                linestyle=(0, (1, 2)),
                label=f"ANN {percent(result.ann)}",
            )
        settled = run.record.settled
        if not alone and settled and settled.t_eq_max and settled.t_eq_max <= len(steps):
            at = 100 * result.snn[settled.t_eq_max - 1]
            axes.plot([settled.t_eq_max], [at], look["marker"], color=look["color"], markersize=8, fillstyle="none")
        rows += [(run.title, t, a, result.qann, result.ann) for t, a in zip(steps, result.snn, strict=True)]
    step_axis(axes, steps_shown([run for _, run, _ in shown]))
    percent_axis(axes, "accuracy (%)")
    if alone:
        mark_steps(axes, _marks(runs[0]))
        caption = "Accuracy of the SNN when read out at step t. " + _marks_in_words(runs[0])
    else:
        caption = (
            "Accuracy when read out at step t; a run's QANN is the dotted line in its colour, the large open"
            " marker is its T_eq (slowest image). The legend gives the accuracy at the last step."
        )
    legend_below(figure, 3 if alone else 1)
    data = Table.of(title, columns, rows)
    left_out = [run.title for run in runs if not (run.record.accuracy and run.record.accuracy.snn)]
    if left_out:
        caption += f" Without labels, so without a line: {'; '.join(left_out)}."
    return [Drawing("accuracy", title, caption, data, figure)]


def _marks(run: Run) -> list[tuple[float, str]]:
    settled = run.record.settled
    marks = []
    if settled and settled.t_off and settled.t_off <= run.record.steps:
        marks.append((settled.t_off, "T_off"))
    if settled and settled.t_eq_max and settled.t_eq_max <= run.record.steps:
        marks.append((settled.t_eq_max, "T_eq"))
    return marks


def _marks_in_words(run: Run) -> str:
    settled = run.record.settled
    words = []
    if settled and settled.t_off:
        words.append(f"T_off = {settled.t_off}: from here on the whole input has been delivered.")
    if settled and settled.outcome == "STEP_LIMIT":
        words.append(f"The network was still firing at the last step, {run.record.steps}, so T_eq is not known.")
    elif settled and settled.t_eq_max:
        words.append(
            f"T_eq = {settled.t_eq_max}: from here on even the slowest image's neurons hold their final codes, and"
            " nothing changes any more."
        )
    return " ".join(words)


def agreement(runs: Sequence[Run]) -> Sequence[Drawing | Absent]:
    """Share of images whose prediction at step t is the QANN's."""
    title = "Agreement with the QANN"
    shown = [(i, run, run.record.agreement) for i, run in enumerate(runs) if run.record.agreement]
    if not shown:
        return [Absent(title, "the record holds no predictions of the QANN")]
    alone = len(runs) == 1
    figure = new_figure(310 + (0 if alone else 12 * len(shown)))
    axes = figure.add_subplot()
    rows: list[tuple[Cell, ...]] = []
    for i, run, shares in shown:
        steps = steps_of(shares)
        axes.plot(
            steps,
            [100 * a for a in shares],
            **{**series_style(i), "marker": "o"},
            markersize=3,
            label=f"{'SNN = QANN' if alone else label(run.title, LEGEND)} {percent(shares[-1])}",
        )
        rows += [(run.title, t, a) for t, a in zip(steps, shares, strict=True)]
    step_axis(axes, steps_shown([run for _, run, _ in shown]))
    percent_axis(axes, "same prediction (%)")
    caption = (
        "Share of images for which the SNN, read out at step t, predicts what its QANN predicts; no labels needed."
    )
    if alone:
        mark_steps(axes, _marks(runs[0]))
        whole = next((t for t in steps_of(shown[0][2]) if min(shown[0][2][t - 1 :]) == 1), None)
        caption += (
            f" From t = {whole} on, all agree." if whole else f" At the last step {percent(shown[0][2][-1])} agree."
        )
    legend_below(figure, 3 if alone else 1)
    return [Drawing("agreement", title, caption, Table.of(title, ["run", "t", "agreement"], rows), figure)]
