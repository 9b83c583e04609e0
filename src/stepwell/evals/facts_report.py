"""The demonstration's report: one page and its pictures, from what was trained, fitted and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepwell.config import write_json
from stepwell.evals.cascade import LADDER, ORACLE, Comparison
from stepwell.evals.cascade_figures import (
    differences_table,
    difficulty_chart,
    difficulty_table,
    frontier_chart,
    lambda_table,
    rules_table,
    standings_table,
)
from stepwell.evals.facts_ladder import FactsData
from stepwell.evals.live import LiveRun
from stepwell.report import Chart, Facts, HeatmapGrid, Page, Series, Table, write_png
from stepwell.report.figure import Picture
from stepwell.train.log import read_records
from stepwell.train.run_folder import Run

BATCH = 64


@dataclass(frozen=True, eq=False)
class DemoResult:
    """Everything that the report shows."""

    runs: Mapping[str, Run]
    data: FactsData
    comparison: Comparison
    live: LiveRun
    attention: HeatmapGrid

    @property
    def largest(self) -> str:
        """The name of the largest stage."""
        return list(self.runs)[-1]

    @property
    def live_quality(self) -> float:
        """Share of right answers in the live run, facts weighted with how often they are drawn."""
        examples = self.data.examples_of("test")
        pairs = list(zip(examples, self.live.answers, strict=True))
        right = sum(example.weight for example, answer in pairs if answer.text == example.answer)
        return right / sum(example.weight for example in examples)


def write_report(result: DemoResult, directory: Path, command: str) -> Path:
    """The page, with its pictures as PNGs and its numbers as JSON beside it."""
    names = list(result.runs)
    groups, counts, right = result.data.by_difficulty()
    losses = loss_chart(result.runs)
    frontier = frontier_chart(result.comparison, BATCH)
    difficulty = difficulty_chart(names, groups, right)
    pictures: dict[str, Picture] = {
        "loss": losses,
        "difficulty": difficulty,
        "frontier": frontier,
        "attention": result.attention,
    }
    for name, picture in pictures.items():
        write_png(picture, directory / f"{name}.png")
    write_json(directory / "results.json", plain(result))
    page = Page(
        "A ladder that goes only as deep as it needs", lead=summary(result), command=command
    )
    page.add(headline(result))
    page.section("Cost against quality").add(
        frontier,
        rules_table(result.comparison, BATCH),
        differences_table(result.comparison),
        standings_table(result.comparison),
    )
    page.section("The price of a failure").add(
        "Lambda is the price of one failure relative to the ladder's own rate of exchange: at 1,"
        " always the smallest stage and always the largest are worth the same.",
        lambda_table(result.comparison, BATCH),
    )
    page.section("Where each stage fails").add(
        "The facts were learnt by heart, frequent ones first. Rank is difficulty.",
        difficulty,
        difficulty_table(names, groups, right, counts),
    )
    page.section("Some answers").add(answers_table(result))
    page.section("Training").add(losses)
    page.section("Attention of the largest stage").add(result.attention)
    return page.write(directory / "report.html")


def headline(result: DemoResult) -> Facts:
    """The main numbers: what the live run cost and how often it was right."""
    largest = result.largest
    own, top = result.comparison.row(LADDER), result.comparison.row(f"always {largest}")
    return Facts(
        (
            ("right, ladder", f"{result.live_quality:.1%}"),
            (f"right, always {largest}", f"{top.quality:.1%}"),
            (f"seconds of always {largest}, live", f"{result.live.relative(LADDER, largest):.2f}"),
            (f"FLOPs of always {largest}", f"{own.flops:.2f}"),
            ("oracle's seconds, the floor", f"{result.comparison.row(ORACLE).batched:.2f}"),
        )
    )


def summary(result: DemoResult) -> str:
    """The headline in a sentence."""
    top = result.comparison.row(f"always {result.largest}")
    seconds = result.live.relative(LADDER, result.largest)
    return (
        f"Going only as deep as each prompt needs took {seconds:.2f}"
        f" of the seconds of always asking the largest stage (batch {BATCH}, measured live) and"
        f" {result.comparison.row(LADDER).flops:.2f} of its FLOPs, and was right"
        f" {result.live_quality:.1%} of the time against {top.quality:.1%}."
    )


def loss_chart(runs: Mapping[str, Run]) -> Chart:
    """Training loss of every stage by step."""
    series = []
    for name, run in runs.items():
        records = [
            record for record in read_records(run.directory) if record.get("split") == "train"
        ]
        steps = [record["step"] for record in records]
        series.append(Series(name, steps, [record["loss"] for record in records]))
    return Chart("Training loss", "step", "loss, nats a token", series, ordered=True)


def answers_table(result: DemoResult, count: int = 12) -> Table:
    """Some prompts with their answers, the stage that gave them, and whether they are right."""
    examples = result.data.examples_of("test")
    step = max(1, len(examples) // count)
    rows = []
    for example, answer in list(zip(examples, result.live.answers, strict=True))[::step]:
        path = " → ".join(visit.stage for visit in answer.trace)
        verdict = "right" if answer.text == example.answer else f"wrong, {example.answer}"
        rows.append((example.prompt, answer.text, verdict, path, answer.p_good, answer.cost))
    return Table(("prompt", "answer", "", "stages run", "believed", "cost"), rows)


def plain(result: DemoResult) -> dict[str, object]:
    """The numbers of the report as plain values."""

    def rows(of: Sequence[object]) -> list[dict[str, object]]:
        return [dict(vars(row)) for row in of]

    return {
        "format_version": 1,
        "batch": BATCH,
        "live": {"quality": result.live_quality, "seconds": result.live.seconds},
        "rules": rows(result.comparison.rows),
        "lambdas": rows(result.comparison.lambdas),
    }
