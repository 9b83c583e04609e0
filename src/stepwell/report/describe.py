"""What a picture shows, in words, for those who cannot see it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepwell.report.figure import Chart, Heatmap, HeatmapGrid, Picture, Series, TokenStrip
from stepwell.report.numerals import number, percent


def describe(picture: Picture) -> str:
    """A text alternative of one to a few sentences: kind, axes, and the values that matter."""
    if isinstance(picture, Chart):
        return _chart(picture)
    if isinstance(picture, Heatmap):
        return _heatmap(picture)
    return _strip(picture) if isinstance(picture, TokenStrip) else _grid(picture)


def x_text(chart: Chart, value: float) -> str:
    """A value of x as the chart writes it: the nearest category, a percentage or a number."""
    if chart.categories:
        return chart.categories[min(max(round(value), 0), len(chart.categories) - 1)]
    return percent(value) if chart.x_percent else number(value)


def y_text(chart: Chart, value: float) -> str:
    """A value of y as the chart writes it."""
    return percent(value) if chart.y_percent else number(value)


def _chart(chart: Chart) -> str:
    kinds = {series.style for series in chart.series} - {"reference"}
    kind = {frozenset({"bars"}): "Bar chart", frozenset({"line"}): "Line chart"}.get(
        frozenset(kinds), "Chart"
    )
    parts = [f"{kind}: {chart.title}. {chart.y_label} by {chart.x_label}."]
    return " ".join(parts + [_series(chart, series) for series in chart.series])


def _series(chart: Chart, series: Series) -> str:
    x, y = series.table[:2]
    seen = ~np.isnan(x) & ~np.isnan(y)
    x, y = x[seen], y[seen]
    if not x.size:
        return f"{series.name}: no values."

    def at(place: int) -> str:
        return f"{y_text(chart, float(y[place]))} at {x_text(chart, float(x[place]))}"

    if x.size == 1:
        return f"{series.name}: {at(0)}."
    lowest, highest = int(y.argmin()), int(y.argmax())
    return (
        f"{series.name}: {x.size} values from {at(0)} to {at(-1)},"
        f" lowest {at(lowest)}, highest {at(highest)}."
    )


def _heatmap(heatmap: Heatmap) -> str:
    rows, columns = heatmap.array.shape
    axes = f"{rows} x {columns}"
    if heatmap.y_label and heatmap.x_label:
        axes = f"{rows} by {heatmap.y_label}, {columns} by {heatmap.x_label}"
    names = [heatmap.row_names, heatmap.column_names]
    labels = [heatmap.y_label, heatmap.x_label]
    return f"Heatmap: {heatmap.title}. {axes}. {_largest(heatmap.array, names, labels)}"


def _grid(grid: HeatmapGrid) -> str:
    rows, columns, num_y, num_x = grid.array.shape
    labels = ["", "", grid.y_label, grid.x_label]
    return (
        f"Grid of {rows} x {columns} heatmaps: {grid.title}. Each shows {num_y} by {grid.y_label}"
        f" and {num_x} by {grid.x_label}. {_largest(grid.array, list(grid.names), labels)}"
    )


def _strip(strip: TokenStrip) -> str:
    names = [list(strip.tokens)]
    return (
        f"Text of {len(strip.tokens)} tokens, each with its {strip.value_label}: {strip.title}."
        f" {_largest(strip.array, names, ['token'])}"
    )


def _largest(array: NDArray[np.floating], names: list[list[str]], labels: list[str]) -> str:
    if np.isnan(array).all():
        return "No values."
    place = np.unravel_index(int(np.nanargmax(array)), array.shape)
    words = [
        f"{label} {axis[index]}".strip()
        for label, axis, index in zip(labels, names, place, strict=True)
    ]
    return f"The largest value is {number(float(array[place]))} at {', '.join(words)}."
