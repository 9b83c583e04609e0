"""Several runs side by side: what they were asked to do differently, and what became of each.

Pure functions of histories; what is shown where is decided by who asks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from stepwell.report import Chart, Column, Page, Series, Table
from stepwell.report.figure import Cell
from stepwell.train.history import DEPTH, History, column
from stepwell.train.report_charts import LOSS_UNIT, is_share, plain, spans_widely

NOT_COMPARED: Final = ("run_name", "runs")  # every run has its own
MOST_CURVES: Final = 12


def comparison_page(histories: Sequence[History]) -> Page:
    """A page that lays some runs side by side."""
    page = Page("Runs side by side", lead=", ".join(f"`{name}`" for name in labels(histories)))
    page.add(metrics_table(histories))
    chart = losses_chart(histories)
    if chart is not None:
        page.add(chart)
    fields = fields_table(histories)
    same = "All fields of these configurations are the same."
    return page.add(fields if fields.rows else same)


def fields_table(histories: Sequence[History]) -> Table:
    """The fields of the configurations that are not the same in all runs, a row each."""
    flat = [leaves(history.config) for history in histories]
    names = list(dict.fromkeys(key for each in flat for key in each))
    rows = [
        (name, *(_written(each.get(name)) for each in flat))
        for name in names
        if name not in NOT_COMPARED and len({_written(each.get(name)) for each in flat}) > 1
    ]
    return Table(("field", *labels(histories)), rows, title="What differs")


def metrics_table(histories: Sequence[History]) -> Table:
    """The metrics of the best weights, a row for each run; the best of a column is highlighted."""
    kinds = dict.fromkeys(
        name for history in histories for name in history.best if DEPTH not in name
    )
    heads = [Column(plain(name), percent=is_share(name), best=best_of(name)) for name in kinds]
    rows: list[tuple[Cell, ...]] = []
    for label, history in zip(labels(histories), histories, strict=True):
        seconds = None if history.seconds is None else round(history.seconds)
        values = [history.best.get(name) for name in kinds]
        rows.append((label, history.best_step, *values, seconds))
    return Table(("run", "best step", *heads, Column("time", "s")), rows, title="Metrics")


def losses_chart(histories: Sequence[History], names: Sequence[str] = ()) -> Chart | None:
    """Validation loss by step, a line for each run; of many the first ones. None without losses."""
    shown = list(zip(names or labels(histories), histories, strict=True))[:MOST_CURVES]
    curves = {name: column(history.validation, "loss") for name, history in shown}
    series = [Series(name, *curve) for name, curve in curves.items() if curve[0]]
    if not series:
        return None
    note = "" if len(shown) == len(histories) else f"The first {len(shown)} of {len(histories)}."
    values = [value for _, losses in curves.values() for value in losses]
    title, log = "Validation loss", spans_widely(values)
    return Chart(title, "step", LOSS_UNIT, series, note=note, y_log=log)


def best_of(name: str) -> Any:
    """Whether the largest or the smallest value of a metric is the best: "max" or "min"."""
    return "max" if is_share(name) else "min"


def labels(histories: Sequence[History]) -> list[str]:
    """A name for each run: that of its folder, its whole path where two are called alike."""
    names = [history.name for history in histories]
    return [
        str(history.directory) if names.count(history.name) > 1 else history.name
        for history in histories
    ]


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The single values of a nested configuration by their path: {"optimizer.lr": 1e-3}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _written(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return "" if value is None else str(value)
