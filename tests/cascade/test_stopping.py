"""The stopping rule against enumeration of every plan, its traps, and its behaviour out of sample.

Brute force here shares nothing with the solver: it lists the cost of every plan of a tree of states,
and every chain of stages for the fixed plans.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from stepwell.cascade.exchange import Exchange
from stepwell.cascade.paths import FloatArray, Outcome, Paths, incremental_costs
from stepwell.cascade.regression import fit_by_regression
from stepwell.cascade.stopping import Policy, fit, open_loop
from stepwell.errors import CascadeError, ConfigError, DataError, FormatError, ShapeError
from stepwell.evals.baselines import myopic

StopLoss = Callable[[int, tuple[int, ...], FloatArray], float]


# Random trees: at each stage prompts that could be told apart stay apart, and some part anew.


class Tree:
    """A small random problem in which what was seen is a node that prompts share."""

    def __init__(self, rng: np.random.Generator, num_stages: int, num_prompts: int) -> None:
        self.num_stages = num_stages
        self.price = float(np.exp(rng.uniform(-1, 2.5)))
        self.node = np.zeros((num_prompts, num_stages + 1), dtype=int)
        for k in range(1, num_stages + 1):
            parted = 2 * self.node[:, k - 1] + rng.integers(0, 2, num_prompts)
            self.node[:, k] = np.unique(parted, return_inverse=True)[1]
        beliefs = np.empty((num_prompts, num_stages + 1, num_stages))
        for k in range(num_stages + 1):
            beliefs[:, k] = rng.random((num_prompts, num_stages))[self.node[:, k]]
        weights = rng.uniform(0.5, 2.0, num_prompts)
        self.paths = Paths(beliefs, np.zeros((num_prompts, num_stages)), weights)
        self.share = weights / weights.sum()
        self.costs = np.triu(rng.uniform(0.0, 1.0, (num_stages, num_stages)))

    def stop_loss(self, k: int, seen: tuple[int, ...], beliefs: FloatArray) -> float:
        return self.price * (1.0 - max(beliefs[stage - 1] for stage in seen))

    def groups(self, rows: FloatArray, k: int) -> list[FloatArray]:
        return [rows[self.node[rows, k] == node] for node in np.unique(self.node[rows, k])]

    def plan_values(
        self, rows: FloatArray, seen: tuple[int, ...], stop_loss: StopLoss | None = None
    ) -> FloatArray:
        """The value of every plan for prompts in one node after running `seen`, one number a plan."""
        stop_loss = stop_loss or self.stop_loss
        k, weight = max(seen, default=0), self.share[rows].sum()
        values = []
        if seen:
            values.append(np.array([weight * stop_loss(k, seen, self.paths.beliefs[rows[0], k])]))
        for stage in range(k + 1, self.num_stages + 1):
            total = np.array([weight * self.costs[k, stage - 1]])
            for group in self.groups(rows, stage):
                below = self.plan_values(group, (*seen, stage), stop_loss)
                total = np.add.outer(total, below).ravel()
            values.append(total)
        return np.concatenate(values)

    def every_plan(self) -> FloatArray:
        return self.plan_values(np.arange(len(self.paths)), ())

    def fixed_plan_values(self, row: int, seen: tuple[int, ...]) -> list[float]:
        """For one prompt: what the best fixed chain with each next stage seems to cost now."""
        k = max(seen, default=0)
        beliefs, best = self.paths.beliefs[row, k], {}
        later = range(k + 1, self.num_stages + 1)
        chains = itertools.chain.from_iterable(
            itertools.combinations(later, size) for size in range(1, len(later) + 1)
        )
        for chain in chains:
            paid = sum(self.costs[a, b - 1] for a, b in itertools.pairwise((k, *chain)))
            value = paid + self.stop_loss(k, chain[-1:], beliefs)
            best[chain[0]] = min(value, best.get(chain[0], np.inf))
        return [best[stage] for stage in later]

    def fit(self, price: float | None = None) -> Policy:
        """The solver, with a bin for every node and nothing that smooths."""
        chosen = self.price if price is None else price
        return fit(
            self.paths,
            self.costs,
            price=chosen,
            bins=len(self.paths),
            shrink=False,
            cross_fit=False,
        )

    def value(self, outcome: Outcome, price: float | None = None) -> float:
        """Mean cost and believed failures of an outcome, by the beliefs held when it stopped."""
        last = np.array([np.flatnonzero(run)[-1] + 1 for run in outcome.stages_run])
        kept = self.paths.beliefs[np.arange(len(last)), last, outcome.stage_returned - 1]
        chosen = self.price if price is None else price
        return float(self.share @ (outcome.cost + chosen * (1.0 - kept)))


def _subsets(num_stages: int) -> Iterator[tuple[int, ...]]:
    for size in range(num_stages + 1):
        yield from itertools.combinations(range(1, num_stages + 1), size)


def trees(count: int, seed: int) -> Iterator[Tree]:
    """Random trees of 2 to 5 stages, as large as their plans can be listed."""
    rng = np.random.default_rng(seed)
    largest = {2: 8, 3: 5, 4: 4, 5: 3}
    for _ in range(count):
        num_stages = int(rng.integers(2, 6))
        yield Tree(rng, num_stages, int(rng.integers(2, largest[num_stages] + 1)))


def compare_with_every_plan(count: int, seed: int) -> None:
    """Assert that the solver is optimal on `count` trees, and that rules that know less are not."""
    myopic_losses = open_losses = skipped = recalled = 0
    for tree in trees(count, seed):
        best = tree.every_plan().min()
        outcome = tree.fit().run(tree.paths, tree.costs)
        assert tree.value(outcome) == pytest.approx(best, abs=1e-9)
        blind = open_loop(tree.costs, tree.price).run(tree.paths)
        short = myopic(tree.paths, tree.costs, tree.price)
        assert tree.value(outcome) <= tree.value(blind) + 1e-9
        open_losses += tree.value(blind) > best + 1e-9
        myopic_losses += tree.value(short) > best + 1e-9
        last = tree.num_stages - 1 - outcome.stages_run[:, ::-1].argmax(axis=1)
        skipped += bool((outcome.stages_run.sum(axis=1) <= last).any())
        recalled += bool((outcome.stage_returned <= last).any())
    assert myopic_losses > count / 4
    assert open_losses > count / 10
    assert skipped > count / 4
    assert recalled > count / 20


def test_fit_equals_enumeration_of_every_plan() -> None:
    compare_with_every_plan(count=200, seed=0)


@pytest.mark.slow
def test_fit_equals_enumeration_of_every_plan_on_a_thousand_trees() -> None:
    compare_with_every_plan(count=1_000, seed=1)


def test_fit_equals_enumeration_where_histories_merge_in_a_bin() -> None:
    """Two states a stage, Markov: all 2^K histories, weighted by their probabilities."""
    rng = np.random.default_rng(2)
    for _ in range(60):
        num_stages = int(rng.integers(2, 4))
        histories = np.array(list(itertools.product((0, 1), repeat=num_stages)))
        moves = rng.uniform(0.1, 0.9, (num_stages, 2))
        weights = np.ones(len(histories))
        previous = np.zeros(len(histories), dtype=int)
        for k in range(num_stages):
            up = moves[k, previous]
            weights *= np.where(histories[:, k] == 1, up, 1.0 - up)
            previous = histories[:, k]
        tree = Tree(rng, num_stages, len(histories))
        node = np.column_stack([np.zeros(len(histories), dtype=int), histories])
        beliefs = rng.random((num_stages + 1, 2, num_stages))[np.arange(num_stages + 1), node]
        tree.paths = Paths(beliefs, np.zeros(histories.shape), weights)
        tree.share, tree.node = weights / weights.sum(), node
        found = tree.value(tree.fit().run(tree.paths, tree.costs))
        assert found == pytest.approx(_best_markov_plan(tree), abs=1e-9)


def _best_markov_plan(tree: Tree) -> float:
    """The least value of all maps from (stages seen, node) to an action."""
    states = [
        (seen, node)
        for seen in _subsets(tree.num_stages)
        if max(seen, default=0) < tree.num_stages
        for node in ((0, 1) if seen else (0,))
    ]
    actions = [
        ([0] if seen else []) + list(range(max(seen, default=0) + 1, tree.num_stages + 1))
        for seen, _ in states
    ]
    best = np.inf
    for chosen in itertools.product(*actions):
        plan = dict(zip(states, chosen, strict=True))
        total = 0.0
        for row, share in enumerate(tree.share):
            seen: tuple[int, ...] = ()
            while action := plan.get((seen, tree.node[row, max(seen, default=0)]), 0):
                total += share * tree.costs[max(seen, default=0), action - 1]
                seen = (*seen, action)
            last = max(seen)
            total += share * tree.stop_loss(last, seen, tree.paths.beliefs[row, last])
        best = min(best, total)
    return best


def test_fixed_plans_equal_enumeration_of_every_chain() -> None:
    for tree in trees(60, seed=3):
        policy = open_loop(tree.costs, tree.price)
        for seen in _subsets(tree.num_stages):
            last = max(seen, default=0)
            if last == tree.num_stages:
                continue
            beliefs = tree.paths.beliefs[0, last]
            stop = tree.stop_loss(last, seen, beliefs) if seen else tree.price
            decision = policy.decide(last, beliefs, seen=seen)
            best = min(tree.fixed_plan_values(0, seen))
            assert decision.advantage == pytest.approx(stop - best, abs=1e-12)


def test_cost_and_quality_rise_with_the_price_in_the_model() -> None:
    prices = np.geomspace(0.05, 50.0, 12)
    risen = broken = 0
    for tree in trees(40, seed=4):
        costs, failures, blind = [], [], []
        for price in map(float, prices):
            outcome = tree.fit(price).run(tree.paths, tree.costs)
            costs.append(float(tree.share @ outcome.cost))
            failures.append((tree.value(outcome, price) - costs[-1]) / price)
            without = open_loop(tree.costs, price).run(tree.paths)
            blind.append(float(tree.share @ without.cost))
        assert (np.diff(costs) >= -1e-9).all()
        assert (np.diff(failures) <= 1e-9).all()
        risen += costs[-1] > costs[0]
        broken += (np.diff(blind) < -1e-9).any()
    assert risen > 35
    assert broken > 0  # a rule that is not optimal may spend less at a higher price


# Traps found elsewhere, each a negative control.


def _value_of_trap(tree: Tree, stop_loss: StopLoss) -> float:
    """The true value of the plan that is best by a wrong stopping loss."""
    rows = np.arange(len(tree.paths))
    wrong, right = tree.plan_values(rows, (), stop_loss), tree.plan_values(rows, ())
    return float(right[wrong.argmin()])


def test_a_product_of_beliefs_as_quality_is_not_optimal() -> None:
    lost = 0
    for tree in trees(60, seed=5):

        def products(
            k: int, seen: tuple[int, ...], beliefs: FloatArray, tree: Tree = tree
        ) -> float:
            return tree.price * (1.0 - float(np.prod([beliefs[stage - 1] for stage in seen])))

        found = tree.value(tree.fit().run(tree.paths, tree.costs))
        lost += _value_of_trap(tree, products) > found + 1e-9
    assert lost > 20


def test_no_terminal_loss_at_the_last_stage_is_not_optimal() -> None:
    lost = 0
    for tree in trees(60, seed=6):

        def unending(
            k: int, seen: tuple[int, ...], beliefs: FloatArray, tree: Tree = tree
        ) -> float:
            return 0.0 if k == tree.num_stages else tree.stop_loss(k, seen, beliefs)

        found = tree.value(tree.fit().run(tree.paths, tree.costs))
        lost += _value_of_trap(tree, unending) > found + 1e-9
    assert lost > 20


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


@pytest.mark.parametrize("name", POPULATIONS)
def test_from_300_prompts_the_rule_does_not_lose_out_of_sample(name: str) -> None:
    skills, signal = POPULATIONS[name]
    test = population(8_000, 100, skills, signal)
    gains = []
    for price in (1.0, 4.0, 15.0):
        rivals = [myopic(test, COSTS, price), open_loop(COSTS, price).run(test)]
        rival = min(_true_value(test, outcome, price) for outcome in rivals)
        for seed in range(4):
            policy = fit(population(300, seed, skills, signal), COSTS, price=price)
            found = _true_value(test, policy.run(test), price)
            assert found < 1.01 * rival
            gains.append(1.0 - found / rival)
    assert np.mean(gains) > 0.01


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


def test_a_decision_costs_less_than_a_twentieth_of_a_millisecond() -> None:
    policy = fit(population(300, 24, (0.2, 0.4, 0.6, 0.8, 0.9)), [0.1, 0.2, 0.3, 0.5, 1.0])
    beliefs = [0.3, 0.5, 0.6, 0.7, 0.8]
    fastest = np.inf
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(50):
            policy.decide(1, beliefs)
        fastest = min(fastest, (time.perf_counter() - start) / 50)
    assert fastest < 50e-6


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
