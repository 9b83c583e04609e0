"""The part of a trial that runs for real: times, prices of a failure, budgets, requests alone.

Everything is asked of questions that nothing was fitted on, and judged by the answers that came.
Owns these measurements; the clock and the contestants are in live.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from stepwell.cascade.answer import Answer
from stepwell.cascade.ladder import Budget
from stepwell.cascade.pipeline import Cascade
from stepwell.cascade.rule.paths import BoolArray, FloatArray
from stepwell.errors import CascadeError
from stepwell.evals.acceptance import Acceptance, acceptance
from stepwell.evals.cascade import LADDER, SHOWN_LAMBDAS, Bench
from stepwell.evals.live import (
    Clock,
    drawn,
    forget,
    run_alone,
    run_live,
    speculation,
    without_drafts,
)
from stepwell.evals.protocol_records import (
    Arrays,
    BudgetRow,
    Deciding,
    LambdaRow,
    LatencyRow,
    LiveRow,
)

BUDGETS: Final = (0.3, 0.5, 0.7)
TIMED: Final = 1024  # questions, as often as they are asked
ALONE: Final = 200

Grader = Callable[[str], bool]


@dataclass(frozen=True, eq=False)
class Asked:
    """The N test questions: prompts, what says whether a text is right, how often each is asked."""

    prompts: tuple[str, ...]
    graders: tuple[Grader, ...]
    weights: FloatArray

    def mean(self, values: FloatArray) -> float:
        """The mean of values [N] over questions as they are asked."""
        return float(np.average(values, weights=self.weights))


@dataclass(frozen=True, eq=False)
class Pass:
    """One live run over all test questions, by question, [N] each; runs [N, K]: the stages run."""

    good: FloatArray
    cost: FloatArray
    runs: BoolArray
    answers: tuple[Answer, ...]

    @property
    def depth(self) -> FloatArray:
        """How many stages were run."""
        depth: FloatArray = self.runs.sum(axis=1).astype(np.float64)
        return depth

    @property
    def highest(self) -> FloatArray:
        """The number of the largest stage that was run."""
        numbers = np.arange(1, self.runs.shape[1] + 1)
        highest: FloatArray = (self.runs * numbers).max(axis=1).astype(np.float64)
        return highest


@dataclass(frozen=True, eq=False)
class Live:
    """What the live part found. served: the pass at the ladder's own lambda."""

    rows: tuple[LiveRow, ...]
    lambdas: tuple[LambdaRow, ...]
    budgets: tuple[BudgetRow, ...]
    latency: tuple[LatencyRow, ...]
    deciding: Deciding
    acceptance: Acceptance
    served: Pass
    arrays: Arrays


def measure_live(
    cascade: Cascade,
    bench: Bench,
    asked: Asked,
    *,
    clock: Clock,
    told: Callable[[str], None],
) -> Live:
    """All of it; `told` hears what begins."""
    told("timing, live")
    rows, live_good, in_batch = timed(cascade, asked, clock)
    told("prices of a failure, live")
    passes = {lam: run_pass(cascade, asked, lam) for lam in (None, *SHOWN_LAMBDAS)}
    told("budgets, live")
    cheapest = asked.mean(bench.served(0.0).cost)
    budgets = tuple(run_budget(cascade, asked, budget, cheapest) for budget in BUDGETS)
    told("questions alone")
    latency, alone = latencies(cascade, asked, clock)
    vocabularies = [stage.vocabulary for stage in cascade.stages]
    return Live(
        rows=rows,
        lambdas=tuple(lambda_row(lam, found, bench, asked) for lam, found in passes.items()),
        budgets=budgets,
        latency=latency,
        deciding=Deciding(in_batch, alone),
        acceptance=acceptance(passes[None].answers, vocabularies),
        served=passes[None],
        arrays={"live_good": live_good, **_lambda_arrays([passes[lam] for lam in SHOWN_LAMBDAS])},
    )


def timed(
    cascade: Cascade, asked: Asked, clock: Clock
) -> tuple[tuple[LiveRow, ...], FloatArray, float]:
    """The rows of all contestants, their labels [C, M], and seconds of deciding a question.

    The M questions come as often as they are asked, up to TIMED of them.
    """
    places = drawn(asked.weights, TIMED)
    prompts = [asked.prompts[place] for place in places]
    others = {**without_drafts(cascade), **speculation(cascade)}
    run = run_live(cascade, prompts, others=others, clock=clock)
    own = {LADDER: ([answer.text for answer in run.answers], run.seconds)}
    always = {f"always {stage.name}": run.rivals[stage.name] for stage in cascade.stages}
    rivals = {**always, **{name: run.rivals[name] for name in others}}
    found = {name: (each.texts, each.seconds) for name, each in rivals.items()}
    unit = run.stage_seconds[cascade.stages[-1].name]
    rows, labels = [], []
    for name, (texts, seconds) in {**own, **found}.items():
        pairs = zip(places, texts, strict=True)
        labels.append([float(asked.graders[place](text)) for place, text in pairs])
        quality = float(np.mean(labels[-1]))
        rows.append(LiveRow(name, seconds / len(prompts), seconds / unit, quality))
    return tuple(rows), np.array(labels), run.deciding_s


def run_pass(cascade: Cascade, asked: Asked, lam: float | None = None) -> Pass:
    """All test questions once, at a lambda or the ladder's own."""
    forget(cascade)
    answers = cascade.generate_batch(asked.prompts, lam=lam)
    names = [stage.name for stage in cascade.stages]
    good = [grade(each.text) for grade, each in zip(asked.graders, answers, strict=True)]
    visited = [{visit.stage for visit in answer.trace} for answer in answers]
    return Pass(
        np.array(good, dtype=np.float64),
        np.array([answer.cost for answer in answers]),
        np.array([[name in stages for name in names] for stages in visited]),
        tuple(answers),
    )


def lambda_row(lam: float | None, found: Pass, bench: Bench, asked: Asked) -> LambdaRow:
    """The means of a pass, beside what the replay says of its decisions."""
    same = (found.runs == bench.served(lam).stages_run).all(axis=1)
    return LambdaRow(
        lam,
        depth=asked.mean(found.depth),
        highest=asked.mean(found.highest),
        quality=asked.mean(found.good),
        cost=asked.mean(found.cost),
        same=float(same.mean()),
    )


def run_budget(cascade: Cascade, asked: Asked, budget: float, cheapest: float) -> BudgetRow:
    """The mean cost of the answers under a budget; cheapest is that of the cheapest policy."""
    policy = cascade.config.policy.changed(lam=Budget(budget=budget))
    config = cascade.config.changed(policy=policy)
    try:
        bound = Cascade(config, cascade.stages, cascade.fitted)
        rule = bound.rule()
    except CascadeError:
        return BudgetRow(budget, cheapest, None, None)
    cost = asked.mean(run_pass(bound, asked).cost)
    spendable = rule.dearer is not rule.cheaper
    return BudgetRow(budget, cheapest, cost, cost / budget - 1.0, spendable)


def latencies(cascade: Cascade, asked: Asked, clock: Clock) -> tuple[tuple[LatencyRow, ...], float]:
    """Seconds of questions alone, by the ladder and its largest stage; median of deciding."""
    places = drawn(asked.weights, ALONE, seed=1)
    found = run_alone(cascade, [asked.prompts[place] for place in places], clock=clock)
    largest = f"always {cascade.stages[-1].name}"
    rows = _latency(LADDER, found.seconds), _latency(largest, found.largest)
    return rows, float(np.median(found.deciding))


def _latency(name: str, seconds: FloatArray) -> LatencyRow:
    p50, p95 = np.quantile(seconds, (0.5, 0.95))
    return LatencyRow(name, float(p50), float(p95))


def _lambda_arrays(passes: Sequence[Pass]) -> Arrays:
    """What each of the shown lambdas did, by question, [L, N] each."""
    return {
        "lambda_depth": np.stack([found.depth for found in passes]),
        "lambda_highest": np.stack([found.highest for found in passes]),
        "lambda_good": np.stack([found.good for found in passes]),
        "lambda_cost": np.stack([found.cost for found in passes]),
    }
