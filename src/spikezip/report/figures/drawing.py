"""What a figure is, and the few ways of drawing that several share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spikezip.report.schema import Record
from spikezip.report.style import RAMPS, colour, label
from spikezip.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_SPAN = 5.0  # per cent that an axis of shares spans at least: a hair's breadth must not look like a cliff
LEGEND = 48  # characters of a run's name in a legend of one column
COUNTING = (
    "For SynOps, energy and the audit, run the network again: spikezip run BUNDLE --data DATA, or"
    " spikezip.measure(snn, images)."
)
EXITING = "For early exit, run it with spikezip run ... --early-exit margin:0.6, or early_exit=[Margin(0.6)]."


@dataclass(frozen=True)
class Run:
    """A record and the name it goes by on this page (unique, also as part of a file name)."""

    record: Record
    title: str
    slug: str


@dataclass(frozen=True)
class Drawing:
    """A figure with its words and its data.

    Args:
        name: file name and anchor, unique within a run.
        title: what is plotted.
        caption: how to read it, with the figures worth reading (plain text).
        data: everything that is plotted, at full precision.
        figure: drawn in the light palette.
        further: whether it shows again, by one more energy model, what a figure before it shows.
    """

    name: str
    title: str
    caption: str
    data: Table
    figure: Figure
    further: bool = False


@dataclass(frozen=True)
class Absent:
    """A figure that the record holds no data for, why, and how to have it."""

    title: str
    why: str
    how: str = ""


def steps_of(values: Sequence[Any]) -> range:
    """The steps 1..T of a series."""
    return range(1, len(values) + 1)


def steps_shown(runs: Sequence[Run]) -> int:
    """Where the time axis ends: a little after the last of them has settled, as nothing changes from there on."""
    return max(_steps_shown(run.record) for run in runs)


def _steps_shown(record: Record) -> int:
    return min(record.steps, record.busy_steps + max(3, record.busy_steps // 5))


def step_axis(axes: Axes, steps: int) -> None:
    """An x axis of whole time steps."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("time step t")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.set_xlim(0.5 if steps < 3 else 1 - 0.02 * steps, steps + (0.5 if steps < 3 else 0.02 * steps))


def percent_axis(axes: Axes, text: str) -> None:
    """A y axis of shares in per cent, never past 100, and never so short that a small difference looks large."""
    axes.set_ylabel(text)
    axes.grid(axis="y")
    low, high = axes.get_ylim()
    if high - low < LEAST_SPAN:
        high = min((low + high + LEAST_SPAN) / 2, 100 + 0.02 * LEAST_SPAN)
        low = high - LEAST_SPAN
    axes.set_ylim(max(low, -2), min(high + 0.02 * (high - low), 102))  # a line at the very top stays in sight


def mark_steps(axes: Axes, marks: Sequence[tuple[float, str]]) -> None:
    """Thin upright lines at steps worth knowing, named above the axes, in two rows where names would meet."""
    left, right = axes.get_xlim()
    last, row = -1.0, 0
    for step, name in sorted(marks):
        place = (step - left) / (right - left)
        row = 1 - row if last >= 0 and place - last < 0.12 else 0
        last = place
        axes.axvline(step, color=colour("muted"), linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
        align = "left" if place < 0.12 else "right" if place > 0.88 else "center"
        axes.annotate(
            name,
            (step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4 + 14 * row),
            textcoords="offset points",
            ha=align,
            fontsize=10.5,
            color=colour("muted"),
        )


def legend_below(figure: Figure, columns: int = 3) -> None:
    """A legend under the axes, where no line can run through it."""
    handles, names = [], []
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            if name not in names:
                handles.append(handle)
                names.append(name)
    if handles:
        figure.legend(handles, names, loc="outside lower left", ncols=min(columns, len(names)), columnspacing=1.4)


def heat(axes: Axes, values: Any, extent: tuple[float, float, float, float], top: float) -> None:
    """A heat map from 0 to ``top``, one pixel per cell, once for each theme."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.image import AxesImage

    number = len(axes.figure.findobj(AxesImage))
    for theme, ramp in RAMPS.items():
        axes.imshow(
            values,
            cmap=LinearSegmentedColormap.from_list(theme, ramp),
            vmin=0,
            vmax=top,
            extent=extent,
            aspect="auto",
            interpolation="none",  # kept as it is in the SVG, one pixel per cell
            gid=f"only-{theme}-{number}",
        )


def heat_key(figure: Figure, axes: Axes, text: str, top: float) -> None:
    """The colour scale of a heat map, above it."""
    import numpy as np

    point = 1 / (72 * figure.get_size_inches()[1] - 60)  # in shares of the axes' height; 60 for labels and scale
    key = axes.inset_axes((0.45, 1 + 7 * point, 0.55, 9 * point))
    heat(key, np.linspace(0, top, 64)[None], (0, top, 0, 1), top)
    key.set_yticks([])
    key.xaxis.tick_top()
    key.set_xticks([0, top], ["0", f"{top:.3g}"])
    key.tick_params(length=0, pad=2)
    key.spines[:].set_visible(False)
    key.annotate(
        text, (0, 0.5), xycoords="axes fraction", xytext=(-6, 0), textcoords="offset points", ha="right", va="center"
    )


def layer_axis(axes: Axes, names: Sequence[str]) -> None:
    """A y axis of layers, first on top; where there are too many, every so many is named."""
    every = -(-len(names) // 44)
    ticks = range(0, len(names), every)
    axes.set_yticks(list(ticks), [label(names[i]) for i in ticks], fontsize=10)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def rows_height(rows: int, least: float = 150.0) -> float:
    """Height of a figure with one row a layer."""
    return min(max(least, 92 + 14 * rows), 660.0)
