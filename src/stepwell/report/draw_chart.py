"""A chart drawn on a sheet; it looks as it does on the page.

Loads matplotlib: reach it through `stepwell.report.png`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes as Field
from matplotlib.patches import Rectangle

from stepwell.report.figure import Chart, Series
from stepwell.report.layout import (
    LABEL_TURNS_AT,
    bar_edges,
    compared,
    end_labels,
    lone_points,
    point_labels,
    runs,
    wants_legend,
)
from stepwell.report.palette import Theme, series_color
from stepwell.report.scale import Axis, Floats, chart_axes
from stepwell.report.sheet import LINE, MARGIN, Sheet, caption_height, text_width, widest, wrapped

WIDTH = 520.0
HEIGHT = 210.0
SWATCH = 16.0
GAP = 8.0  # between the names of neighbours


@dataclass(frozen=True)
class Plan:
    """Where the parts of a chart lie, in points: the plot, and the labels and keys around it."""

    chart: Chart
    theme: Theme
    axes: tuple[Axis, Axis]
    end_labels: dict[int, float]
    legend: list[list[tuple[int, float]]]

    @classmethod
    def of(cls, chart: Chart, theme: Theme) -> Plan:
        axes = chart_axes(chart)
        labels = end_labels(chart, axes, LINE / HEIGHT)
        legend = _legend_rows(chart) if wants_legend(chart) and not labels else []
        return cls(chart, theme, axes, labels, legend)

    @property
    def legend_top(self) -> float:
        return caption_height(self.chart.title, self.chart.note, WIDTH)

    @property
    def top(self) -> float:
        return self.legend_top + (15 * len(self.legend) + 5 if self.legend else 0) + 24

    @property
    def left(self) -> float:
        return MARGIN + widest(self.axes[1].labels) + 7

    @property
    def width(self) -> float:
        names = [self.chart.series[number].name for number in self.end_labels]
        beside = widest(names) + SWATCH + 8 if names else 4
        return WIDTH - MARGIN - self.left - beside

    @property
    def x_labels(self) -> list[str]:
        """The labels under the axis; names of categories in lines as wide as their place."""
        labels = self.axes[0].labels
        if not self.chart.categories:
            return list(labels)
        place = self.width / len(labels) - GAP
        return ["\n".join(wrapped(label, place)) for label in labels]

    @property
    def height(self) -> float:
        """Height of the whole sheet."""
        lines = 1 + max((label.count("\n") for label in self.x_labels), default=0)
        return self.top + HEIGHT + (1.6 + lines) * LINE + MARGIN

    def color(self, number: int) -> str:
        series = self.chart.series[number]
        if series.style == "reference":
            return self.theme.muted
        members = compared(self.chart)
        place = members.index(series)
        return series_color(self.theme, place, len(members), ordered=self.chart.ordered)

    def line_width(self, number: int) -> float:
        return 1.0 if self.chart.series[number].style == "reference" else 1.7

    def dashes(self, number: int) -> str | tuple[float, tuple[float, ...]]:
        """The line style of a series: dashed to compare with, dotted where its colour repeats."""
        series = self.chart.series[number]
        if series.style == "reference":
            return (0, (3.0, 3.0))
        members = compared(self.chart)
        repeated = not self.chart.ordered and members.index(series) >= len(self.theme.series)
        return (0, (1.0, 1.6)) if repeated else "solid"


def draw_chart(chart: Chart, theme: Theme) -> Sheet:
    """The sheet that shows a chart."""
    plan = Plan.of(chart, theme)
    sheet = Sheet(WIDTH, plan.height, theme)
    sheet.caption(chart.title, chart.note)
    _draw_legend(sheet, plan)
    _draw_axes(sheet, plan)
    field = sheet.field(plan.left, plan.top, plan.width, HEIGHT)
    _draw_rules(field, plan)
    for number in sorted(
        range(len(chart.series)), key=lambda one: chart.series[one].style == "points"
    ):
        _draw_series(field, plan, number)
    _draw_point_labels(sheet, plan)
    _draw_end_labels(sheet, plan)
    return sheet


def _legend_rows(chart: Chart) -> list[list[tuple[int, float]]]:
    """The numbers of the series in each row of the legend, each with its place in x."""
    rows: list[list[tuple[int, float]]] = [[]]
    x = MARGIN
    for number, series in enumerate(chart.series):
        width = SWATCH + text_width(series.name) + 16
        if rows[-1] and x + width > WIDTH - MARGIN:
            rows.append([])
            x = MARGIN
        rows[-1].append((number, x))
        x += width
    return rows


def _draw_legend(sheet: Sheet, plan: Plan) -> None:
    for line, row in enumerate(plan.legend):
        for number, x in row:
            _draw_key(sheet, plan, number, x, plan.legend_top + 15 * line + 6)


def _draw_end_labels(sheet: Sheet, plan: Plan) -> None:
    for number, place in plan.end_labels.items():
        _draw_key(sheet, plan, number, plan.left + plan.width + 8, plan.top + HEIGHT * (1 - place))


def _draw_key(sheet: Sheet, plan: Plan, number: int, x: float, y: float) -> None:
    """The mark and the name of one series, with their middle at `y`."""
    series, color = plan.chart.series[number], plan.color(number)
    field = sheet.field(x, y - 4, 11, 8)
    if series.style == "points":
        field.plot([0.5], [0.5], "o", markersize=5.5, color=color, markeredgewidth=0)
    elif series.style == "bars":
        field.add_patch(Rectangle((0.15, 0), 0.7, 1, color=color, linewidth=0))
    else:
        width = plan.line_width(number)
        field.plot([0, 1], [0.5, 0.5], color=color, linewidth=width, linestyle=plan.dashes(number))
    sheet.write(series.name, x + SWATCH, y, color=sheet.theme.ink, va="center_baseline")


def _draw_axes(sheet: Sheet, plan: Plan) -> None:
    """The names of both axes and the labels of their ticks."""
    x_axis, y_axis = plan.axes
    for label, place in zip(y_axis.labels, y_axis.place(y_axis.ticks), strict=True):
        y = plan.top + HEIGHT * (1 - place)
        sheet.write(label, plan.left - 7, y, ha="right", va="center_baseline")
    for label, place in zip(plan.x_labels, x_axis.place(x_axis.ticks), strict=True):
        x = plan.left + plan.width * place
        sheet.write(label, x, plan.top + HEIGHT + 6, ha="center", va="top")
    sheet.write(plan.chart.y_label, MARGIN, plan.top - 13, color=sheet.theme.ink)
    x, y = plan.left + plan.width / 2, plan.height - MARGIN
    sheet.write(plan.chart.x_label, x, y, color=sheet.theme.ink, ha="center")


def _draw_rules(field: Field, plan: Plan) -> None:
    y_axis = plan.axes[1]
    for place in y_axis.place(y_axis.ticks):
        _rule(field, place, plan.theme.rule)
    zero = y_axis.low if y_axis.log or not y_axis.low <= 0 <= y_axis.high else 0.0
    _rule(field, float(y_axis.place(zero)), plan.theme.muted)


def _rule(field: Field, place: float, color: str) -> None:
    field.plot([0, 1], [place, place], color=color, linewidth=0.7, clip_on=False, zorder=0.5)


def _draw_series(field: Field, plan: Plan, number: int) -> None:
    chart, color = plan.chart, plan.color(number)
    series = chart.series[number]
    x, (y, low, high) = plan.axes[0].place(series.table[0]), plan.axes[1].place(series.table[1:])
    clip = (*chart.x_range, *chart.y_range) != (None,) * 4
    if series.style == "bars":
        x = _draw_bars(field, plan, series, color)
    elif series.style == "points":
        field.plot(x, y, "o", markersize=6, color=color, markeredgewidth=0, clip_on=clip)
    else:
        for run in runs(np.stack([x, low, high])):
            field.fill_between(x[run], low[run], high[run], color=color, alpha=0.17, linewidth=0)
        lone = lone_points(x, y)
        field.plot(x[lone], y[lone], "o", markersize=3.5, color=color, markeredgewidth=0)
        width, dashes = plan.line_width(number), plan.dashes(number)
        field.plot(x, y, color=color, linewidth=width, linestyle=dashes, clip_on=clip)
    if series.style in ("bars", "points"):
        ink = plan.theme.ink if series.style == "bars" else color
        _draw_whiskers(field, x, low, high, ink)


def _draw_bars(field: Field, plan: Plan, series: Series, color: str) -> Floats:
    """The middles of the bars, which are now on the field."""
    x_axis, y_axis = plan.axes
    left, right = (x_axis.place(edge) for edge in bar_edges(plan.chart, series))
    floor = 0.0 if y_axis.log else max(0.0, float(y_axis.place(0.0)))
    height = y_axis.place(series.table[1]) - floor
    field.bar(left, height, right - left, floor, align="edge", color=color, linewidth=0)
    return np.asarray((left + right) / 2)


def _draw_whiskers(field: Field, x: Floats, low: Floats, high: Floats, color: str) -> None:
    seen = ~np.isnan(low) & ~np.isnan(high) & ~np.isnan(x)
    field.vlines(x[seen], low[seen], high[seen], colors=color, linewidth=1.2)


def _draw_point_labels(sheet: Sheet, plan: Plan) -> None:
    for label, x, y in point_labels(plan.chart, plan.axes):
        beside, side = (-6, "right") if x > LABEL_TURNS_AT else (6, "left")
        below = -6 if x > LABEL_TURNS_AT or y < 1 - LABEL_TURNS_AT else 12
        at = plan.left + plan.width * x + beside, plan.top + HEIGHT * (1 - y) + below
        sheet.write(label, *at, color=sheet.theme.ink, ha=side)
