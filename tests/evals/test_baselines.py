"""The rules that a cascade is held against, by hand and by what each may never do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stepwell.cascade.rule.paths import FloatArray, Paths
from stepwell.errors import CascadeError, ShapeError
from stepwell.evals.baselines import (
    ThresholdRule,
    always,
    every_stage,
    myopic,
    oracle,
    path_costs,
    prompt_router,
    tune_thresholds,
)
from stepwell.evals.frontier import hull

COSTS = [0.1, 0.4, 1.0]


def population(num_prompts: int, seed: int) -> tuple[Paths, FloatArray]:
    """Random paths, and confidences that know something of the labels."""
    rng = np.random.default_rng(seed)
    good = (rng.random((num_prompts, 3)) < [0.4, 0.6, 0.9]).astype(float)
    confidence = good + rng.normal(scale=0.7, size=good.shape)
    beliefs = rng.random((num_prompts, 4, 3))
    return Paths(beliefs, good, rng.uniform(0.5, 2.0, num_prompts)), confidence


def labelled(good: list[list[float]]) -> Paths:
    return Paths(np.full((len(good), 4, 3), 0.5), good)


def test_fixed_stages_pay_and_return_one_stage() -> None:
    paths = labelled([[1, 0, 1], [0, 1, 1]])
    matrix = [[0.1, 0.4, 1.0], [0.0, 0.3, 0.8], [0.0, 0.0, 0.6]]
    outcome = always(paths, matrix, 2)
    assert outcome.cost.tolist() == [0.4, 0.4]
    assert outcome.good.tolist() == [0.0, 1.0]
    assert outcome.stages_run.tolist() == [[False, True, False]] * 2
    through = every_stage(paths, matrix)
    np.testing.assert_allclose(through.cost, 0.1 + 0.3 + 0.6)
    assert through.stages_run.all()
    assert through.stage_returned.tolist() == [3, 3]
    np.testing.assert_allclose(path_costs(paths, matrix)[0], [0.1, 0.4, 1.0])
    with pytest.raises(CascadeError, match="stage is 4"):
        always(paths, COSTS, 4)


def test_oracles_by_hand() -> None:
    paths = labelled([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 1, 0]])
    path = oracle(paths, COSTS, pays="path")
    assert path.stage_returned.tolist() == [1, 2, 3, 1, 2]
    np.testing.assert_allclose(path.cost, [0.1, 0.5, 1.5, 0.1, 0.5])
    assert path.stages_run[2].tolist() == [True, True, True]
    free = oracle(paths, COSTS, pays="stage")
    assert free.stage_returned.tolist() == [1, 2, 3, 1, 2]
    np.testing.assert_allclose(free.cost, [0.1, 0.4, 1.0, 0.1, 0.4])
    thrifty = oracle(paths, COSTS, 1.0, pays="path")
    assert thrifty.stage_returned.tolist() == [1, 2, 1, 1, 2]


def test_no_rule_beats_the_free_oracle_and_the_path_oracle_does_not_either() -> None:
    paths, confidence = population(300, 0)
    rules = [always(paths, COSTS, stage) for stage in (1, 2, 3)]
    rules += [
        rule.run(confidence, paths, COSTS) for rule in tune_thresholds(confidence, paths, COSTS)
    ]
    rules += [
        myopic(paths, COSTS, 2.0),
        prompt_router(paths, COSTS, 2.0),
        every_stage(paths, COSTS),
    ]
    for price in (0.2, 1.0, 5.0):
        free = oracle(paths, COSTS, price, pays="stage")
        path = oracle(paths, COSTS, price, pays="path")
        least = free.cost + price * (1 - free.good)
        assert (least <= path.cost + price * (1 - path.good) + 1e-12).all()
        for outcome in rules:
            assert (least <= outcome.cost + price * (1 - outcome.good) + 1e-12).all()
    free, path = oracle(paths, COSTS, pays="stage"), oracle(paths, COSTS, pays="path")
    np.testing.assert_array_equal(free.good, paths.good.max(axis=1))
    np.testing.assert_array_equal(free.good, path.good)
    assert (free.cost <= path.cost).all()
    assert paths.mean(free.cost) < paths.mean(path.cost)


def test_the_myopic_rule_looks_one_stage_ahead_and_no_further() -> None:
    beliefs = np.zeros((2, 4, 3))
    beliefs[:, 1] = [0.5, 0.5, 1.0]  # the next stage is worth nothing, the one after all
    beliefs[:, 2:] = beliefs[:, 1:2]
    beliefs[1, 1, 1] = 0.9
    outcome = myopic(Paths(beliefs, np.ones((2, 3))), COSTS, 2.0)
    assert outcome.stages_run.tolist() == [[True, False, False], [True, True, False]]
    assert outcome.stage_returned.tolist() == [
        1,
        1,
    ]  # recall: after stage 2 both are believed equal


def test_the_prompt_router_decides_by_the_prompt_alone() -> None:
    paths, _ = population(200, 1)
    outcome = prompt_router(paths, COSTS, 2.0)
    believed = np.array(COSTS) + 2.0 * (1 - paths.beliefs[:, 0])
    np.testing.assert_array_equal(outcome.stage_returned, believed.argmin(axis=1) + 1)
    assert (outcome.stages_run.sum(axis=1) == 1).all()
    shuffled = paths.beliefs.copy()
    shuffled[:, 1:] = shuffled[::-1, 1:]
    again = prompt_router(Paths(shuffled, paths.good), COSTS, 2.0)
    np.testing.assert_array_equal(again.stage_returned, outcome.stage_returned)


def test_a_threshold_rule_by_hand() -> None:
    paths = labelled([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    confidence = np.array([[0.9, 0.0, 0.0], [0.2, 0.8, 0.0], [0.2, 0.3, 0.1]])
    outcome = ThresholdRule((1, 2, 3), (0.5, 0.5)).run(confidence, paths, COSTS)
    assert outcome.stage_returned.tolist() == [1, 2, 3]
    np.testing.assert_allclose(outcome.cost, [0.1, 0.5, 1.5])
    skipping = ThresholdRule((1, 3), (0.5,)).run(confidence, paths, COSTS)
    assert skipping.stage_returned.tolist() == [1, 3, 3]
    np.testing.assert_allclose(skipping.cost, [0.1, 1.1, 1.1])
    assert skipping.stages_run[1].tolist() == [True, False, True]
    with pytest.raises(ShapeError, match="confidence"):
        ThresholdRule((1,), ()).run(confidence[:2], paths, COSTS)


def test_tuned_thresholds_are_the_hull_of_the_whole_grid() -> None:
    """Against a loop over every subset of stages and every vector of quantiles."""
    paths, confidence = population(120, 2)
    rules = tune_thresholds(confidence, paths, COSTS, levels=4)
    grids = np.quantile(confidence, np.arange(1, 5) / 5, axis=0)
    points = []
    for size in (1, 2, 3):
        for stages in itertools.combinations(range(3), size):
            for chosen in itertools.product(range(4), repeat=size - 1):
                cost = good = 0.0
                for row, weight in enumerate(paths.weights):
                    for place, stage in enumerate(stages):
                        cost += weight * COSTS[stage]
                        last = place == size - 1
                        if last or confidence[row, stage] >= grids[chosen[place], stage]:
                            good += weight * paths.good[row, stage]
                            break
                points.append((cost / paths.weights.sum(), good / paths.weights.sum()))
    expected = hull(*np.array(points).T)
    outcomes = [rule.run(confidence, paths, COSTS) for rule in rules]
    np.testing.assert_allclose([paths.mean(out.cost) for out in outcomes], expected.cost)
    np.testing.assert_allclose([paths.mean(out.good) for out in outcomes], expected.quality)
    assert len(rules) > 3
    assert {len(rule.stages) for rule in rules} >= {1, 2}
    fixed = hull(np.array(COSTS), np.array([paths.mean(column) for column in paths.good.T]))
    assert expected.area(0.1, 1.0) > fixed.area(0.1, 1.0) + 0.01
