"""What the trials of one task say together: means over seeds with intervals, and verdicts.

Numbers go by names such as "rule/ladder/quality"; intervals are nested bootstraps over seeds and
prompts wherever the number is a mean over prompts, over seeds alone where it is a time. Owns the
numbers and the bars that they are held against; how they are shown is protocol_tables'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from stepwell.cascade.rule.paths import FloatArray
from stepwell.evals.acceptance import Acceptance
from stepwell.evals.cascade import LADDER, SHOWN_LAMBDAS
from stepwell.evals.frontier import Curve, Interval, hull, standings
from stepwell.evals.nested import nested_bootstrap, over_seeds
from stepwell.evals.protocol_records import Arrays, TrialResult
from stepwell.evals.protocol_tasks import Arena

COST_BAR: Final = 0.6  # of always-largest, at its quality within WITHIN
GAP_BAR: Final = 0.4
WASTE_BAR: Final = 1.05  # of always-smallest, where no stage solves the task
WITHIN: Final = 0.01
SOLVED: Final = 0.5  # a stage that is right this often solves the task
GRID: Final = 60  # costs at which a frontier is drawn
STANDING: Final = ("area_above_random", "gap_closed", "cost_at_quality")

Numbers = Mapping[str, Interval]
Statistic = Callable[[FloatArray], list[float]]


@dataclass(frozen=True)
class Verdict:
    """A number held against a bar. value None: it could not be measured, and does not hold."""

    task: str
    bar: str
    value: Interval | None
    limit: float
    holds: bool


@dataclass(frozen=True)
class Line:
    """What a rule reaches: mean quality over seeds at each of some costs."""

    name: str
    cost: tuple[float, ...]
    quality: tuple[float, ...]


@dataclass(frozen=True)
class Sweep:
    """The ladder's mean cost and quality over seeds at each of some lambdas, replayed."""

    lambdas: tuple[float, ...]
    cost: tuple[float, ...]
    quality: tuple[float, ...]


@dataclass(frozen=True)
class TaskSummary:
    """One task over its seeds: the trials, what they say together, and the verdicts.

    frontier: what each curve reaches by mixing its settings.
    """

    name: str
    purpose: str
    trials: tuple[TrialResult, ...]
    numbers: dict[str, Interval]
    acceptance: Acceptance
    verdicts: tuple[Verdict, ...]
    frontier: tuple[Line, ...]
    sweep: Sweep

    @property
    def first(self) -> TrialResult:
        """The first trial, whose names of rules and stages are those of all."""
        return self.trials[0]


def summarise(arena: Arena, trials: Sequence[tuple[TrialResult, Arrays]]) -> TaskSummary:
    """The summary of a task from all of its trials."""
    results = [result for result, _ in trials]
    numbers = {
        **replayed_numbers(trials),
        **lambda_numbers(trials),
        **live_numbers(trials),
        **seed_numbers(results),
    }
    return TaskSummary(
        arena.name,
        arena.purpose,
        tuple(results),
        numbers,
        Acceptance.joined([result.acceptance for result in results]),
        tuple(verdicts(arena, results, numbers)),
        tuple(frontier(trials)),
        sweep(trials),
    )


def replayed_numbers(trials: Sequence[tuple[TrialResult, Arrays]]) -> dict[str, Interval]:
    """Quality, cost and FLOPs of each rule; standings of each curve, the floor's among them."""
    first, _ = trials[0]
    rules, curves = [row.name for row in first.rules], first.curves[1:]
    names = [f"rule/{rule}/{what}" for what in ("quality", "cost", "flops") for rule in rules]
    names += [f"curve/{curve}/{what}" for curve in curves for what in STANDING]
    statistics = [_replayed(result, arrays) for result, arrays in trials]
    found = nested_bootstrap(statistics, [arrays["weights"] for _, arrays in trials])
    return dict(zip(names, found, strict=True))


def frontier(trials: Sequence[tuple[TrialResult, Arrays]]) -> Iterator[Line]:
    """The mean over seeds of each curve's hull, over costs from always-1 to always-K.

    Always the smallest stage is added to each, which anybody can mix in.
    """
    for number, name in enumerate(trials[0][0].curves):
        lines = [_hull_line(arrays, number) for _, arrays in trials]
        cost, quality = np.mean(lines, axis=0)
        yield Line(name, tuple(cost.tolist()), tuple(quality.tolist()))


def sweep(trials: Sequence[tuple[TrialResult, Arrays]]) -> Sweep:
    """The ladder's means at each lambda of its curve."""
    number = trials[0][0].curves.index(LADDER)
    points = [_points(arrays, number) for _, arrays in trials]
    cost, quality = np.mean(points, axis=0)
    lambdas = trials[0][1]["lambdas"]
    return Sweep(tuple(lambdas.tolist()), tuple(cost.tolist()), tuple(quality.tolist()))


def lambda_numbers(trials: Sequence[tuple[TrialResult, Arrays]]) -> dict[str, Interval]:
    """What lambda moved live: means at each, and paired differences between any two."""
    kinds = ("depth", "highest", "good", "cost")
    lams = [f"{lam:g}" for lam in SHOWN_LAMBDAS]
    pairs = list(combinations(range(len(lams)), 2))
    names = [f"lambda/{lam}/{kind}" for kind in kinds for lam in lams]
    names += [f"lambda/{lams[a]} to {lams[b]}/{kind}" for kind in kinds for a, b in pairs]

    def statistic_of(arrays: Arrays) -> Statistic:
        def statistic(weights: FloatArray) -> list[float]:
            share = weights / weights.sum()
            means = [arrays[f"lambda_{kind}"] @ share for kind in kinds]
            moved = [mean[b] - mean[a] for mean in means for a, b in pairs]
            return [*np.concatenate(means).tolist(), *moved]

        return statistic

    statistics = [statistic_of(arrays) for _, arrays in trials]
    found = nested_bootstrap(statistics, [arrays["weights"] for _, arrays in trials])
    return dict(zip(names, found, strict=True))


def live_numbers(trials: Sequence[tuple[TrialResult, Arrays]]) -> dict[str, Interval]:
    """Right answers of each contestant; its seconds relative to always the largest, over seeds."""
    first, _ = trials[0]
    rows = [row.name for row in first.live]
    names = [*(f"live/{name}/quality" for name in rows), "live/ladder minus largest/quality"]
    own, largest = rows.index(LADDER), rows.index(f"always {first.stages[-1]}")

    def statistic_of(good: FloatArray) -> Statistic:
        def statistic(counts: FloatArray) -> list[float]:
            means = good @ counts / counts.sum()
            return [*means.tolist(), float(means[own] - means[largest])]

        return statistic

    labels = [arrays["live_good"] for _, arrays in trials]
    found = nested_bootstrap(
        [statistic_of(good) for good in labels], [np.ones(good.shape[1]) for good in labels]
    )
    numbers = dict(zip(names, found, strict=True))
    for place, name in enumerate(rows):
        numbers[f"live/{name}/relative"] = over_seeds([r.live[place].relative for r, _ in trials])
        numbers[f"live/{name}/seconds"] = over_seeds([r.live[place].seconds for r, _ in trials])
    return numbers


def seed_numbers(results: Sequence[TrialResult]) -> dict[str, Interval]:
    """What is one number a trial: times, calibration, budgets, the certificate, and shift."""
    values: dict[str, list[float]] = {}
    for result in results:
        for name, value in _single(result):
            values.setdefault(name, []).append(math.nan if value is None else value)
    return {name: over_seeds(found) for name, found in values.items()}


def verdicts(arena: Arena, results: Sequence[TrialResult], numbers: Numbers) -> Iterator[Verdict]:
    """The bars that apply to a task, and whether they are met in the mean over seeds."""
    solved = max(numbers[f"rule/always {stage}/quality"].estimate for stage in results[0].stages)
    if solved < SOLVED:
        for what, name in (("mean cost", "waste/cost"), ("seconds, live", "waste/live")):
            found = numbers[name]
            bar = f"{what} of always the smallest stage, where none solves the task"
            yield _at_most(arena.name, bar, found, WASTE_BAR)
        return
    gap = numbers[f"curve/{LADDER}/gap_closed"]
    bar = "gap closed between random mixing and the oracle"
    yield Verdict(arena.name, bar, gap, GAP_BAR, gap.estimate >= GAP_BAR)
    if not arena.headline:
        return
    lost = numbers["live/ladder minus largest/quality"]
    bar = "right answers, live, minus those of always the largest"
    yield Verdict(arena.name, bar, lost, -WITHIN, lost.estimate >= -WITHIN)
    for what, name in (
        ("seconds, live", f"live/{LADDER}/relative"),
        ("FLOPs", f"rule/{LADDER}/flops"),
        (
            "seconds, replayed at the cheapest lambda within a point",
            f"curve/{LADDER}/{STANDING[2]}",
        ),
    ):
        yield _at_most(arena.name, f"{what} of always the largest", numbers[name], COST_BAR)


def _at_most(task: str, bar: str, value: Interval, limit: float) -> Verdict:
    known = None if math.isnan(value.estimate) else value
    return Verdict(task, bar, known, limit, known is not None and known.estimate <= limit)


def _replayed(result: TrialResult, arrays: Arrays) -> Statistic:
    """The numbers of one seed's replay for given weights of its questions."""
    curves = [
        Curve(name, arrays[f"curve_{number}_cost"], arrays[f"curve_{number}_good"])
        for number, name in enumerate(result.curves)
    ]
    fixed, limit = curves[0], curves[-1]

    def statistic(weights: FloatArray) -> list[float]:
        share = weights / weights.sum()
        means = [arrays[f"rule_{what}"] @ share for what in ("good", "cost", "flops")]
        stands = standings(curves[1:], fixed, limit, weights, within=WITHIN, resamples=1)
        places = [getattr(each, what).estimate for each in stands for what in STANDING]
        return [*np.concatenate(means).tolist(), *(_reached(value) for value in places)]

    return statistic


def _hull_line(arrays: Arrays, number: int) -> tuple[FloatArray, FloatArray]:
    """One seed's hull of a curve at evenly spread costs."""
    fixed_cost, fixed_quality = _points(arrays, 0)
    cost, quality = _points(arrays, number)
    reached = hull(np.append(cost, fixed_cost[0]), np.append(quality, fixed_quality[0]))
    grid = np.linspace(fixed_cost[0], max(fixed_cost[-1], fixed_cost[0]), GRID)
    return grid, np.array([reached.quality_at(each) for each in grid])


def _points(arrays: Arrays, number: int) -> tuple[FloatArray, FloatArray]:
    """Mean cost and quality of a curve at each of its settings."""
    share = arrays["weights"] / arrays["weights"].sum()
    return arrays[f"curve_{number}_cost"] @ share, arrays[f"curve_{number}_good"] @ share


def _single(result: TrialResult) -> Iterator[tuple[str, float | None]]:
    cost = result.rule(LADDER).batched / result.rule(f"always {result.stages[0]}").batched
    relative = {row.name: row.seconds for row in result.live}
    yield "waste/cost", cost
    yield "waste/live", relative[LADDER] / relative[f"always {result.stages[0]}"]
    for row in result.rules:
        yield f"rule/{row.name}/alone", row.alone
        yield f"rule/{row.name}/stages run", row.stages_run
    yield "live/ladder/accounted", result.lambdas[0].cost
    for lam in result.lambdas:
        yield f"same/{'own' if lam.lam is None else f'{lam.lam:g}'}", lam.same
    for budget in result.budgets:
        yield f"budget/{budget.budget:g}/cheapest", budget.cheapest
        yield f"budget/{budget.budget:g}/cost", budget.cost
        yield f"budget/{budget.budget:g}/error", budget.error if budget.spendable else None
    for latency in result.latency:
        yield f"latency/{latency.name}/p50", latency.p50
        yield f"latency/{latency.name}/p95", latency.p95
    yield "deciding/batch", result.deciding.batch
    yield "deciding/alone", result.deciding.alone
    yield "lambda/own", result.lam
    yield "certificate/excess", result.certificate.excess
    for kind, rows in (("belief", result.calibration), ("gain", result.gains)):
        for each in rows:
            yield f"{kind}/{each.name}/error", each.error
            yield f"{kind}/{each.name}/brier", each.brier
            yield f"{kind}/{each.name}/auroc", each.auroc
    if result.shift is not None:
        yield from _shifted(result)


def _shifted(result: TrialResult) -> Iterator[tuple[str, float | None]]:
    shift = result.shift
    assert shift is not None
    for name, row in [(row.name, row) for row in shift.rows] + [("refitted", shift.refitted)]:
        yield f"shift/{name}/quality", row.quality
        yield f"shift/{name}/cost", row.batched
    for kind, rows in (("belief", shift.calibration), ("anew", shift.anew)):
        for each in rows:
            yield f"shift/{kind}/{each.name}/error", each.error


def _reached(value: float) -> float:
    """A quality that no setting reaches costs what always the largest stage does."""
    return 1.0 if math.isinf(value) else value
