"""What trials say together: numbers counted by hand, and bars that are met or missed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stepwell.cascade.rule.exchange import Exchange
from stepwell.evals.acceptance import Acceptance
from stepwell.evals.cascade import LADDER, MIXING, ORACLE, SHOWN_LAMBDAS, Row
from stepwell.evals.frontier import Interval
from stepwell.evals.gates import ByDepth, Gate
from stepwell.evals.protocol_figures import pictures
from stepwell.evals.protocol_records import (
    Arrays,
    BudgetRow,
    CalibrationRow,
    Certificate,
    Deciding,
    LambdaRow,
    LatencyRow,
    LiveRow,
    Shift,
    TrialResult,
)
from stepwell.evals.protocol_report import as_markdown, plain, report_page
from stepwell.evals.protocol_summary import COST_BAR, TaskSummary, summarise, verdicts
from stepwell.evals.protocol_tables import budgets_table, estimate, gates_table, markdown
from stepwell.evals.protocol_tasks import Arena
from stepwell.report.figure import Column, Estimate, Table

WEIGHTS = np.array([1.0, 1.0, 2.0, 4.0])
SMALL = np.array([1.0, 0.0, 0.0, 1.0])
LARGE = np.ones(4)
RULES = ("always small", "always large", LADDER, ORACLE)
COSTS = (0.1, 1.0, 0.4, 0.3)  # of each rule, for every question


def row(name: str, quality: float, cost: float) -> Row:
    return Row(name, quality, cost, cost / 2, cost, 1.0)


def trial(seed: int = 0, *, live: float = 0.4, right: float = 1.0) -> TrialResult:
    """A trial of two stages; live: the ladder's seconds, right: the largest stage's share."""
    believed = CalibrationRow("small", 0.1, 0.2, None, (0.5,), (0.6,))
    beliefs = believed, replace(believed, name="large", auroc=0.8)
    labels = (5 / 8, right, right, right)
    rules = tuple(row(*each) for each in zip(RULES, labels, COSTS, strict=True))
    return TrialResult(
        task="t",
        seed=seed,
        asked="a",
        arrays="s",
        batch=16,
        stages=("small", "large"),
        counts={"test": 4},
        gates=(Gate("g", 0.5 + seed, "above 0.6", seed > 0),),
        won=(0.5, 0.5),
        by_depth=ByDepth(("1", "2"), (2, 2), ((0.5, 1.0), (0.25, 1.0))),
        rules=rules,
        curves=(MIXING, LADDER, ORACLE),
        exchange=Exchange(2.4, True, 0.9, 0.375, 0.1),
        lam=3.0,
        live=(
            LiveRow(LADDER, live, live, right),
            LiveRow("always small", 0.1, 0.1, 5 / 8),
            LiveRow("always large", 1.0, 1.0, right),
        ),
        lambdas=tuple(LambdaRow(lam, 1.0, 1.0, 0.9, 0.5, 1.0) for lam in (None, *SHOWN_LAMBDAS)),
        budgets=(
            BudgetRow(0.3, 0.1, 0.33, 0.1),
            BudgetRow(0.05, 0.1, *((None, None) if seed else (0.06, 0.2))),
            BudgetRow(0.7, 0.1, *((0.35, -0.5) if seed else (0.77, 0.1)), spendable=not seed),
        ),
        latency=(LatencyRow(LADDER, 0.2, 0.3), LatencyRow("always large", 1.0, 1.5)),
        deciding=Deciding(1e-4, 2e-4),
        calibration=beliefs,
        gains=(believed,),
        acceptance=Acceptance((2, 1), (1, 1), 4, 2),
        shift=Shift(4, rules, rules[2], beliefs, beliefs),
        certificate=Certificate(True, 0.02, 0.05, 3.0, "1 of 100 questions lost", 0.01),
        seconds={"fit": 1.0 + seed},
    )


def arrays(right: float = 1.0) -> Arrays:
    """The ladder pays .4 and is right where the large stage is; the oracle pays .3."""
    large = LARGE * right
    good = np.stack([SMALL, large, large, large])
    cost = np.repeat(np.array(COSTS)[:, None], 4, axis=1)
    curves = {0: [0, 1], 1: [2], 2: [3]}
    found = {
        "weights": WEIGHTS,
        "lambdas": np.array([3.0]),
        "rule_good": good,
        "rule_cost": cost,
        "rule_flops": cost / 2,
    }
    for number, rows in curves.items():
        found[f"curve_{number}_cost"] = cost[rows]
        found[f"curve_{number}_good"] = good[rows]
    levels = np.array([1.0, 2.0, 4.0])[:, None]
    for kind in ("depth", "highest", "good", "cost"):
        found[f"lambda_{kind}"] = levels * np.array([[1.0, 1.0, 1.0, 2.0]])
    found["live_good"] = np.stack([large, SMALL, large])
    return found


def arena(*, headline: bool = True) -> Arena:
    return Arena("t", "for a test", lambda seed: None, headline=headline)  # type: ignore[arg-type,return-value]


@pytest.fixture(scope="module")
def summary() -> TaskSummary:
    return summarise(arena(), [(trial(0), arrays()), (trial(1), arrays())])


def test_means_are_over_seeds_of_weighted_questions(summary: TaskSummary) -> None:
    numbers = summary.numbers
    assert numbers["rule/always small/quality"].estimate == pytest.approx(5 / 8)
    assert numbers["rule/always large/quality"] == Interval(1.0, 1.0, 1.0)
    assert numbers[f"rule/{LADDER}/cost"].estimate == pytest.approx(0.4)
    assert numbers[f"rule/{LADDER}/flops"].estimate == pytest.approx(0.2)
    low, high = (getattr(numbers["rule/always small/quality"], end) for end in ("low", "high"))
    assert low < 5 / 8 < high  # four questions say little


def test_the_gap_is_counted_by_hand(summary: TaskSummary) -> None:
    """Areas above always-small over costs .1 to 1: random .9 x .375 / 2; a rule at c gains more."""
    rise = 1.0 - 5 / 8
    random = 0.9 * rise / 2
    own = 0.3 * rise / 2 + 0.6 * rise
    oracle = 0.2 * rise / 2 + 0.7 * rise
    numbers = summary.numbers
    assert numbers[f"curve/{LADDER}/area_above_random"].estimate == pytest.approx(own - random)
    closed = (own - random) / (oracle - random)
    assert numbers[f"curve/{LADDER}/gap_closed"].estimate == pytest.approx(closed)
    assert numbers[f"curve/{ORACLE}/gap_closed"].estimate == pytest.approx(1.0)
    within = 0.1 + 0.3 * (rise - 0.01) / rise
    assert numbers[f"curve/{LADDER}/cost_at_quality"].estimate == pytest.approx(within)


def test_a_quality_that_is_never_reached_costs_what_the_largest_does() -> None:
    low = arrays()
    low["curve_1_good"] = np.zeros((1, 4))
    found = summarise(arena(), [(trial(), low)])
    assert found.numbers[f"curve/{LADDER}/cost_at_quality"].estimate == 1.0


def test_lambda_moves_what_is_paired_by_question(summary: TaskSummary) -> None:
    numbers = summary.numbers
    mean = (1 + 1 + 2 + 8) / 8
    assert numbers["lambda/0.1/depth"].estimate == pytest.approx(mean)
    assert numbers["lambda/0.1 to 10/depth"].estimate == pytest.approx(3 * mean)
    assert numbers["lambda/1 to 10/good"].low > 0
    assert numbers["lambda/0.1 to 1/cost"].estimate == pytest.approx(mean)


def test_acceptance_is_counted_over_all_seeds(summary: TaskSummary) -> None:
    assert summary.acceptance == Acceptance((4, 2), (2, 2), 8, 4)


def test_a_seed_that_attains_no_budget_is_left_out_and_told(summary: TaskSummary) -> None:
    assert summary.numbers["budget/0.05/error"].estimate == pytest.approx(0.2)
    rows = budgets_table(summary).rows
    assert [cells[-1] for cells in rows] == ["2 of 2", "1 of 2", "2 of 2, 1 unspent"]
    assert summary.numbers["budget/0.7/error"].estimate == pytest.approx(0.1), "of what was spent"
    assert gates_table(summary).rows == [("g", 1.0, "above 0.6", "1 of 2")]


def met(found: list[Any]) -> dict[str, bool]:
    return {verdict.bar: verdict.holds for verdict in found}


def test_bars_are_met_or_missed_by_the_mean(summary: TaskSummary) -> None:
    assert len(summary.verdicts) == 5
    assert all(met(list(summary.verdicts)).values())
    slow = [(trial(seed, live=0.61), arrays()) for seed in (0, 1)]
    missed = [
        bar for bar, holds in met(list(summarise(arena(), slow).verdicts)).items() if not holds
    ]
    assert missed == ["seconds, live of always the largest"]
    mixed = [(trial(0, live=COST_BAR - 0.1), arrays()), (trial(1, live=COST_BAR + 0.05), arrays())]
    assert all(met(list(summarise(arena(), mixed).verdicts)).values())


def test_only_the_headline_task_is_held_to_the_cost_bar() -> None:
    found = summarise(arena(headline=False), [(trial(live=2.0), arrays())])
    assert [verdict.bar for verdict in found.verdicts] == [
        "gap closed between random mixing and the oracle"
    ]


def test_where_no_stage_solves_the_task_waste_is_what_counts() -> None:
    """The ladder of four times the smallest's cost wastes; one at its cost does not."""
    result, data = trial(live=0.104, right=0.3), arrays(right=0.3)
    data["rule_good"][0] = 0.3
    found = summarise(arena(), [(result, data)])
    by_bar = met(list(found.verdicts))
    assert list(by_bar.values()) == [False, True]  # .4 replayed, .104 live, of .1
    assert all("smallest" in bar for bar in by_bar)
    thrifty = replace(result, rules=(*result.rules[:2], row(LADDER, 0.3, 0.105), result.rules[3]))
    again = summarise(arena(), [(thrifty, data)])
    assert all(met(list(again.verdicts)).values())


def test_what_could_not_be_measured_is_missed() -> None:
    numbers = dict(summarise(arena(), [(trial(), arrays())]).numbers)
    numbers[f"curve/{LADDER}/gap_closed"] = Interval(np.nan, np.nan, np.nan)
    numbers[f"rule/{LADDER}/flops"] = Interval(np.nan, np.nan, np.nan)
    found = met(list(verdicts(arena(), [trial()], numbers)))
    assert not found["gap closed between random mixing and the oracle"]
    assert not found["FLOPs of always the largest"]


def test_the_report_shows_everything(summary: TaskSummary) -> None:
    page = report_page([summary], {"t": pictures(summary)}, "stepwell cascade eval").html()
    text = as_markdown([summary])
    for words in ("Budgets, live", "Harder questions", "Certificates", "gap closed", "met"):
        assert words in page
        assert words in text
    numbers = plain([summary])
    assert numbers["format_version"] == 1
    assert numbers["tasks"]["t"]["numbers"]["budget/0.3/cost"] == pytest.approx([0.33] * 3)


def test_markdown_spells_cells_as_people_read_them() -> None:
    table = Table(
        ("a", Column("b", percent=True), "c"),
        [("x", Estimate(0.5, 0.25, 1.0), 3), ("y", 0.1234, None), ("z", -1e-9, 2.0)],
        title="T",
        note="N.",
    )
    assert markdown(table).splitlines() == [
        "**T**",
        "",
        "| a | b | c |",
        "| --- | --- | --- |",
        "| x | 50.0% [25.0, 100.0] | 3 |",
        "| y | 12.3% | – |",
        "| z | 0.0% | 2.000 |",
        "",
        "N.",
    ]
    assert estimate(Interval(np.nan, 0, 1)) is None
