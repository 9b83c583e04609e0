"""The pictures of an evaluation of cascades, one set a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from stepwell.evals.cascade import LADDER, MIXING, ORACLE, SHOWN_LAMBDAS, STAGE_ORACLE
from stepwell.evals.cascade_figures import difficulty_chart
from stepwell.evals.protocol_summary import Line, TaskSummary
from stepwell.evals.protocol_tables import mean_by_depth
from stepwell.report.figure import Chart, Series, Style

NEAR_COST: Final = 0.06  # closer than this, two labels cover each other
NEAR_QUALITY: Final = 0.02


def pictures(summary: TaskSummary) -> dict[str, Chart]:
    """All of them by name: frontier, lambda, reliability, depth."""
    return {
        "frontier": frontier_chart(summary),
        "lambda": lambda_chart(summary),
        "reliability": reliability_chart(summary),
        "depth": depth_chart(summary),
    }


def frontier_chart(summary: TaskSummary) -> Chart:
    """What rules reach over their settings, and where every rule stands at its own.

    Simpler rules lie close together, so that they are numbered, and named in the note; numbers of
    those that would cover each other stand together.
    """
    rules = [row.name for row in summary.first.rules]
    fixed = [f"always {stage}" for stage in summary.first.stages]
    simpler = [name for name in rules if name not in (*fixed, LADDER, ORACLE, STAGE_ORACLE)]
    named = ", ".join(f"{number} {name}" for number, name in enumerate(simpler, start=1))
    points = [
        _points(summary, "always one stage", fixed, summary.first.stages),
        _points(summary, "simpler rules", simpler, _labels(summary, simpler)),
        _points(summary, "ladder, its own lambda", [LADDER]),
        _points(summary, STAGE_ORACLE, [name for name in rules if name == STAGE_ORACLE]),
    ]
    return Chart(
        f"Cost against quality: {summary.name}",
        x_label=(
            f"cost, seconds at batch {summary.first.batch} relative to always the largest stage"
        ),
        y_label="right answers",
        series=[*map(_frontier_series, summary.frontier), *points],
        note=f"Lines: by mixing settings. {named}.",
        y_percent=True,
    )


def lambda_chart(summary: TaskSummary) -> Chart:
    """How the price of a failure moves cost and quality, replayed; beside it what came live."""
    return Chart(
        f"The price of a failure: {summary.name}",
        x_label="lambda",
        y_label="share",
        series=[
            Series("right answers", summary.sweep.lambdas, summary.sweep.quality),
            Series("cost of always the largest", summary.sweep.lambdas, summary.sweep.cost),
            *_live_points(summary),
        ],
        x_log=True,
        y_percent=True,
        note="Lines: replayed. Points: live, with 95% intervals.",
    )


def reliability_chart(summary: TaskSummary) -> Chart:
    """How often answers are right that are believed in so far, bins of all seeds."""
    series = []
    for place, name in enumerate(summary.first.stages):
        rows = [trial.calibration[place] for trial in summary.trials]
        believed = [value for row in rows for value in row.believed]
        found = [value for row in rows for value in row.found]
        series.append(Series(name, believed, found, style="points"))
    return Chart(
        f"Beliefs against answers: {summary.name}",
        x_label="believed, mean of a bin",
        y_label="right answers",
        series=[*series, Series("borne out exactly", [0.0, 1.0], [0.0, 1.0], style="reference")],
        note="Bins of equal weight, of every seed; each stage's own answer, all up to it run.",
        x_percent=True,
        y_percent=True,
    )


def depth_chart(summary: TaskSummary) -> Chart:
    """Right answers of each stage by difficulty."""
    found = mean_by_depth([trial.by_depth for trial in summary.trials])
    return difficulty_chart(summary.first.stages, found.groups, np.array(found.right))


def _points(
    summary: TaskSummary, title: str, rules: Sequence[str], labels: Sequence[str] = ()
) -> Series:
    """Where some rules stand at their settings."""
    quality = [summary.numbers[f"rule/{name}/quality"] for name in rules]
    return Series(
        title,
        [summary.numbers[f"rule/{name}/cost"].estimate for name in rules],
        [each.estimate for each in quality],
        [each.low for each in quality],
        [each.high for each in quality],
        style="points",
        labels=labels,
    )


def _frontier_series(line: Line) -> Series:
    style: Style = "reference" if line.name == MIXING else "line"
    name = f"{line.name}, all settings" if line.name == LADDER else line.name
    return Series(name, line.cost, line.quality, style=style)


def _labels(summary: TaskSummary, rules: Sequence[str]) -> list[str]:
    """The number of each rule; neighbours have theirs at the first of them."""
    firsts: list[tuple[float, float, list[str]]] = []
    labels: list[list[str]] = []
    for number, name in enumerate(rules, start=1):
        cost, quality = (
            summary.numbers[f"rule/{name}/{kind}"].estimate for kind in ("cost", "quality")
        )
        near = [
            found
            for x, y, found in firsts
            if abs(x - cost) < NEAR_COST and abs(y - quality) < NEAR_QUALITY
        ]
        own: list[str] = []
        if not near:
            firsts.append((cost, quality, own))
        (near or [own])[0].append(str(number))
        labels.append(own)
    return [" ".join(own) for own in labels]


def _live_points(summary: TaskSummary) -> Iterator[Series]:
    for name, kind in (("right answers, live", "good"), ("cost, live", "cost")):
        found = [summary.numbers[f"lambda/{lam:g}/{kind}"] for lam in SHOWN_LAMBDAS]
        yield Series(
            name,
            SHOWN_LAMBDAS,
            [each.estimate for each in found],
            [each.low for each in found],
            [each.high for each in found],
            style="points",
        )
