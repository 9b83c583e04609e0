"""A comparison of cascades as tables and charts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepwell.cascade.rule.paths import FloatArray
from stepwell.evals.cascade import LADDER, MIXING, ORACLE, Comparison, Row
from stepwell.evals.frontier import Curve, Interval, hull
from stepwell.report.figure import Chart, Column, Estimate, Series, Style, Table

QUALITY = Column("right", percent=True)


def why_costs_differ(batch: int) -> str:
    """What the three costs of a table mean."""
    return (
        f"Costs are relative to always asking the largest stage. Seconds at batch {batch} are what"
        " a busy machine pays. FLOPs count arithmetic alone. At batch 1 a small model is dearer"
        " than its arithmetic, because starting an operation then takes longer than running it."
    )


def rules_table(comparison: Comparison) -> Table:
    """Every rule at its chosen setting."""
    return Table(
        ("rule", QUALITY, *_cost_columns(comparison), "stages run"),
        [_cells(row) for row in comparison.rows],
    )


def lambda_table(comparison: Comparison) -> Table:
    """The ladder at several prices of a failure."""
    rows = [_cells(row) for row in comparison.lambdas]
    return Table(("price of a failure", QUALITY, *_cost_columns(comparison), "stages run"), rows)


def price_in_words(comparison: Comparison) -> str:
    """What lambda is relative to, and what that is on this ladder."""
    exchange = comparison.exchange
    if not exchange.measured:
        return (
            "Lambda is the price of one failure. On the calibration prompts the largest stage could"
            " not be shown to fail less often than the smallest, so at 1 a failure costs as much as"
            " one answer of the largest stage."
        )
    return (
        "Lambda is the price of one failure relative to the ladder's own rate of exchange: at 1,"
        " always the smallest stage and always the largest are worth the same, and a failure costs"
        f" {exchange.price:.2f} answers of the largest stage."
    )


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


def frontier_chart(comparison: Comparison) -> Chart:
    """What each rule reaches over its settings, and where the ladder works."""
    series = [_hull_series(curve, comparison.weights) for curve in comparison.curves[:-1]]
    own, floor = comparison.row(LADDER), comparison.row(ORACLE)
    series.append(_point("ladder, chosen lambda", own))
    series.append(_point(ORACLE, floor))
    return Chart(
        "Cost against quality",
        x_label=f"cost, seconds at batch {comparison.batch} relative to always the largest stage",
        y_label="right answers",
        series=series,
        y_percent=True,
    )


def reliability_chart(comparison: Comparison) -> Chart:
    """How often answers are right that are believed in so far, on the test prompts."""
    series = [
        Series(stage.name, stage.believed, stage.found, style="points")
        for stage in comparison.reliability
    ]
    return Chart(
        "Beliefs against answers",
        x_label="believed, mean of a bin",
        y_label="right answers",
        series=[*series, Series("borne out exactly", [0.0, 1.0], [0.0, 1.0], style="reference")],
        note="Bins of equal weight; each stage's own answer, all stages up to it run.",
        x_percent=True,
        y_percent=True,
    )


def reliability_table(comparison: Comparison) -> Table:
    """The same in numbers."""
    return Table(
        ("answer of", "calibration error (ECE)", "Brier score", "AUROC"),
        [
            (stage.name, stage.error, stage.brier, None if np.isnan(stage.auroc) else stage.auroc)
            for stage in comparison.reliability
        ],
    )


def difficulty_table(
    names: Sequence[str], groups: Sequence[str], counts: Sequence[int], right: FloatArray
) -> Table:
    """Share of right answers [groups, stages] by difficulty, and the prompts of each."""
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


def _cost_columns(comparison: Comparison) -> tuple[Column, ...]:
    batched = Column(f"seconds, batch {comparison.batch}")
    return (batched, Column("FLOPs"), Column("seconds, batch 1"))


def _cells(row: Row) -> tuple[str | float, ...]:
    return (row.name, row.quality, row.batched, row.flops, row.alone, row.stages_run)


def _estimate(interval: Interval, scale: float = 1.0) -> Estimate | None:
    if not np.isfinite(interval.estimate):
        return None
    return Estimate(interval.estimate * scale, interval.low * scale, interval.high * scale)


def _hull_series(curve: Curve, weights: FloatArray) -> Series:
    """The corners of what a rule reaches by mixing its settings."""
    reached = hull(*curve.points(weights))
    style: Style = "reference" if curve.name == MIXING else "line"
    return Series(curve.name, reached.cost, reached.quality, style=style)


def _point(name: str, row: Row) -> Series:
    return Series(name, [row.batched], [row.quality], style="points")
