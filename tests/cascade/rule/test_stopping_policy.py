"""The fitted policy where beliefs are exact: out of sample, step by step, its price, its files."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from support.timing import fastest

from stepwell.cascade.rule.exchange import Exchange
from stepwell.cascade.rule.paths import Outcome, Paths, incremental_costs
from stepwell.cascade.rule.regression import fit_by_regression
from stepwell.cascade.rule.stopping import Policy, fit, open_loop
from stepwell.errors import CascadeError, ConfigError, DataError, FormatError, ShapeError
from stepwell.evals.baselines import myopic

# A population whose beliefs are exact: difficulty on a grid, each stage's confidence a noisy sign.

COSTS = [0.05, 0.2, 1.0]
DIFFICULTIES = (np.arange(50) + 0.5) / 50


def population(
    num_prompts: int,
    seed: int,
    skills: tuple[float, ...] = (0.4, 0.6, 0.9),
    signal: float = 1.0,
) -> Paths:
    """Prompts with Bayes-optimal beliefs."""
    rng = np.random.default_rng(seed)
    right = 1.0 / (1.0 + np.exp(-6.0 * (np.array(skills) - DIFFICULTIES[:, None])))
    cell = rng.integers(0, len(DIFFICULTIES), num_prompts)
    good = (rng.random((num_prompts, len(skills))) < right[cell]).astype(float)
    seen = rng.normal(size=good.shape) + signal * (2.0 * good - 1.0)
    if_good = np.exp(-((seen - signal) ** 2) / 2)[:, None, :] * right
    if_bad = np.exp(-((seen + signal) ** 2) / 2)[:, None, :] * (1.0 - right)
    beliefs = np.empty((num_prompts, len(skills) + 1, len(skills)))
    chance = np.full((num_prompts, len(DIFFICULTIES)), 1.0 / len(DIFFICULTIES))
    for k in range(len(skills) + 1):
        if k:
            chance = chance * (if_good + if_bad)[:, :, k - 1]
            chance /= chance.sum(axis=1, keepdims=True)
        ahead = chance @ right
        scored = (chance[:, :, None] * if_good / (if_good + if_bad)).sum(axis=1)
        beliefs[:, k] = np.where(np.arange(len(skills)) < k, scored, ahead)
    return Paths(beliefs.clip(0.0, 1.0), good)


POPULATIONS = {
    "even": ((0.4, 0.6, 0.9), 1.0),
    "weak signals": ((0.5, 0.55, 0.9), 0.6),
    "complements": ((0.5, 0.5, 0.5), 1.2),
}


def test_the_rule_goes_deeper_as_lambda_rises_and_a_solver_of_the_prefix_does_not() -> None:
    paths, costs = population(600, seed=7), COSTS
    depths = []
    for lam in (0.1, 1.0, 5.0, 25.0):
        policy = fit(paths, costs, lam)
        depths.append(float(policy.run(paths).stages_run.sum(axis=1).mean()))
        prefix = replace(policy, costs=tuple(row[:1] for row in policy.costs[:1]), tables=())
        assert prefix.decide(1, [0.01]).stop  # sees no stage to go on to, whatever the price
    assert depths == sorted(depths)
    assert depths[0] < 1.1
    assert depths[-1] > 1.5


@pytest.mark.parametrize("name", POPULATIONS)
def test_from_300_prompts_the_rule_does_not_lose_out_of_sample(name: str) -> None:
    skills, signal = POPULATIONS[name]
    test = population(8_000, 100, skills, signal)
    gains = []
    for price in (1.0, 4.0, 15.0):
        rivals = [myopic(test, COSTS, price), open_loop(COSTS, price).run(test)]
        rival = min(_true_value(test, outcome, price) for outcome in rivals)
        found = [
            _true_value(test, fit(fitted, COSTS, price=price).run(test), price)
            for fitted in (population(300, seed, skills, signal) for seed in range(6))
        ]
        assert np.mean(found) < 1.01 * rival
        gains.append(1.0 - np.mean(found) / rival)
    assert np.mean(gains) > 0.005


def _true_value(paths: Paths, outcome: Outcome, price: float) -> float:
    return paths.mean(outcome.cost + price * (1.0 - outcome.good))


def test_the_regression_solver_agrees_out_of_sample() -> None:
    fitted, test = population(2_000, 8), population(8_000, 9)
    for price in (1.0, 4.0, 15.0):
        by_bins = _true_value(test, fit(fitted, COSTS, price=price).run(test), price)
        rule = fit_by_regression(fitted, COSTS, price)
        by_regression = _true_value(test, rule.run(test, COSTS), price)
        assert by_bins == pytest.approx(by_regression, rel=0.03)
        blind = _true_value(test, open_loop(COSTS, price).run(test), price)
        assert by_regression < 1.01 * blind


def test_cross_fitting_promises_less_than_tables_that_saw_the_prompt() -> None:
    """The least of several noisy estimates is too good: out of sample it costs more than said."""
    test, excess = population(8_000, 31), {True: 0.0, False: 0.0}
    for cross_fit, seed in itertools.product(excess, range(8)):
        fitted = population(100, seed)
        policy = fit(fitted, COSTS, price=8.0, shrink=False, cross_fit=cross_fit)
        promised = policy.price - policy.decide(0, fitted.beliefs[0, 0]).advantage
        excess[cross_fit] += _true_value(test, policy.run(test), 8.0) - promised
    assert excess[True] < excess[False] - 0.3
    assert excess[False] > 0.2


def test_shrinkage_helps_from_few_prompts() -> None:
    test = population(8_000, 10)
    values = {True: 0.0, False: 0.0}
    for shrink, seed in itertools.product(values, range(12)):
        policy = fit(population(60, seed), COSTS, price=1.0, shrink=shrink, cross_fit=shrink)
        values[shrink] += _true_value(test, policy.run(test), 1.0)
    assert values[True] < values[False]


# The policy's face.


def test_run_equals_deciding_step_by_step() -> None:
    fitted, paths = population(1_200, 11), population(80, 12)
    rng = np.random.default_rng(13)
    own = np.triu(rng.uniform(0.0, 0.5, (len(paths), 3, 3)))
    for kappa in (-1.0, 0.0, 1.0):
        policy = fit(fitted, COSTS, 3.0, kappa)
        for costs in (None, own):
            outcome = policy.run(paths, costs)
            for row in range(len(paths)):
                matrix = policy.costs if costs is None else costs[row].tolist()
                seen, cost, decision = (
                    [],
                    0.0,
                    policy.decide(0, paths.beliefs[row, 0], costs=matrix),
                )
                while not decision.stop:
                    cost += matrix[seen[-1] if seen else 0][decision.stage - 1]
                    seen.append(decision.stage)
                    beliefs = paths.beliefs[row, seen[-1]]
                    decision = policy.decide(seen[-1], beliefs, seen=seen, costs=matrix)
                assert outcome.stage_returned[row] == decision.stage
                assert (np.flatnonzero(outcome.stages_run[row]) + 1).tolist() == seen
                assert outcome.cost[row] == cost
                assert outcome.good[row] == paths.good[row, decision.stage - 1]


def test_a_batch_decides_as_each_prompt_alone() -> None:
    policy, paths = fit(population(400, 14), COSTS, 2.0), population(50, 15)
    for state in range(8):
        seen = [stage for stage in (1, 2, 3) if state >> (stage - 1) & 1]
        last = max(seen, default=0)
        verdict = policy.decide_batch(state, paths.beliefs[:, last])
        for row in range(len(paths)):
            alone = policy.decide(last, paths.beliefs[row, last], seen=seen)
            assert verdict.going[row] == (not alone.stop)
            expected = verdict.best[row] if alone.stop else verdict.stage[row]
            assert alone.stage == expected
            assert verdict.advantage[row] == alone.advantage


def test_recall_returns_the_answer_believed_in_most_of_those_seen() -> None:
    policy = open_loop(COSTS, price=1.0)
    assert policy.decide(3, [0.2, 0.9, 0.4]) == (True, 2, 0.0, 0.0)
    assert policy.decide(3, [0.2, 0.9, 0.4], seen=[1, 3]).stage == 3
    assert policy.decide(2, [0.95, 0.9, 0.96]).stage == 1
    paths = population(300, 16)
    outcome = fit(paths, COSTS, 4.0).run(paths)
    rows = np.arange(len(paths))
    last = 3 - outcome.stages_run[:, ::-1].argmax(axis=1)
    believed = np.where(outcome.stages_run, paths.beliefs[rows, last], -1.0)
    assert (believed.argmax(axis=1) + 1 == outcome.stage_returned).all()
    assert (outcome.stage_returned < last).any()


def test_nothing_stops_before_a_stage_was_run() -> None:
    assert open_loop(COSTS, price=0.0).decide(0, [0.5, 0.9, 1.0]) == (False, 1, -0.05, 0.0)
    assert not fit(population(100, 17), COSTS, 0.0, kappa=50.0).decide(0, [0.0, 0.0, 0.0]).stop


def test_kappa_moves_depth_toward_thrift_or_caution() -> None:
    paths = population(300, 18)
    spent = [paths.mean(fit(paths, COSTS, 2.0, kappa).run(paths).cost) for kappa in (4, 0, -4)]
    assert spent == sorted(spent)
    assert spent[0] < spent[1] < spent[2]


def test_without_data_it_is_the_open_loop() -> None:
    none, paths = population(0, 0), population(50, 19)
    policy = fit(none, COSTS, price=3.0)
    assert policy == open_loop(COSTS, 3.0)
    expected = open_loop(COSTS, 3.0).run(paths)
    assert (policy.run(paths).stage_returned == expected.stage_returned).all()
    assert fit(paths.take(slice(0, 1)), COSTS, price=3.0).tables == ()


def test_the_unit_of_cost_does_not_matter() -> None:
    paths = population(500, 20)
    once, eightfold = fit(paths, COSTS, 2.0), fit(paths, [8 * cost for cost in COSTS], 2.0)
    assert eightfold.price == 8 * once.price
    assert (once.run(paths).stages_run == eightfold.run(paths).stages_run).all()


def test_a_weight_counts_as_so_many_prompts() -> None:
    paths = population(60, 21)
    counts = np.random.default_rng(22).integers(1, 4, len(paths))
    weighted = Paths(paths.beliefs, paths.good, counts)
    repeated = paths.take(np.repeat(np.arange(len(paths)), counts))
    plain = {"price": 3.0, "bins": 1, "shrink": False, "cross_fit": False}
    first, second = fit(weighted, COSTS, **plain), fit(repeated, COSTS, **plain)
    unweighted = fit(paths, COSTS, **plain)
    for table, other, wrong in zip(first.tables, second.tables, unweighted.tables, strict=True):
        np.testing.assert_allclose(table.residual, other.residual, atol=1e-12)
        if table.residual[0]:
            assert not np.allclose(table.residual, wrong.residual, atol=1e-12)


def test_fitting_is_deterministic() -> None:
    paths = population(400, 23)
    assert fit(paths, COSTS, 2.0) == fit(paths, COSTS, 2.0)


def test_a_decision_costs_less_than_a_tenth_of_a_millisecond() -> None:
    """Some 4 microseconds where nothing else runs."""
    policy = fit(population(300, 24, (0.2, 0.4, 0.6, 0.8, 0.9)), [0.1, 0.2, 0.3, 0.5, 1.0])
    beliefs = [0.3, 0.5, 0.6, 0.7, 0.8]
    assert fastest(lambda: policy.decide(1, beliefs), enough=1e-4, calls=50) < 1e-4


def test_json_gives_back_the_same_policy_and_refuses_what_it_cannot_read() -> None:
    policy = fit(population(300, 25), COSTS, 2.0, 0.5)
    plain = json.loads(json.dumps(policy.to_plain(), allow_nan=False))
    assert Policy.from_plain(plain) == policy
    with pytest.raises(FormatError, match="format_version 2"):
        Policy.from_plain({**plain, "format_version": 2})
    missing = {key: value for key, value in plain.items() if key != "price"}
    for damaged in (
        missing,
        [],
        {**plain, "kind": "poem"},
        {**plain, "format_version": "1"},
        {**plain, "tables": plain["tables"][:-1]},
        {**plain, "costs": [[0.0]]},
    ):
        with pytest.raises(DataError):
            Policy.from_plain(damaged)
    cell = json.loads(json.dumps(plain))
    cell["tables"][1]["residual"][0][0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        Policy.from_plain(cell)


def test_a_skipped_stage_tells_nothing_where_beliefs_say_what_was_seen() -> None:
    """Stage 1 tells whether stage 2 is right. Skipping it must not let the rule know for free."""
    rng = np.random.default_rng(30)
    tells = rng.random(400) < 0.5
    good = np.column_stack([np.zeros(400), tells, np.ones(400)])
    base, known = [0.0, 0.5, 1.0], np.column_stack([np.zeros(400), tells, np.ones(400)])
    by_state = np.broadcast_to(base, (400, 8, 3)).copy()
    by_state[:, 1::2] = known[:, None]
    by_stage = by_state[:, [0, 1, 3, 7]]
    costs = [0.3, 0.1, 0.5]
    leaky, honest = (
        fit(Paths(beliefs, good), costs, price=2.0) for beliefs in (by_stage, by_state)
    )
    leaking = leaky.run(Paths(by_stage, good))
    assert leaking.stages_run[
        :, 1
    ].all()  # to stage 2 first, and on where stage 1 would have said so
    assert leaking.good.all()
    found = honest.run(Paths(by_state, good))
    assert found.stages_run.tolist() == [[False, False, True]] * 400
    np.testing.assert_allclose(found.cost, 0.5)


# The price.


def test_the_rate_of_exchange_is_what_the_extremes_differ_by() -> None:
    good = np.repeat([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]], [120, 280], axis=0)
    paths = Paths(np.full((400, 4, 3), 0.5), good)
    exchange = Exchange.measure(paths, [0.1, 0.4, 1.0])
    assert exchange.measured
    assert exchange.price == pytest.approx(0.9 / 0.3)
    assert exchange.failures_avoided == pytest.approx(0.3)
    assert 0.25 < exchange.lower_bound < 0.28
    policy = fit(paths, [0.1, 0.4, 1.0], lam=2.0)
    assert policy.price == pytest.approx(2.0 * exchange.price)
    assert policy.exchange == exchange


def test_where_the_extremes_cannot_be_told_apart_the_price_is_the_largest_cost() -> None:
    good = np.tile([[1.0, 0.0], [0.0, 1.0]], (50, 1))
    paths = Paths(np.full((100, 3, 2), 0.5), good)
    exchange = Exchange.measure(paths, [0.1, 0.9])
    assert not exchange.measured
    assert exchange.price == pytest.approx(0.9)
    sure = Paths(np.full((2, 3, 2), 0.5), [[0.0, 1.0]] * 2)
    assert not Exchange.measure(sure, [0.1, 0.9]).measured
    free = Exchange.measure(Paths(np.full((400, 3, 2), 0.5), [[0.0, 1.0]] * 400), [0.5, 0.5])
    assert not free.measured
    assert free.price == pytest.approx(0.5)


# What a user can get wrong.


def test_wrong_input_is_a_typed_error() -> None:
    paths = population(20, 26)
    with pytest.raises(ConfigError, match="lam"):
        fit(paths, COSTS, -1.0)
    with pytest.raises(ConfigError, match="kappa"):
        fit(paths, COSTS, kappa=float("nan"))
    with pytest.raises(ConfigError, match="price"):
        fit(paths, COSTS, price=-2.0)
    with pytest.raises(ShapeError, match="costs"):
        fit(paths, [0.1, 1.0])
    with pytest.raises(DataError, match="costs"):
        fit(paths, [0.1, -0.4, 1.0])
    with pytest.raises(CascadeError, match="calibration paths"):
        fit(population(0, 0), COSTS)
    with pytest.raises(DataError, match=r"beliefs\[0, 0, 0\]"):
        Paths(np.full((1, 3, 2), np.nan), [[0, 1]])
    with pytest.raises(ShapeError, match="beliefs"):
        Paths(np.zeros((1, 2, 2)), [[0, 1]])
    with pytest.raises(DataError, match="weights"):
        Paths(np.zeros((1, 3, 2)), [[0, 1]], [0.0])


def test_a_decision_on_wrong_input_is_a_typed_error() -> None:
    policy = open_loop(COSTS, 1.0)
    with pytest.raises(CascadeError, match="stage"):
        policy.decide(4, [0.1, 0.2, 0.3])
    with pytest.raises(ShapeError):
        policy.decide(1, [0.1, 0.2])
    with pytest.raises(DataError):
        policy.decide(1, [0.1, float("nan"), 0.3])
    with pytest.raises(CascadeError, match="seen"):
        policy.decide(2, [0.1, 0.2, 0.3], seen=[1])
    with pytest.raises(CascadeError, match="seen"):
        policy.decide(2, [0.1, 0.2, 0.3], seen=[0, 2])
    with pytest.raises(DataError, match="cost"):
        policy.decide(1, [0.1, 0.2, 0.3], costs=[[float("nan")] * 3] * 3)
    with pytest.raises(ShapeError, match="beliefs"):
        policy.decide_batch(1, np.zeros((4, 2)))


def test_costs_of_a_stage_may_be_given_as_a_vector_a_matrix_or_by_prompt() -> None:
    matrix = incremental_costs([0.1, 0.4], 2, 2)
    np.testing.assert_array_equal(matrix, [[[0.1, 0.4], [0.0, 0.4]]] * 2)
    np.testing.assert_array_equal(incremental_costs(matrix, 2, 2), matrix)
    np.testing.assert_array_equal(incremental_costs([[0.1, 0.4], [9.0, 0.3]], 1, 2)[0, 1], [0, 0.3])
