"""A comparison of cascades as tables and charts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepwell.cascade.paths import FloatArray
from stepwell.evals.cascade import LADDER, MIXING, ORACLE, THRESHOLD, Comparison, Row
from stepwell.evals.frontier import Curve, Interval, hull
from stepwell.report.figure import Chart, Column, Estimate, Series, Table

WHY_COSTS_DIFFER = (
    "Costs are relative to always asking the largest stage. Seconds at batch 64 are what a busy"
    " machine pays. FLOPs count arithmetic alone. At batch 1 a small model is dearer than its"
    " arithmetic, because starting an operation then takes longer than running it."
)
QUALITY = Column("right", percent=True)


def rules_table(comparison: Comparison, batch: int) -> Table:
    """Every rule at its chosen setting."""
    return Table(
        ("rule", QUALITY, *_cost_columns(batch), "stages run"),
        [_cells(row) for row in comparison.rows],
        note=WHY_COSTS_DIFFER,
    )


def lambda_table(comparison: Comparison, batch: int) -> Table:
    """The ladder at several prices of a failure."""
    rows = [_cells(row) for row in comparison.lambdas]
    return Table(("price of a failure", QUALITY, *_cost_columns(batch), "stages run"), rows)


def differences_table(comparison: Comparison) -> Table:
    """The ladder minus each rule, paired over prompts, with 95% intervals."""
    return Table(
        ("ladder minus", "cost", "right, points"),
        [
            (name, _estimate(difference.cost), _estimate(difference.quality, 100))
            for name, difference in comparison.differences
        ],
        note="Negative cost: the ladder is cheaper. Intervals: paired bootstrap over prompts, 95%.",
    )


def standings_table(comparison: Comparison) -> Table:
    """How much of the gap between random mixing and the oracle each rule closes."""
    return Table(
        ("rule", "gap closed", "cost within a point of the largest"),
        [
            (standing.name, _estimate(standing.gap_closed), _estimate(standing.cost_at_quality))
            for standing in comparison.standings
        ],
    )


def frontier_chart(comparison: Comparison, batch: int) -> Chart:
    """What each rule reaches over its settings, and where the ladder works."""
    series = [_hull_series(curve, comparison.weights) for curve in comparison.curves[:-1]]
    own, floor = comparison.row(LADDER), comparison.row(ORACLE)
    series.append(_point("ladder, chosen lambda", own))
    series.append(_point("oracle that pays the path", floor))
    return Chart(
        "Cost against quality",
        x_label=f"cost, seconds at batch {batch} relative to always the largest stage",
        y_label="right answers",
        series=series,
        y_percent=True,
    )


def difficulty_table(
    names: Sequence[str], groups: Sequence[str], right: FloatArray, counts: Sequence[int]
) -> Table:
    """Share of right answers [groups, stages] by difficulty."""
    return Table(
        ("difficulty", "prompts", *(Column(name, percent=True) for name in names)),
        [
            (group, count, *(float(value) for value in row))
            for group, count, row in zip(groups, counts, right, strict=True)
        ],
    )


def difficulty_chart(names: Sequence[str], groups: Sequence[str], right: FloatArray) -> Chart:
    """The same as bars."""
    places = np.arange(len(groups))
    return Chart(
        "Where each stage fails",
        x_label="difficulty",
        y_label="right answers",
        series=[
            Series(name, places, right[:, stage], style="bars") for stage, name in enumerate(names)
        ],
        categories=groups,
        y_percent=True,
        y_range=(0.0, 1.0),
        ordered=True,
    )


def _cost_columns(batch: int) -> tuple[Column, ...]:
    return (Column(f"seconds, batch {batch}"), Column("FLOPs"), Column("seconds, batch 1"))


def _cells(row: Row) -> tuple[str | float, ...]:
    return (row.name, row.quality, row.batched, row.flops, row.alone, row.stages_run)


def _estimate(interval: Interval, scale: float = 1.0) -> Estimate | None:
    if not np.isfinite(interval.estimate):
        return None
    return Estimate(interval.estimate * scale, interval.low * scale, interval.high * scale)


def _hull_series(curve: Curve, weights: FloatArray) -> Series:
    """The corners of what a rule reaches by mixing its settings."""
    reached = hull(*curve.points(weights))
    style = {MIXING: "reference", THRESHOLD: "line"}.get(curve.name, "line")
    return Series(curve.name, reached.cost, reached.quality, style=style)  # type: ignore[arg-type]


def _point(name: str, row: Row) -> Series:
    return Series(name, [row.batched], [row.quality], style="points")
