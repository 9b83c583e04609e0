"""sweep.html, its pictures and sweep.json: what came of a sweep, drawn from its folder alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from stepwell.report import Chart, Facts, Heatmap, Page, Series, write_png
from stepwell.report.figure import Picture
from stepwell.report.numerals import number, percent
from stepwell.train.compare import losses_chart
from stepwell.train.history import History
from stepwell.train.report_charts import is_share, plain, spans_widely
from stepwell.train.sweep.axes import Span
from stepwell.train.sweep.folder import Trial
from stepwell.train.sweep.result import SweepResult

PAGE: Final = "sweep.html"
MOST_CURVES: Final = 6
MOST_CATEGORIES: Final = 12


def write_sweep(result: SweepResult, *, pictures: bool = True) -> Path:
    """The path of sweep.html, drawn anew, with sweep.json and, if asked for, PNGs beside it."""
    drawn = sweep_pictures(result)
    for name, picture in drawn.items() if pictures else ():
        write_png(picture, result.directory / f"{name}.png")
    result.write()
    return sweep_page(result, drawn).write(result.directory / PAGE)


def sweep_page(result: SweepResult, drawn: dict[str, Picture]) -> Page:
    """The page of a sweep."""
    name = result.directory.resolve().name
    page = Page(name, lead=lead(result)).add(headline(result))
    page.add(*drawn.values())
    page.section("Trials").add(result.table())
    curves = losses_chart(
        [History.read(result.directory / trial.name) for trial in result.finished[:MOST_CURVES]],
        [trial.name for trial in result.finished[:MOST_CURVES]],
    )
    if curves is not None:
        page.section("Losses of the best trials").add(curves)
    return page


def lead(result: SweepResult) -> str:
    """What was varied, and which values came out best."""
    varied = ", ".join(f"`{name}`" for name in result.plan.axes)
    sentence = f"{len(result.trials)} runs of {result.plan.config.task.name}, varied in {varied}."
    return f"{sentence} The best is `{result.best.name}`." if result.best else sentence


def headline(result: SweepResult) -> Facts:
    """The best value, and how many trials there are of each kind."""
    facts = []
    if result.best is not None:
        value = result.best.metric(result.plan.metric)
        text = percent(value) if is_share(result.plan.metric) else number(value)
        facts.append((f"best {plain(result.plan.metric)}", text))
    counts = {"finished": result.finished, "failed": result.failed, "open": result.open}
    facts += [(name, str(len(trials))) for name, trials in counts.items() if trials]
    return Facts(facts)


def sweep_pictures(result: SweepResult) -> dict[str, Picture]:
    """The pictures by the names of their files; none before a trial has finished.

    Two axes of a grid make a heatmap, everything else a chart for each axis; a search also shows
    how the best value came down.
    """
    if result.best is None:
        return {}
    axes = list(result.plan.axes)
    if result.plan.grid and len(axes) == 2:
        return {"sweep": heatmap(result, *axes)}
    found: dict[str, Picture] = {}
    if result.plan.search:
        found["sweep"] = best_so_far(result)
    for name in axes:
        found[f"sweep-{name}" if found or len(axes) > 1 else "sweep"] = axis_chart(result, name)
    return found


def heatmap(result: SweepResult, rows: str, columns: str) -> Heatmap:
    """The metric by the values of two fields; what has not finished stays blank."""
    metric = result.plan.metric
    y, x = (list(values_of(result, name)) for name in (rows, columns))
    cells = np.full((len(y), len(x)), np.nan)
    for trial in result.finished:
        at = y.index(trial.values[rows]), x.index(trial.values[columns])
        cells[at] = trial.metric(metric)
    return Heatmap(
        f"{plain(metric).capitalize()} by {rows} and {columns}",
        cells,
        x_ticks=[str(value) for value in x],
        y_ticks=[str(value) for value in y],
        x_label=columns,
        y_label=rows,
        value_label=plain(metric),
        note="What is blank has failed, or is still open." if np.isnan(cells).any() else "",
    )


def axis_chart(result: SweepResult, name: str) -> Chart:
    """Every trial's metric by the value of one field, and the best of each value."""
    values, trials = values_of(result, name), result.finished
    numeric = is_numeric(values)

    def place(trial: Trial) -> float:
        value = trial.values[name]
        return float(value) if numeric else float(values.index(value))

    x, y = [place(trial) for trial in trials], [_metric(result, trial) for trial in trials]
    series = [Series("trials", x, y, style="points")]
    if len(values) < len(trials):
        best = {place(trial): _metric(result, trial) for trial in reversed(trials)}
        series.append(Series("best", sorted(best), [best[at] for at in sorted(best)]))
    axis = result.plan.axes[name]
    log = numeric and (axis.log if isinstance(axis, Span) else spans_widely(x))
    return Chart(
        f"{plain(result.plan.metric).capitalize()} by {name}",
        name,
        plain(result.plan.metric),
        series,
        x_log=log,
        y_log=spans_widely(y),
        y_percent=is_share(result.plan.metric),
        categories=[] if numeric else [str(value) for value in values],
    )


def best_so_far(result: SweepResult) -> Chart:
    """The metric of each trial in the order in which they were tried, and the best until then."""
    trials = sorted(result.finished, key=lambda trial: trial.number)
    x = [trial.number + 1 for trial in trials]
    y = [_metric(result, trial) for trial in trials]
    choose = np.fmin if result.plan.goal == "min" else np.fmax
    best = list(itertools.accumulate(y, choose))
    series = [Series("trials", x, y, style="points"), Series("best so far", x, best)]
    metric = plain(result.plan.metric)
    title, percent_axis = f"{metric.capitalize()} over trials", is_share(result.plan.metric)
    return Chart(title, "trial", metric, series, y_log=spans_widely(y), y_percent=percent_axis)


def values_of(result: SweepResult, name: str) -> Sequence[Any]:
    """The values that a field had in the sweep: those of a grid as given, others in order."""
    found = list(dict.fromkeys(trial.values[name] for trial in result.trials))
    return found if result.plan.grid else sorted(found, key=lambda value: (str(type(value)), value))


def _metric(result: SweepResult, trial: Trial) -> float:
    return trial.metric(result.plan.metric)


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether values lie on an axis of numbers; a few whole ones are categories."""
    if all(isinstance(value, int) for value in values) and len(values) <= MOST_CATEGORIES:
        return False
    return all(isinstance(value, int | float) for value in values)
