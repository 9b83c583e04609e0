"""The demonstration's report: one page and its pictures, from what was trained, fitted and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from stepwell.config import write_json
from stepwell.evals.cascade import LADDER, ORACLE, Comparison
from stepwell.evals.cascade_figures import (
    differences_table,
    difficulty_chart,
    difficulty_table,
    frontier_chart,
    lambda_table,
    price_in_words,
    reliability_chart,
    reliability_table,
    rules_table,
    standings_table,
    why_costs_differ,
)
from stepwell.evals.facts_ladder import FactsData
from stepwell.evals.live import LiveRun
from stepwell.report import Chart, Facts, HeatmapGrid, Page, Series, Table, write_png
from stepwell.report.figure import Picture
from stepwell.tasks.example import Example
from stepwell.train.history import column, read_records
from stepwell.train.run_folder import Run

FORMAT_VERSION: Final = 1  # of results.json


@dataclass(frozen=True, eq=False)
class DemoResult:
    """Everything that the report shows. `asked` are the facts of the live run, as they came."""

    runs: Mapping[str, Run]
    data: FactsData
    comparison: Comparison
    asked: Sequence[Example]
    live: LiveRun
    attention: HeatmapGrid

    @property
    def largest(self) -> str:
        """The name of the largest stage."""
        return list(self.runs)[-1]

    @property
    def live_quality(self) -> float:
        """Share of right answers in the live run."""
        pairs = zip(self.asked, self.live.answers, strict=True)
        return fmean(answer.text == example.answer for example, answer in pairs)


def write_report(result: DemoResult, directory: Path, command: str) -> Path:
    """The page, with its pictures as PNGs and its numbers as JSON beside it."""
    names, (groups, _, right) = list(result.runs), result.data.by_difficulty()
    pictures: dict[str, Picture] = {
        "frontier": frontier_chart(result.comparison),
        "difficulty": difficulty_chart(names, groups, right),
        "reliability": reliability_chart(result.comparison),
        "loss": loss_chart(result.runs),
        "attention": result.attention,
    }
    for name, picture in pictures.items():
        write_png(picture, directory / f"{name}.png")
    write_json(directory / "results.json", plain(result))
    return report_page(result, pictures, command).write(directory / "report.html")


def report_page(result: DemoResult, pictures: Mapping[str, Picture], command: str) -> Page:
    """The page; its pictures go by the names of their files."""
    comparison = result.comparison
    title = "A ladder that goes only as deep as it needs"
    page = Page(title, lead=summary(result), command=command).add(headline(result))
    page.section("Cost against quality").add(
        pictures["frontier"],
        why_costs_differ(comparison.batch),
        rules_table(comparison),
        differences_table(comparison),
        standings_table(comparison),
    )
    page.section("The price of a failure").add(price_in_words(comparison), lambda_table(comparison))
    page.section("What is believed").add(pictures["reliability"], reliability_table(comparison))
    page.section("Where each stage fails").add(
        "The facts were learnt by heart, frequent ones first. Rank is difficulty.",
        pictures["difficulty"],
        difficulty_table(list(result.runs), *result.data.by_difficulty()),
    )
    page.section("Some answers").add(answers_table(result))
    page.section("Training").add(pictures["loss"])
    page.section("Attention of the largest stage").add(pictures["attention"])
    return page


def headline(result: DemoResult) -> Facts:
    """The main numbers: what the live run cost and how often it was right."""
    largest = result.largest
    own, top = result.comparison.row(LADDER), result.comparison.row(f"always {largest}")
    return Facts(
        (
            ("right, ladder", f"{own.quality:.1%}"),
            (f"right, always {largest}", f"{top.quality:.1%}"),
            (f"seconds of always {largest}, live", f"{result.live.relative_to(largest):.2f}"),
            (f"FLOPs of always {largest}", f"{own.flops:.2f}"),
            ("oracle's seconds, the floor", f"{result.comparison.row(ORACLE).batched:.2f}"),
        )
    )


def summary(result: DemoResult) -> str:
    """The headline in a sentence."""
    own, top = result.comparison.row(LADDER), result.comparison.row(f"always {result.largest}")
    seconds = result.live.relative_to(result.largest)
    return (
        f"Going only as deep as each prompt needs took {seconds:.2f}"
        " of the seconds of always asking the largest stage"
        f" (batch {result.comparison.batch}, measured live) and {own.flops:.2f} of its FLOPs,"
        f" and was right {own.quality:.1%} of the time against {top.quality:.1%}."
    )


def loss_chart(runs: Mapping[str, Run]) -> Chart:
    """Training loss of every stage by step."""
    series = []
    for name, run in runs.items():
        records = read_records(run.directory)
        training = [record for record in records if record.get("split") == "train"]
        series.append(Series(name, *column(training, "loss")))
    return Chart("Training loss", "step", "loss, nats a token", series, ordered=True)


def answers_table(result: DemoResult, count: int = 12) -> Table:
    """Some facts of the live run, frequent ones first: the answer, its stages, if it is right."""
    pairs = zip(result.asked, result.live.answers, strict=True)
    found = {example.prompt: (example, answer) for example, answer in pairs}
    ranked = sorted(found.values(), key=lambda pair: -pair[0].weight)
    rows = []
    for example, answer in ranked[:: max(1, len(ranked) // count)]:
        path = " → ".join(visit.stage for visit in answer.trace)
        verdict = "right" if answer.text == example.answer else f"wrong, {example.answer}"
        rows.append((example.prompt, answer.text, verdict, path, answer.p_good, answer.cost))
    return Table(("prompt", "answer", "", "stages run", "believed", "cost"), rows)


def plain(result: DemoResult) -> dict[str, Any]:
    """The numbers of the report as plain values."""
    comparison = result.comparison
    return {
        "format_version": FORMAT_VERSION,
        "batch": comparison.batch,
        "live": {
            "prompts": len(result.asked),
            "quality": result.live_quality,
            "seconds": result.live.seconds,
            "stage_seconds": result.live.stage_seconds,
        },
        "rules": [asdict(row) for row in comparison.rows],
        "lambdas": [asdict(row) for row in comparison.lambdas],
        "ladder_minus": {name: asdict(found) for name, found in comparison.differences},
        "exchange": asdict(comparison.exchange),
        "calibration_error": {stage.name: stage.error for stage in comparison.reliability},
        "stages": {name: str(run.directory) for name, run in result.runs.items()},
    }
