"""A cascade held against simpler rules, on a population whose answers are known by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stepwell.cascade.fitted import QUALITY_MARGIN
from stepwell.errors import CascadeError
from stepwell.evals.baselines import tune_thresholds
from stepwell.evals.cascade import (
    EVERY,
    LADDER,
    MIXING,
    MYOPIC,
    OPEN_LOOP,
    ORACLE,
    ROUTER,
    STAGE_ORACLE,
    THRESHOLD,
    Bench,
    Comparison,
    compare,
)
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
)
from stepwell.evals.frontier import hull
from stepwell.report import Page

FIXED = ["always small", "always middle", "always large"]


@pytest.fixture(scope="module")
def comparison(world: Any) -> Comparison:
    return compare(world.cascade(**{"lambda": 3.0}), world.data("calibration"), world.data("test"))


def in_sample(world: Any) -> Bench:
    """Rules tuned and tried on the same prompts, so that what tuning promises must come true."""
    calibration = world.data("calibration")
    return Bench(world.cascade(), calibration, calibration)


def test_fixed_stages_cost_and_err_as_counted_by_hand(world: Any, comparison: Comparison) -> None:
    prompts, weights = world.prompts("test"), np.array(world.weights[2::3])
    costs = zip((0.1, 0.3, 1.0), (0.05, 0.2, 1.0), (0.4, 0.5, 1.0), strict=True)
    for name, script, (batched, flops, alone) in zip(FIXED, world.scripts, costs, strict=True):
        right = np.array([script[prompt].text == "right" for prompt in prompts])
        row = comparison.row(name)
        assert row.quality == pytest.approx((right * weights).sum() / weights.sum())
        assert (row.batched, row.flops, row.alone) == pytest.approx((batched, flops, alone))
        assert row.stages_run == pytest.approx(1.0)
    through = comparison.row(EVERY)
    assert (through.batched, through.flops, through.alone) == pytest.approx((1.4, 1.25, 1.9))
    assert through.stages_run == pytest.approx(3.0)
    assert through.quality == pytest.approx(comparison.row("always large").quality)


def test_the_ladders_row_is_what_it_does_live(world: Any) -> None:
    """With decisions by FLOPs and the headline in seconds, too."""
    weights = np.array(world.weights[2::3])
    for costs in ("measured", "flops"):
        cascade = world.cascade(**{"lambda": 3.0})
        cascade.config = cascade.config.changed(costs=costs)
        row = Bench(cascade, world.data("calibration"), world.data("test"))
        ladder = row.row(row.ladder())
        answers = cascade.generate_batch(world.prompts("test"))
        seconds = {"small": 0.1, "middle": 0.3, "large": 1.0}
        spent = [sum(seconds[visit.stage] for visit in answer.trace) for answer in answers]
        right = [answer.text == "right" for answer in answers]
        assert ladder.batched == pytest.approx(np.average(spent, weights=weights))
        assert ladder.quality == pytest.approx(np.average(right, weights=weights))
        visited = [len(answer.trace) for answer in answers]
        assert ladder.stages_run == pytest.approx(np.average(visited, weights=weights))


def test_tuned_baselines_reach_the_target_in_expectation(world: Any) -> None:
    bench = in_sample(world)
    tuned = {rule.name: bench.row(rule) for rule in bench.simpler() if rule.name != EVERY}
    assert set(tuned) == {MIXING, THRESHOLD, ROUTER, MYOPIC, OPEN_LOOP}
    for row in tuned.values():
        assert row.quality == pytest.approx(bench.target, abs=1e-9)
    assert tuned[THRESHOLD].batched < tuned[MIXING].batched - 0.01
    best = bench.calibration.mean(bench.calibration.good[:, -1])
    assert bench.target == pytest.approx(best - QUALITY_MARGIN)


def test_mixing_two_settings_is_at_least_as_cheap_as_any_single_one(world: Any) -> None:
    """The baseline is tuned at least as well as the cascade, which serves at a single lambda."""
    bench = in_sample(world)
    threshold = next(bench.row(rule) for rule in bench.simpler() if rule.name == THRESHOLD)
    confidence = bench._calibration_confidence
    for rule in tune_thresholds(confidence, bench.calibration, bench._known, levels=6):
        outcome = rule.run(confidence, bench.calibration, bench._known)
        if bench.calibration.mean(outcome.good) >= bench.target:
            assert threshold.batched <= bench.calibration.mean(outcome.cost) + 1e-9


def test_the_floor_is_below_every_rule_at_equal_quality(comparison: Comparison) -> None:
    rows = comparison.rows
    assert [row.name for row in rows[-2:]] == [STAGE_ORACLE, ORACLE]
    floor, cheapest = rows[-1], rows[0]
    reached = hull(
        np.array([cheapest.batched, floor.batched]), np.array([cheapest.quality, floor.quality])
    )
    for row in rows[:-2]:
        assert reached.cost_at(row.quality) <= row.batched + 1e-12
        assert row.quality <= floor.quality
    dearer = hull(np.array([0.1, 2 * floor.batched]), np.array([cheapest.quality, floor.quality]))
    assert any(dearer.cost_at(row.quality) > row.batched for row in rows[:-2])


def test_differences_are_the_ladder_minus_the_rule(comparison: Comparison) -> None:
    own = comparison.row(LADDER)
    assert [name for name, _ in comparison.differences] == [
        *FIXED,
        EVERY,
        MIXING,
        THRESHOLD,
        ROUTER,
        MYOPIC,
        OPEN_LOOP,
    ]
    for name, difference in comparison.differences:
        other = comparison.row(name)
        assert difference.cost.estimate == pytest.approx(own.batched - other.batched)
        assert difference.quality.estimate == pytest.approx(own.quality - other.quality)
        assert difference.cost.low <= difference.cost.estimate <= difference.cost.high
    by_name = dict(comparison.differences)
    assert by_name["always small"].cost.low > 0
    assert by_name["always small"].quality.low > 0
    assert by_name["always large"].cost.high < 0
    assert by_name[EVERY].cost.high < 0


def test_more_lambda_is_dearer_and_deeper(comparison: Comparison) -> None:
    costs = [row.batched for row in comparison.lambdas]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]
    assert [row.name for row in comparison.lambdas] == ["lambda 0.1", "lambda 1", "lambda 10"]


def test_the_cascade_stands_between_mixing_and_the_oracle(comparison: Comparison) -> None:
    assert [standing.name for standing in comparison.standings] == [THRESHOLD, LADDER]
    for standing in comparison.standings:
        assert 0 < standing.gap_closed.estimate < 1
        assert comparison.row(ORACLE).batched < standing.cost_at_quality.estimate < 1


def test_what_is_believed_of_answers_is_borne_out(comparison: Comparison) -> None:
    assert [stage.name for stage in comparison.reliability] == ["small", "middle", "large"]
    for stage in comparison.reliability:
        assert stage.error < 0.1
        assert stage.auroc > 0.8


def test_gains_are_what_the_largest_adds_to_the_best_at_hand(
    world: Any, comparison: Comparison
) -> None:
    assert [gain.name for gain in comparison.gains] == ["small", "middle"]
    data = world.data("test")
    paths = data.paths(world.fitted.predictor)
    beliefs, good = paths.after(0b11), data.good
    best = beliefs[:, :2].argmax(axis=1)
    found = good[:, 2] - good[np.arange(len(good)), best]
    believed = beliefs[:, 2] - beliefs[np.arange(len(good)), best]
    gain = comparison.gains[1]
    assert gain.brier == pytest.approx(np.average((believed - found) ** 2, weights=data.weights))
    assert gain.auroc > 0.6
    shuffled = np.random.default_rng(0).permutation(found)
    assert gain.brier < np.average((believed - shuffled) ** 2, weights=data.weights)


def test_what_is_served_is_what_a_budget_mixes(world: Any) -> None:
    """Of two policies each prompt is served by the one that it draws live."""
    cascade = world.cascade(**{"lambda": {"budget": 0.47}})
    outcome = Bench(cascade, world.data("calibration"), world.data("test")).served()
    answers = cascade.generate_batch(world.prompts("test"))
    names = [stage.name for stage in cascade.stages]
    runs = [[name in {v.stage for v in answer.trace} for name in names] for answer in answers]
    np.testing.assert_array_equal(outcome.stages_run, runs)
    assert 0 < cascade.rule().share < 1


def test_costs_must_have_been_measured_alone_too(world: Any) -> None:
    cascade = world.cascade()
    cascade.config = cascade.config.changed(serving={"max_rows": 3})
    with pytest.raises(CascadeError, match="not 3"):
        Bench(cascade, world.data("calibration"), world.data("test"))


def test_tables_and_charts_say_what_was_found(comparison: Comparison) -> None:
    table = rules_table(comparison)
    assert [row[0] for row in table.rows] == [row.name for row in comparison.rows]
    assert [column.name for column in table.columns][2] == "seconds, batch 16"
    assert "batch 16" in frontier_chart(comparison).x_label
    assert [row[0] for row in differences_table(comparison).rows][-1] == OPEN_LOOP
    names = [series.name for series in frontier_chart(comparison).series]
    assert names == [MIXING, THRESHOLD, LADDER, "ladder, chosen lambda", ORACLE]
    right = np.array([[0.9, 1.0], [0.1, 0.8]])
    page = Page("All of it").add(
        table,
        lambda_table(comparison),
        differences_table(comparison),
        standings_table(comparison),
        reliability_table(comparison),
        frontier_chart(comparison),
        reliability_chart(comparison),
        difficulty_table(["a", "b"], ["easy", "hard"], [10, 20], right),
        difficulty_chart(["a", "b"], ["easy", "hard"], right),
    )
    html = page.html()
    for name in (OPEN_LOOP, "gap closed", "Beliefs against answers", "Where each stage fails"):
        assert name in html


def test_the_price_of_a_failure_is_said_in_words(world: Any, comparison: Comparison) -> None:
    price = comparison.exchange.price
    assert f"a failure costs {price:.2f} answers" in price_in_words(comparison)
    data = world.data("calibration")
    few = Bench(world.cascade(), data.take(np.arange(300) < 6), data)
    assert not few.exchange.measured
    unproven = type(comparison)(**{**vars(comparison), "exchange": few.exchange})
    assert "could not be shown to fail less often" in price_in_words(unproven)
