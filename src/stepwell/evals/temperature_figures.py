"""Temperature and confidence as pictures, a table and a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from stepwell.evals.frontier import Interval
from stepwell.evals.temperature_rows import TemperatureRow
from stepwell.report import Chart, Column, Estimate, Facts, Page, Preformatted, Series, Table
from stepwell.report.figure import Cell
from stepwell.report.numerals import number, percent

Rows = Sequence[TemperatureRow]
ENTROPY_NOTE = "Of the model's own next-token distribution, whatever the temperature."


def charts(rows: Rows) -> dict[str, Chart]:
    """The pictures by the names of their files."""
    return {
        "accuracy": accuracy_chart(rows),
        "entropy": entropy_chart(rows),
        "confident": confident_chart(rows),
    }


def accuracy_chart(rows: Rows) -> Chart:
    """Right answers by temperature: of one sample, and of the answer that most samples give."""
    most = max(row.samples for row in rows)
    series = [_series("one sample", rows, lambda row: row.accuracy)]
    if most > 1:
        series.append(_series(f"majority of {most}", rows, lambda row: row.majority))
        agreement = _series("agreement", rows, lambda row: row.agreement)
        series.append(replace(agreement, low=None, high=None))  # a third band hides the others
    note = "Agreement: the share of samples that give the majority's answer."
    return Chart(
        "Accuracy by temperature",
        "temperature",
        "share of answers",
        series,
        note=f"{note} Bands: 95% intervals over prompts." if most > 1 else "",
        y_percent=True,
        y_range=(0, 1),
    )


def entropy_chart(rows: Rows) -> Chart:
    """The mean entropy at the tokens that came, by temperature."""
    return Chart(
        "Entropy by temperature",
        "temperature",
        "entropy, nats a token",
        [_series("entropy", rows, lambda row: row.entropy)],
        note=ENTROPY_NOTE,
        y_range=(0, None),
    )


def confident_chart(rows: Rows) -> Chart:
    """The share of tokens at which the model was confident, by temperature."""
    thresholds = [each.threshold for each in rows[0].confident]
    return Chart(
        "Confident tokens by temperature",
        "temperature",
        "share of tokens",
        [
            _series(f"above {threshold:g}", rows, partial(_share, at))
            for at, threshold in enumerate(thresholds)
        ],
        note="Tokens at which the model gives its likeliest token more than that probability.",
        y_percent=True,
        y_range=(0, 1),
        ordered=True,
    )


def answers_table(rows: Rows) -> Table:
    """What the answers came to, a temperature a row."""
    heads: list[str | Column] = [
        "temperature",
        "samples",
        Column("accuracy", percent=True, best="max"),
        Column("majority", percent=True, best="max"),
        Column("agreement", percent=True),
        "different answers",
    ]
    cells: list[list[Cell]] = []
    for row in rows:
        means = (row.accuracy, row.majority, row.agreement, row.distinct)
        cells.append([f"{row.temperature:g}", row.samples, *map(_estimate, means)])
    return Table(heads, cells, "Answers", note="Beside each mean its 95% interval over prompts.")


def tokens_table(rows: Rows) -> Table:
    """What the generated tokens came to, a temperature a row."""
    heads: list[str | Column] = [
        "temperature",
        "tokens",
        Column("length", "tokens"),
        Column("entropy", "nats"),
        Column("log-probability", "nats"),
    ]
    cells: list[list[Cell]] = []
    for row in rows:
        means = (row.length, row.entropy, row.logprob)
        cells.append([f"{row.temperature:g}", row.num_tokens, *map(_estimate, means)])
    return Table(heads, cells, "Generated tokens")


def confident_table(rows: Rows) -> Table:
    """Count and share of confident tokens, a temperature a row and two columns a threshold."""
    heads: list[str | Column] = ["temperature"]
    for each in rows[0].confident:
        heads += [f"above {each.threshold:g}", Column("share", percent=True)]
    cells: list[list[Cell]] = []
    for row in rows:
        line: list[Cell] = [f"{row.temperature:g}"]
        for each in row.confident:
            line += [each.count, _estimate(each.share)]
        cells.append(line)
    return Table(heads, cells, "Confident tokens")


def study_page(rows: Rows, configuration: Mapping[str, Any], command: str = "") -> Page:
    """The page: headline, pictures, table, and how it was measured."""
    page = Page("Temperature and confidence", lead=_lead(configuration), command=command)
    page.add(_headline(rows), *charts(rows).values())
    page.section("All numbers")
    page.add(answers_table(rows), tokens_table(rows), confident_table(rows), *_remarks(rows))
    return page.section("Configuration").add(Preformatted(json.dumps(configuration, indent=2)))


def _lead(configuration: Mapping[str, Any]) -> str:
    source = configuration["questions"]
    kind = f"task `{source['task']['name']}`" if "task" in source else "a file"
    asked, samples = configuration["num_questions"], configuration["samples"]
    many = "1 question" if asked == 1 else f"{asked} different questions"
    return f"{many} of {kind}, {samples} answers to each at each temperature."


def _headline(rows: Rows) -> Facts:
    best = max(rows, key=lambda row: row.accuracy.estimate)
    voted = max(rows, key=lambda row: row.majority.estimate)
    facts = [_fact("accuracy", best.accuracy, best)]
    if voted.samples > 1:
        facts.append(_fact(f"majority of {voted.samples}", voted.majority, voted))
    facts.append(("tokens read", number(sum(row.num_tokens for row in rows))))
    return Facts(facts)


def _fact(name: str, interval: Interval, row: TemperatureRow) -> tuple[str, str]:
    return f"best {name}, at temperature {row.temperature:g}", percent(interval.estimate, 3)


def _remarks(rows: Rows) -> list[str]:
    remarks = [
        "Entropy, log-probability and confidence are of the model's own distribution, before"
        " temperature and truncation, read again at each generated token. They differ between"
        " temperatures because the tokens before differ."
    ]
    if any(row.samples == 1 for row in rows) and any(row.samples > 1 for row in rows):
        remarks.append("At temperature 0 all samples are the same, so that one was asked for.")
    return remarks


def _series(name: str, rows: Rows, of: Callable[[TemperatureRow], Interval]) -> Series:
    ordered = sorted(rows, key=lambda row: row.temperature)
    found = [of(row) for row in ordered]
    return Series(
        name,
        [row.temperature for row in ordered],
        [each.estimate for each in found],
        low=[each.low for each in found],
        high=[each.high for each in found],
    )


def _share(at: int, row: TemperatureRow) -> Interval:
    """The share of confident tokens by one of the thresholds."""
    return row.confident[at].share


def _estimate(interval: Interval) -> Estimate:
    return Estimate(interval.estimate, interval.low, interval.high)
