"""The report of an evaluation of cascades: one page, its pictures, its numbers, its tables as text.

report.html  TASK-frontier.png  TASK-lambda.png  TASK-reliability.png  TASK-depth.png
tables.md    results.json, which comes last
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from stepwell.config import write_atomically, write_json
from stepwell.evals.cascade_figures import why_costs_differ
from stepwell.evals.frontier import Interval
from stepwell.evals.protocol_figures import pictures
from stepwell.evals.protocol_summary import TaskSummary, Verdict
from stepwell.evals.protocol_tables import (
    acceptance_table,
    budgets_table,
    calibration_table,
    certificates_table,
    depth_table,
    gates_table,
    lambdas_table,
    latency_table,
    live_table,
    markdown,
    rules_table,
    seconds_table,
    shift_table,
    shifted_calibration_table,
    short_table,
    standings_table,
    verdicts_table,
)
from stepwell.report import Chart, Page, Table, write_png

FORMAT_VERSION: Final = 1  # of results.json
RESULTS: Final = "results.json"
TITLE: Final = "Cascades against simpler rules"


def write_report(summaries: Sequence[TaskSummary], directory: Path, command: str) -> Path:
    """The page, with everything that belongs to it beside it."""
    drawn = {summary.name: pictures(summary) for summary in summaries}
    for task, charts in drawn.items():
        for name, chart in charts.items():
            write_png(chart, directory / f"{task}-{name}.png")
    write_atomically(directory / "tables.md", as_markdown(summaries))
    page = report_page(summaries, drawn, command).write(directory / "report.html")
    write_json(directory / RESULTS, plain(summaries))
    return page


def report_page(
    summaries: Sequence[TaskSummary], drawn: Mapping[str, Mapping[str, Chart]], command: str
) -> Page:
    """The page: the bars first, then a section a task."""
    page = Page(TITLE, lead=in_words(summaries), command=command)
    page.section("The bars").add(
        verdicts_table(all_verdicts(summaries)),
        short_table(summaries),
        why_costs_differ(summaries[0].first.batch),
    )
    for summary in summaries:
        charts = drawn[summary.name]
        page.section(summary.name.capitalize()).add(
            summary.purpose,
            gates_table(summary),
            charts["frontier"],
            *cost_tables(summary),
            charts["lambda"],
            *price_tables(summary),
            charts["reliability"],
            *belief_tables(summary),
            charts["depth"],
            depth_table(summary),
        )
    trials = [trial for summary in summaries for trial in summary.trials]
    page.section("What it takes").add(seconds_table(trials))
    return page


def cost_tables(summary: TaskSummary) -> list[Table]:
    """What answers cost, replayed and live."""
    return [
        rules_table(summary),
        standings_table(summary),
        live_table(summary),
        latency_table(summary),
        acceptance_table(summary),
    ]


def price_tables(summary: TaskSummary) -> list[Table]:
    """What can be asked for: a price, a budget, a certificate."""
    return [lambdas_table(summary), budgets_table(summary), certificates_table(summary)]


def belief_tables(summary: TaskSummary) -> list[Table]:
    """How far beliefs are borne out, on questions like those fitted on and on harder ones."""
    shifted = shift_table(summary), shifted_calibration_table(summary)
    return [calibration_table(summary), *(table for table in shifted if table is not None)]


def as_markdown(summaries: Sequence[TaskSummary]) -> str:
    """All tables as Markdown."""
    parts = [f"# {TITLE}", in_words(summaries), markdown(verdicts_table(all_verdicts(summaries)))]
    parts.append(markdown(short_table(summaries)))
    for summary in summaries:
        tables = [
            gates_table(summary),
            *cost_tables(summary),
            *price_tables(summary),
            *belief_tables(summary),
            depth_table(summary),
        ]
        parts += [f"## {summary.name}", summary.purpose, *map(markdown, tables)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def in_words(summaries: Sequence[TaskSummary]) -> str:
    """How many bars were met, and on what."""
    found = all_verdicts(summaries)
    met = sum(each.holds for each in found)
    seeds = min(len(summary.trials) for summary in summaries)
    names = ", ".join(summary.name for summary in summaries)
    return (
        f"{met} of {len(found)} bars are met, over {seeds} training"
        f" {'seed' if seeds == 1 else 'seeds'} of each task: {names}."
    )


def all_verdicts(summaries: Sequence[TaskSummary]) -> list[Verdict]:
    """The verdicts of all tasks."""
    return [verdict for summary in summaries for verdict in summary.verdicts]


def plain(summaries: Sequence[TaskSummary]) -> dict[str, Any]:
    """The numbers as JSON can hold them; what each trial found is in its own folder."""
    return {
        "format_version": FORMAT_VERSION,
        "verdicts": [_plain_verdict(each) for each in all_verdicts(summaries)],
        "tasks": {summary.name: _plain_task(summary) for summary in summaries},
    }


def _plain_task(summary: TaskSummary) -> dict[str, Any]:
    return {
        "purpose": summary.purpose,
        "seeds": [trial.seed for trial in summary.trials],
        "batch": summary.first.batch,
        "stages": list(summary.first.stages),
        "numbers": {name: _interval(each) for name, each in summary.numbers.items()},
        "gates": [[asdict(gate) for gate in trial.gates] for trial in summary.trials],
        "acceptance": asdict(summary.acceptance),
        "certificates": [asdict(trial.certificate) for trial in summary.trials],
        "seconds": [trial.seconds for trial in summary.trials],
    }


def _plain_verdict(verdict: Verdict) -> dict[str, Any]:
    found = None if verdict.value is None else _interval(verdict.value)
    return {**asdict(verdict), "value": found}


def _interval(interval: Interval) -> list[float | None]:
    """Estimate, low and high; None for what is not known."""
    return [None if each != each else each for each in asdict(interval).values()]
