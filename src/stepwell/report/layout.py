"""What both renderers of a chart need to agree on: gaps, bars, which series is labelled where.

Pure arithmetic on figures; draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stepwell.report.figure import Chart, Heatmap, Series
from stepwell.report.numerals import fixed, number, shared_decimals
from stepwell.report.scale import Axis, Floats, bar_spacing, spread

MOST_END_LABELS = 8
MOST_END_LETTERS = 24
MOST_WRITTEN_COLUMNS = 16
BAR_SHARE = 0.78
LABEL_TURNS_AT = 0.85


def runs(values: Floats) -> list[slice]:
    """The stretches of columns of `values` [..., N] that hold no NaN, in order."""
    whole = ~np.isnan(np.atleast_2d(values)).any(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], whole, [False]]).astype(np.int8)))
    return [slice(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def lone_points(x: Floats, y: Floats) -> NDArray[np.intp]:
    """The numbers of the points between two gaps, where a line has no segment to be seen."""
    alone = [run.start for run in runs(np.stack([x, y])) if run.stop - run.start == 1]
    return np.array(alone, dtype=np.intp)


def bar_edges(chart: Chart, series: Series) -> tuple[Floats, Floats]:
    """Left and right ends in x of each bar of `series`, beside those of the other series."""
    members = [other for other in chart.series if other.style == "bars"]
    room = bar_spacing(chart) * BAR_SHARE
    width = room / len(members)
    left = series.table[0] - room / 2 + members.index(series) * width
    return left, left + width


def compared(chart: Chart) -> list[Series]:
    """The series that need to be told apart: all but the lines to compare with."""
    return [series for series in chart.series if series.style != "reference"]


def end_labels(chart: Chart, axes: tuple[Axis, Axis], gap: float) -> dict[int, float]:
    """The place in y, 0 to 1, of a label at the right end of each line, by number of the series.

    Empty where a legend is better: not all are lines, some end early, or labels would not fit.
    """
    x_axis, y_axis = axes
    if len(chart.series) < 2 or any(series.style in ("bars", "points") for series in chart.series):
        return {}
    ends = [_last_place(series, x_axis, y_axis) for series in chart.series]
    longest = max(len(series.name) for series in chart.series)
    if len(ends) > MOST_END_LABELS or len(ends) * gap > 1 or longest > MOST_END_LETTERS:
        return {}
    if any(end is None for end in ends):
        return {}
    return dict(enumerate(spread([end for end in ends if end is not None], gap)))


def point_labels(chart: Chart, axes: tuple[Axis, Axis]) -> list[tuple[str, float, float]]:
    """The names of single points with their places, 0 to 1 in x and y.

    A name stands to the lower right of its point, where a rising curve leaves room; for a point
    near the right edge to its upper left, for one near the bottom to its upper right.
    """
    labels = []
    for series in chart.series:
        places = [axis.place(row) for axis, row in zip(axes, series.table[:2], strict=True)]
        for label, x, y in zip(series.labels, *places, strict=False):
            if label and math.isfinite(x) and math.isfinite(y):
                labels.append((label, float(x), float(y)))
    return labels


def wants_legend(chart: Chart) -> bool:
    """Whether a reader needs names to tell the series of a chart apart."""
    return len(chart.series) > 1


def wide_ticks(labels: Sequence[str]) -> bool:
    """Whether the labels of x are too long to stand side by side on a narrow page."""
    return sum(len(label) + 2 for label in labels) > 40


def cell_text(heatmap: Heatmap) -> Sequence[Sequence[str]]:
    """What is written in each cell: its own text, else its value; nothing where cells are many."""
    if heatmap.text or heatmap.array.shape[1] > MOST_WRITTEN_COLUMNS:
        return heatmap.text
    decimals = shared_decimals(heatmap.array.ravel().tolist(), 3)
    return [[_written(value, decimals) for value in row] for row in heatmap.array.tolist()]


def short_names(names: Sequence[str]) -> tuple[str, list[str]]:
    """The word that all of some numbered names begin with, "" if none, and the names without it."""
    word = names[0].rstrip("0123456789")
    if not all(name.startswith(word) and name != word for name in names):
        word = ""
    return word.strip(), [name.removeprefix(word) for name in names]


def _written(value: float, decimals: int | None) -> str:
    if math.isnan(value):
        return ""
    return number(value, 3) if decimals is None else fixed(value, decimals)


def _last_place(series: Series, x_axis: Axis, y_axis: Axis) -> float | None:
    places: NDArray[np.float64] = np.stack(
        [x_axis.place(series.table[0]), y_axis.place(series.table[1])]
    )
    seen = places[:, ~np.isnan(places).any(axis=0)]
    if not seen.size or seen[0].max() < 0.97:
        return None
    last = float(seen[1, seen[0].argmax()])
    return last if -0.02 <= last <= 1.02 else None
