"""The tables of an evaluation of cascades, for a page, and as Markdown for a text.

Owns which numbers stand beside each other. Nothing is left out that was lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from stepwell.evals.cascade import LADDER, ORACLE, SHOWN_LAMBDAS
from stepwell.evals.frontier import Interval
from stepwell.evals.gates import ByDepth
from stepwell.evals.protocol_records import TrialResult
from stepwell.evals.protocol_summary import Numbers, TaskSummary, Verdict
from stepwell.report.figure import Cell, Column, Estimate, Table
from stepwell.report.numerals import fixed

RIGHT = Column("right", percent=True)
INTERVALS = "Means over seeds; 95% intervals by a bootstrap over seeds, then questions."
TIMES = "Means over seeds; 95% intervals of times are over seeds alone."


def verdicts_table(verdicts: Iterable[Verdict]) -> Table:
    """Every bar, what was found, and whether it is met."""
    rows = [
        (each.task, each.bar, estimate(each.value), each.limit, "met" if each.holds else "missed")
        for each in verdicts
    ]
    return Table(("task", "what", "found", "bar", ""), rows, note=INTERVALS)


def gates_table(summary: TaskSummary) -> Table:
    """Each gate: its number in every trial, and in how many of them it holds."""
    rows: list[tuple[Cell, ...]] = []
    for place, gate in enumerate(summary.first.gates):
        found = [trial.gates[place] for trial in summary.trials]
        values = [each.value for each in found if each.value is not None]
        mean = float(np.mean(values)) if values else None
        holds = f"{sum(each.holds for each in found)} of {len(found)}"
        rows.append((gate.name, mean, gate.limit, holds))
    return Table(("gate", "mean", "expected", "holds in seeds"), rows)


def rules_table(summary: TaskSummary) -> Table:
    """Every rule, replayed at its chosen setting."""
    batch = summary.first.batch
    heads = (f"seconds, batch {batch}", "FLOPs", "seconds, batch 1", "stages run")
    rows = []
    for rule in summary.first.rules:
        kinds = ("quality", "cost", "flops", "alone", "stages run")
        cells = [estimate(summary.numbers[f"rule/{rule.name}/{kind}"]) for kind in kinds]
        rows.append((rule.name, *cells))
    return Table(("rule", RIGHT, *heads), rows, title="Rules, replayed", note=INTERVALS)


def standings_table(summary: TaskSummary) -> Table:
    """What the rules with a setting reach over all of their settings, beside the oracle."""
    kinds = ("area_above_random", "gap_closed", "cost_at_quality")
    rows = [
        (curve, *(estimate(summary.numbers[f"curve/{curve}/{kind}"]) for kind in kinds))
        for curve in summary.first.curves[1:]
    ]
    heads = ("rule", "area above random mixing", "gap closed", "cost within a point of the largest")
    return Table(heads, rows, title="Over all settings", note=INTERVALS)


def live_table(summary: TaskSummary) -> Table:
    """Contestants run for real, in turns."""
    rows = []
    for row in summary.first.live:
        numbers = [
            summary.numbers[f"live/{row.name}/{kind}"]
            for kind in ("relative", "seconds", "quality")
        ]
        relative, seconds, quality = numbers
        rows.append((row.name, estimate(relative), estimate(seconds, 1e3), estimate(quality)))
    heads = ("contestant", "of always the largest", "ms a question", RIGHT)
    accounted = summary.numbers["live/ladder/accounted"].estimate
    note = f"By its own account the ladder's answers cost {accounted:.3f}. {TIMES}"
    return Table(heads, rows, title="Seconds, run for real", note=note)


def lambdas_table(summary: TaskSummary) -> Table:
    """What lambda moves, live, and by how much."""
    lams = [f"{lam:g}" for lam in SHOWN_LAMBDAS]
    names = [*lams, *(f"{one} to {other}" for one, other in combinations(lams, 2))]
    kinds = ("depth", "highest", "good", "cost")
    rows = []
    for name in names:
        cells = [estimate(summary.numbers[f"lambda/{name}/{kind}"]) for kind in kinds]
        same = summary.numbers.get(f"same/{name}")
        rows.append((name, *cells, None if same is None else estimate(same)))
    heads = ("stages run", "largest stage run", RIGHT, "cost", Column("as replayed", percent=True))
    own = summary.numbers["lambda/own"].estimate
    lam = "none, always the largest" if math.isnan(own) else f"{own:.3g}"
    note = f"The ladder's own lambda: {lam}. {INTERVALS}"
    return Table(("lambda", *heads), rows, title="The price of a failure, live", note=note)


def budgets_table(summary: TaskSummary) -> Table:
    """Budgets of mean cost, and what was paid."""
    rows = []
    for place, budget in enumerate(summary.first.budgets):
        found = [trial.budgets[place] for trial in summary.trials]
        attained = sum(each.cost is not None for each in found)
        unspent = sum(not each.spendable for each in found)
        numbers = [
            summary.numbers[f"budget/{budget.budget:g}/{kind}"]
            for kind in ("cost", "error", "cheapest")
        ]
        told = f"{attained} of {len(found)}" + (f", {unspent} unspent" if unspent else "")
        rows.append((f"{budget.budget:g}", *map(estimate, numbers), told))
    error = Column("error", percent=True)
    heads = ("budget", "paid", error, "cheapest policy", "attainable in seeds")
    note = "Unspent: even the dearest policy costs less, which is no error."
    return Table(heads, rows, title="Budgets, live", note=note)


def latency_table(summary: TaskSummary) -> Table:
    """Requests alone, and what of them deciding takes."""
    rows: list[tuple[Cell, ...]] = []
    for row in summary.first.latency:
        numbers = [summary.numbers[f"latency/{row.name}/{kind}"] for kind in ("p50", "p95")]
        rows.append((row.name, *(estimate(each, 1e3) for each in numbers)))
    for name, kind in (("deciding, alone", "alone"), ("deciding, in the batch", "batch")):
        rows.append((name, estimate(summary.numbers[f"deciding/{kind}"], 1e3), None))
    return Table(("ms", "p50", "p95"), rows, title="Questions alone", note=TIMES)


def calibration_table(summary: TaskSummary) -> Table:
    """How far beliefs are borne out, in each stage's answer and in what the largest adds."""
    rows = []
    for kind, what in (("belief", "answer of"), ("gain", "gain over")):
        for name in summary.first.stages[: None if kind == "belief" else -1]:
            numbers = [
                summary.numbers[f"{kind}/{name}/{each}"] for each in ("error", "brier", "auroc")
            ]
            rows.append((f"{what} {name}", *map(estimate, numbers)))
    heads = ("belief in", "calibration error (ECE)", "Brier score", "AUROC")
    note = "Gain: the largest stage's answer against the best at hand after that stage."
    return Table(heads, rows, title="Beliefs", note=note)


def acceptance_table(summary: TaskSummary) -> Table:
    """How much of a draft stays, by position."""
    found = summary.acceptance
    rows = [
        (place + 1, reached, share)
        for place, (reached, share) in enumerate(zip(found.reached, found.shares, strict=True))
    ]
    each = found.tokens_per_forward
    note = "Nothing was verified." if each is None else f"{each:.2f} tokens a verifying forward."
    heads = ("token of the draft", "reached", Column("accepted", percent=True))
    return Table(heads, rows, title="Drafts that a later stage verified", note=note)


def shift_table(summary: TaskSummary) -> Table | None:
    """Rules on harder questions than they were fitted on; None where there are none."""
    shift = summary.first.shift
    if shift is None:
        return None
    names = [*(row.name for row in shift.rows), "refitted"]
    rows: list[tuple[Cell, ...]] = [
        (
            "ladder, fitted on harder questions" if name == "refitted" else name,
            *(estimate(summary.numbers[f"shift/{name}/{kind}"]) for kind in ("quality", "cost")),
        )
        for name in names
    ]
    return Table(("rule", RIGHT, "cost"), rows, title="Harder questions", note=INTERVALS)


def shifted_calibration_table(summary: TaskSummary) -> Table | None:
    """Calibration error of beliefs before and after the shift, and refitted."""
    if summary.first.shift is None:
        return None
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            *(
                estimate(summary.numbers[key])
                for key in (
                    f"belief/{name}/error",
                    f"shift/belief/{name}/error",
                    f"shift/anew/{name}/error",
                )
            ),
        )
        for name in summary.first.stages
    ]
    heads = ("answer of", "ECE, as fitted", "ECE, harder", "ECE, harder and refitted")
    return Table(heads, rows, note=TIMES.replace("of times ", ""))


def certificates_table(summary: TaskSummary) -> Table:
    """What each seed's certificate says, and the loss that was found."""
    rows = [
        (
            trial.seed,
            trial.certificate.words,
            "none tested"
            if trial.certificate.epsilon is None
            else f"{trial.certificate.epsilon:g}",
            trial.certificate.excess,
        )
        for trial in summary.trials
    ]
    heads = ("seed", "certificate", "epsilon", Column("excess loss on test", percent=True))
    return Table(heads, rows, title="Certificates")


def depth_table(summary: TaskSummary) -> Table:
    """Each stage's right answers by difficulty."""
    found = mean_by_depth([trial.by_depth for trial in summary.trials])
    rows: list[tuple[Cell, ...]] = [
        (group, count, *right)
        for group, count, right in zip(found.groups, found.counts, found.right, strict=True)
    ]
    stages = (Column(name, percent=True) for name in summary.first.stages)
    return Table(("depth", "questions", *stages), rows, title="Where each stage fails")


def mean_by_depth(found: Sequence[ByDepth]) -> ByDepth:
    """The mean over trials, of those whose groups are those of the first."""
    alike = [each for each in found if each.groups == found[0].groups]
    right = np.mean([each.right for each in alike], axis=0)
    return ByDepth(found[0].groups, found[0].counts, tuple(map(tuple, right.tolist())))


def seconds_table(trials: Sequence[TrialResult]) -> Table:
    """What each step took, in the mean over trials that took it."""
    steps = dict.fromkeys(step for trial in trials for step in trial.seconds)
    rows = []
    for step in steps:
        taken = [trial.seconds[step] for trial in trials if step in trial.seconds]
        rows.append((step, float(np.mean(taken))))
    return Table(("step", "seconds"), rows, title="What an evaluation takes")


def short_table(summaries: Sequence[TaskSummary]) -> Table:
    """The ladder of each task in a line."""
    rows = []
    for summary in summaries:
        number, largest = summary.numbers, summary.first.stages[-1]
        rows.append(
            (
                summary.name,
                len(summary.trials),
                number[f"live/{LADDER}/quality"].estimate,
                number[f"live/always {largest}/quality"].estimate,
                number[f"live/{LADDER}/relative"].estimate,
                number[f"rule/{LADDER}/flops"].estimate,
                _value(number, f"curve/{LADDER}/gap_closed"),
                number[f"rule/{ORACLE}/cost"].estimate,
            )
        )
    shares = (RIGHT, Column("right, always largest", percent=True))
    costs = ("seconds, live", "FLOPs", "gap closed", "oracle")
    return Table(("task", "seeds", *shares, *costs), rows)


def markdown(table: Table) -> str:
    """A table as Markdown, its note below."""
    heads = [column.name for column in table.columns]
    lines = [heads, ["---"] * len(heads)]
    for row in table.rows:
        pairs = zip(row, table.columns, strict=True)
        lines.append([_cell(cell, column.percent) for cell, column in pairs])
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    title = f"**{table.title}**\n\n" if table.title else ""
    return f"{title}{text}" + (f"\n{table.note}\n" if table.note else "")


def estimate(interval: Interval | None, scale: float = 1.0) -> Cell:
    """An interval as a cell; blank where nothing is known."""
    if interval is None or math.isnan(interval.estimate):
        return None
    return Estimate(interval.estimate * scale, interval.low * scale, interval.high * scale)


def _value(numbers: Numbers, name: str) -> float | None:
    value = numbers[name].estimate
    return None if math.isnan(value) else value


def _cell(cell: Cell, percent: bool) -> str:
    if cell is None or isinstance(cell, str):
        return cell or "–"
    if isinstance(cell, int):
        return f"{cell:,}"
    scale, digits, sign = (100, 1, "%") if percent else (1, 3, "")
    if isinstance(cell, Estimate):
        middle, low, high = (
            fixed(scale * each, digits) for each in (cell.value, cell.low, cell.high)
        )
        return f"{middle}{sign} [{low}, {high}]"
    return f"{fixed(scale * cell, digits)}{sign}"
