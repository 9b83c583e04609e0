"""A chart as HTML: lines in an SVG that stretches, text beside it that does not.

The drawing takes the width it gets, and names and numbers keep their size on every screen. It needs
no script; the one that a page carries adds the values under the pointer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from stepwell.report.describe import describe, x_text
from stepwell.report.figure import Cell, Chart, Column, Estimate, Series, Table
from stepwell.report.layout import (
    LABEL_TURNS_AT,
    bar_edges,
    compared,
    end_labels,
    lone_points,
    point_labels,
    runs,
    wants_legend,
    wide_ticks,
)
from stepwell.report.markup import Markup, element, join, json_numbers, json_script
from stepwell.report.palette import DARK, LIGHT, series_color
from stepwell.report.scale import Axis, Floats, chart_axes, thin
from stepwell.report.tables import caption, table_markup

MOST_POINTS = 2000
MOST_LISTED = 60
END_LABEL_GAP = 0.068
SIZE = 1000


def chart_markup(chart: Chart) -> Markup:
    """The figure element of a chart."""
    axes = chart_axes(chart)
    labels = end_labels(chart, axes, END_LABEL_GAP)
    tables = [thin(series.table, MOST_POINTS) for series in chart.series]
    return element(
        "figure",
        caption(chart.title, chart.note),
        _legend(chart, narrow_only=bool(labels)),
        element(
            "div",
            element("div", chart.y_label, class_="y-name"),
            _y_ticks(axes[1]),
            _area(chart, axes),
            _end_labels(chart, labels),
            _slots(chart.categories) if chart.categories else _x_ticks(axes[0]),
            element("div", chart.x_label, class_="x-name"),
            class_="frame",
        ),
        _values(chart),
        json_script(_data(chart, axes, tables)),
        class_="chart",
    )


def _area(chart: Chart, axes: tuple[Axis, Axis]) -> Markup:
    y_axis = axes[1]
    rules = "".join(f"M0 {_y(place):.1f}H{SIZE}" for place in y_axis.place(y_axis.ticks))
    zero = y_axis.low if y_axis.log or not y_axis.low <= 0 <= y_axis.high else 0.0
    base = f"M0 {_y(float(y_axis.place(zero))):.1f}H{SIZE}"
    order = {"reference": 0, "bars": 1, "line": 2, "points": 3}
    drawn = sorted(enumerate(chart.series), key=lambda pair: order[pair[1].style])
    fixed = (*chart.x_range, *chart.y_range) != (None,) * 4
    return element(
        "div",
        element(
            "svg",
            _path(rules, "rules"),
            *(_drawing(chart, axes, number) for number, _ in drawn),
            _path(base, "base"),
            viewBox=f"0 0 {SIZE} {SIZE}",
            preserveAspectRatio="none",
            aria_hidden="true",
        ),
        _point_labels(chart, axes),
        class_="area clipped" if fixed else "area",
        tabindex=0,
        role="img",
        aria_label=describe(chart),
    )


def _drawing(chart: Chart, axes: tuple[Axis, Axis], number: int) -> Markup:
    """The paths of one series, in a group that carries its colour."""
    series = chart.series[number]
    table = thin(series.table, MOST_POINTS)
    x, y, low, high = axes[0].place(table[0]), *axes[1].place(table[1:])
    paths: list[Markup] = []
    if series.style == "bars":
        left, right = (axes[0].place(edge) for edge in bar_edges(chart, series))
        floor = max(0.0, float(axes[1].place(0.0))) if not axes[1].log else 0.0
        paths = [_path(_bars(left, right, y, floor), "bars")]
        x = (left + right) / 2
    elif series.style == "points":
        paths = [_path(_dots(x, y), "points")]
    elif series.style == "reference":
        paths = [_path(_line(x, y), "reference")]
    else:
        lone = lone_points(x, y)
        paths = [_path(_band(x, low, high), "band"), _path(_line(x, y), "line")]
        paths += [_path(_dots(x[lone], y[lone]), "points lone")]
    if series.style in ("bars", "points"):
        paths.append(_path(_whiskers(x, low, high), "whiskers"))
    return element("g", *paths, **_look(chart, number))


def _look(chart: Chart, number: int) -> dict[str, str | None]:
    """The style attribute that gives a series its colour on both themes, and its dashes."""
    series = chart.series[number]
    if series.style == "reference":
        return {"class_": "plain"}
    members = compared(chart)
    place, count = members.index(series), len(members)
    light, dark = (
        series_color(theme, place, count, ordered=chart.ordered) for theme in (LIGHT, DARK)
    )
    dashed = not chart.ordered and place >= len(LIGHT.series)
    return {"style": f"--l:{light};--d:{dark}", "class_": "hue dashed" if dashed else "hue"}


def _legend(chart: Chart, *, narrow_only: bool) -> Markup:
    if not wants_legend(chart):
        return Markup("")
    entries = [
        element(
            "li", element("i", class_=f"key {series.style}"), series.name, **_look(chart, number)
        )
        for number, series in enumerate(chart.series)
    ]
    return element("ul", *entries, class_="legend narrow" if narrow_only else "legend")


def _end_labels(chart: Chart, labels: dict[int, float]) -> Markup:
    entries = []
    for number, place in labels.items():
        look = _look(chart, number)
        style = f"{look.get('style', '')};top:{100 * (1 - place):.2f}%".lstrip(";")
        name = chart.series[number].name
        entries.append(element("span", name, style=style, class_=look["class_"]))
    return element("div", *entries, class_="ends", aria_hidden="true")


def _point_labels(chart: Chart, axes: tuple[Axis, Axis]) -> Markup:
    labels = []
    for label, x, y in point_labels(chart, axes):
        turns = ["left"] * (x > LABEL_TURNS_AT) + ["up"] * (y < 1 - LABEL_TURNS_AT)
        labels.append(
            element(
                "span",
                label,
                class_=" ".join(["mark", *turns]),
                style=f"left:{100 * x:.2f}%;top:{100 * (1 - y):.2f}%",
                aria_hidden="true",
            )
        )
    return join(*labels)


def _y_ticks(axis: Axis) -> Markup:
    ticks = [
        element("span", label, style=f"top:{100 * (1 - place):.2f}%")
        for label, place in zip(axis.labels, axis.place(axis.ticks).tolist(), strict=True)
    ]
    return element("div", *ticks, class_="y-ticks", aria_hidden="true")


def _x_ticks(axis: Axis) -> Markup:
    """Labels under the axis; on a narrow page every other one is left out where they are long."""
    skip = wide_ticks(axis.labels) and len(axis.labels) > 3
    ticks = [
        element(
            "span",
            label,
            style=f"left:{100 * place:.2f}%",
            class_="spare" if skip and number % 2 else None,
        )
        for number, (label, place) in enumerate(
            zip(axis.labels, axis.place(axis.ticks).tolist(), strict=True)
        )
    ]
    return element("div", *ticks, class_="x-ticks", aria_hidden="true")


def _slots(categories: Sequence[str]) -> Markup:
    """Names of categories, which lie evenly and break into lines where they are long."""
    names = [element("span", name) for name in categories]
    return element("div", *names, class_="x-ticks slots", aria_hidden="true")


def _values(chart: Chart) -> Markup:
    """The numbers of a chart with few points, folded away under it."""
    members = compared(chart)
    if not 0 < sum(series.table.shape[1] for series in members) <= MOST_LISTED:
        return Markup("")
    headers: list[str | Column] = [
        "series",
        chart.x_label,
        Column(chart.y_label, percent=chart.y_percent),
    ]
    rows = [row for series in members for row in _rows(chart, series)]
    table = table_markup(Table(headers, rows))
    return element("details", element("summary", "Values"), table)


def _rows(chart: Chart, series: Series) -> Iterable[list[Cell]]:
    names = series.labels or [""] * series.table.shape[1]
    for name, (x, y, low, high) in zip(names, series.table.T.tolist(), strict=True):
        value = y if np.isnan(low) else Estimate(y, low, high)
        yield [f"{series.name}: {name}" if name else series.name, x_text(chart, x), value]


def _data(chart: Chart, axes: tuple[Axis, Axis], tables: list[Floats]) -> dict[str, Any]:
    """What the script needs to show the values under the pointer."""
    series = []
    for number, (given, table) in enumerate(zip(chart.series, tables, strict=True)):
        if given.style == "reference":
            continue
        x, y, low, high = map(json_numbers, table)
        entry: dict[str, Any] = {"name": given.name, "style": given.style, "x": x, "y": y}
        entry["look"] = _look(chart, number)["style"]
        if not np.isnan(table[2]).all():
            entry |= {"low": low, "high": high}
        if given.labels and len(given.labels) == table.shape[1]:
            entry["labels"] = list(given.labels)
        series.append(entry)
    return {
        "x": _axis_data(axes[0], chart.x_label, chart.x_percent)
        | {"names": list(chart.categories)},
        "y": _axis_data(axes[1], chart.y_label, chart.y_percent),
        "series": series,
    }


def _axis_data(axis: Axis, label: str, as_percent: bool) -> dict[str, Any]:
    ends = {"low": axis.low, "high": axis.high}
    return {**ends, "log": axis.log, "label": label, "percent": as_percent}


def _path(drawing: str, kind: str) -> Markup:
    return element("path", d=drawing, class_=kind) if drawing else Markup("")


def _y(place: float) -> float:
    return SIZE * (1 - place)


def _line(x: Floats, y: Floats) -> str:
    pieces = []
    for run in runs(np.stack([x, y])):
        points = [f"{SIZE * px:.1f} {_y(py):.1f}" for px, py in zip(x[run], y[run], strict=True)]
        pieces.append("M" + "L".join(points))
    return "".join(pieces)


def _band(x: Floats, low: Floats, high: Floats) -> str:
    pieces = []
    for run in runs(np.stack([x, low, high])):
        outline = (
            np.concatenate([x[run], x[run][::-1]]),
            np.concatenate([high[run], low[run][::-1]]),
        )
        points = [f"{SIZE * px:.1f} {_y(py):.1f}" for px, py in zip(*outline, strict=True)]
        pieces.append("M" + "L".join(points) + "Z")
    return "".join(pieces)


def _dots(x: Floats, y: Floats) -> str:
    seen = ~np.isnan(x) & ~np.isnan(y)
    pairs = zip(x[seen], y[seen], strict=True)
    return "".join(f"M{SIZE * px:.1f} {_y(py):.1f}h0" for px, py in pairs)


def _bars(left: Floats, right: Floats, y: Floats, floor: float) -> str:
    seen = ~np.isnan(left) & ~np.isnan(y)
    return "".join(
        f"M{SIZE * start:.1f} {_y(floor):.1f}V{_y(top):.1f}H{SIZE * stop:.1f}V{_y(floor):.1f}Z"
        for start, stop, top in zip(left[seen], right[seen], y[seen], strict=True)
    )


def _whiskers(x: Floats, low: Floats, high: Floats) -> str:
    seen = ~np.isnan(x) & ~np.isnan(low) & ~np.isnan(high)
    return "".join(
        f"M{SIZE * place:.1f} {_y(bottom):.1f}V{_y(top):.1f}"
        for place, bottom, top in zip(x[seen], low[seen], high[seen], strict=True)
    )
