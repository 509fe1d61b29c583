"""Two networks side by side: in which layers, and until which step, their codes differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spikezip.report.figures.drawing import Drawing, heat, heat_key, layer_axis, rows_height, step_axis
from spikezip.report.style import colour, new_figure
from spikezip.report.tables import Cell, Table


def comparison(content: Mapping[str, Any]) -> Drawing:
    """Where the accuracy went: layers by steps, or one bar a layer for networks without time.

    Args:
        content: ``Comparison.to_json()``.

    Returns:
        The :class:`Drawing`; ``.figure`` is a matplotlib figure.
    """
    import numpy as np

    layers = content["layers"]
    names = [layer["name"] for layer in layers]
    steps = len(layers[0]["differ"])
    values = np.array([[100 * share for share in layer["differ"]] for layer in layers])
    figure = new_figure(rows_height(len(layers)))
    axes = figure.add_subplot()
    if steps > 1:
        top = float(values.max()) or 1.0
        heat(axes, values, (0.5, steps + 0.5, len(layers) - 0.5, -0.5), top)
        step_axis(axes, steps)
        axes.set_xlim(0.5, steps + 0.5)
        axes.spines[:].set_visible(False)
        heat_key(figure, axes, "codes that differ (%)", top)
    else:
        axes.barh(range(len(layers)), values[:, 0], height=0.7, color=colour("s1"))
        axes.set_xlabel("codes that differ (%)")
        axes.set_xlim(left=0)
    layer_axis(axes, names)
    title = f"Differing codes, {content['kind']}"
    first = next((layer["name"] for layer in layers if layer["differ"][-1] > 0), None)
    caption = f"Share of neurons whose codes differ, mean over {content['images']} images. " + (
        "At the end no code differs." if first is None else f"The first layer that differs at the end is {first}."
    )
    rows: list[tuple[Cell, ...]] = [
        (
            layer["name"],
            t,
            layer["differ"][t - 1],
            layer["l1"][t - 1],
            layer["maximum"][t - 1],
            layer["correlation"][t - 1],
        )
        for layer in layers
        for t in range(1, steps + 1)
    ]
    columns = ["layer", "t", "share_of_codes_that_differ", "l1", "maximum", "correlation"]
    return Drawing("comparison", title, caption, Table.of(title, columns, rows), figure)
