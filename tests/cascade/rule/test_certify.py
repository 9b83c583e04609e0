"""Certificates hold as often as they say, and ways to choose that look alike do not."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from stepwell.cascade.rule.certify import (
    Certificate,
    Step,
    binomial_cdf,
    certify,
    excess_failures,
    order_path,
    plan,
)
from stepwell.cascade.rule.paths import Paths
from stepwell.cascade.rule.stopping import Policy, fit, open_loop
from stepwell.cascade.splits import UsedPrompts
from stepwell.errors import CascadeError, ConfigError, DataError, FormatError, ShapeError

COSTS = [0.2, 1.0]
RESAMPLES = 1_000
LIMIT = 2  # the place of the rule at risk epsilon
MOST_VIOLATIONS = 72  # of 1,000 at delta = .05: 50 and 3.2 standard deviations


def ladder(num_prompts: int, seed: int) -> Paths:
    """Two stages and beliefs in their answers; the large one is right nine times in ten.

    Before any ran both are believed in alike, so that every rule begins with the small one.
    """
    rng = np.random.default_rng(seed)
    sure = rng.beta(2.0, 1.0, size=num_prompts)
    good = np.column_stack([rng.random(num_prompts) < sure, rng.random(num_prompts) < 0.9])
    beliefs = np.empty((num_prompts, 3, 2))
    beliefs[:, 0], beliefs[:, 1:, 0], beliefs[:, 1:, 1] = 0.9, sure[:, None], 0.9
    return Paths(beliefs, good.astype(float))


def policies(prices: list[float]) -> list[Policy]:
    """Real rules, safest first; each returns the small answer where that is believed in enough."""
    return [replace(open_loop(COSTS, price), lam=price) for price in sorted(prices, reverse=True)]


def names(count: int, start: int = 0) -> list[str]:
    return [f"prompt {number}" for number in range(start, start + count)]


def risk(policy: Policy, paths: Paths) -> float:
    """The share of excess failures in a finite population: its exact risk."""
    return float(excess_failures(paths, policy.run(paths)).mean())


# The binomial.


@pytest.mark.parametrize(("trials", "chance"), [(1, 0.5), (7, 0.02), (60, 0.02), (200, 0.3)])
def test_the_tail_is_the_sum_of_exact_terms(trials: int, chance: float) -> None:
    p = Fraction(chance)
    exact = Fraction(0)
    for successes in range(trials + 1):
        exact += comb(trials, successes) * p**successes * (1 - p) ** (trials - successes)
        assert binomial_cdf(successes, trials, chance) == pytest.approx(float(exact), rel=1e-10)


def test_the_tail_neither_overflows_nor_vanishes_with_many_prompts() -> None:
    assert 0.0 < binomial_cdf(0, 10_000, 0.02) < 1e-87
    assert binomial_cdf(20_000, 1_000_000, 0.02) == pytest.approx(0.5, abs=0.005)
    assert binomial_cdf(1_000_000, 1_000_000, 0.02) == pytest.approx(1.0, abs=1e-8)
    assert binomial_cdf(0, 0, 0.02) == 1.0


def test_planning_says_how_many_failures_are_allowed() -> None:
    assert [plan(0.02, 0.05, count) for count in (148, 149, 1_000, 2_000)] == [None, 0, 12, 29]
    assert binomial_cdf(12, 1_000, 0.02) <= 0.05 < binomial_cdf(13, 1_000, 0.02)
    assert plan(0.02, 0.05, 0) is None
    for epsilon, delta in ((0.0, 0.05), (0.02, 1.0), (float("nan"), 0.5)):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            plan(epsilon, delta, 100)


# What a certificate promises.


class Population:
    """Many prompts, and rules of which the third has exactly the risk that is tested for."""

    def __init__(self) -> None:
        self.paths = ladder(50_000, seed=0)
        self.rules = policies([6.0, 9.0, 20.0, 90.0])
        outcomes = [rule.run(self.paths) for rule in self.rules]
        self.failed = np.stack([excess_failures(self.paths, each) for each in outcomes])
        self.risks = self.failed.mean(axis=1).tolist()
        self.epsilon = self.risks[LIMIT]

    def draw(self, seed: int, count: int = 1_000) -> Paths:
        return self.paths.take(np.random.default_rng(seed).integers(len(self.paths), size=count))


@pytest.fixture(scope="module")
def population() -> Population:
    found = Population()
    assert found.risks == sorted(found.risks)
    assert 0.01 < found.epsilon < 0.2
    return found


def test_a_rule_at_the_limit_is_certified_no_oftener_than_delta(population: Population) -> None:
    """At risk exactly epsilon the chance is greatest. Choosing by the mean alone is wrong often."""
    rng, prompts = np.random.default_rng(1), names(400)
    violations = naive = 0
    for _ in range(RESAMPLES):
        rows = rng.integers(len(population.paths), size=400)
        drawn = population.paths.take(rows)
        found = certify(population.rules, drawn, population.epsilon, 0.05, prompts=prompts)
        violations += sum(step.rejected for step in found.path) > LIMIT
        naive += population.failed[LIMIT, rows].mean() <= population.epsilon
    assert 10 < violations <= MOST_VIOLATIONS  # it can be wrong, and is about as often as it says
    assert naive > 5 * MOST_VIOLATIONS


def test_choosing_and_testing_on_the_same_prompts_voids_it() -> None:
    """Forty rules a little too risky: the luckiest of them passes far oftener than delta.

    They fail independently. Chosen on other prompts, one of them passes as seldom as it should.
    """
    rng, count, epsilon = np.random.default_rng(2), 500, 0.02
    same = apart = 0
    for _ in range(RESAMPLES):
        failures, fresh = rng.binomial(count, epsilon, size=(2, 40))
        luckiest = int(failures.argmin())
        same += binomial_cdf(int(failures[luckiest]), count, epsilon) <= 0.05
        apart += binomial_cdf(int(fresh[luckiest]), count, epsilon) <= 0.05
    assert apart <= MOST_VIOLATIONS
    assert same > 5 * MOST_VIOLATIONS


def test_a_certificate_is_found_where_rules_are_safe(population: Population) -> None:
    drawn = population.draw(seed=3, count=2_000)
    found = certify(population.rules, drawn, population.epsilon, prompts=names(2_000))
    assert found.certified
    assert found.lam is not None
    assert found.lam < population.rules[0].price
    assert found.prompts == 2_000
    assert not found.path[-1].rejected  # it was stopped there
    for rule, step in zip(population.rules, found.path, strict=False):
        assert found.covers(rule) == step.rejected
        failed = int(excess_failures(drawn, rule.run(drawn)).sum())
        assert (step.failures, step.p_value) == (
            failed,
            binomial_cdf(failed, 2_000, population.epsilon),
        )
    served = found.path[-2]
    assert (found.lam, found.kappa, found.failures) == (served.lam, served.kappa, served.failures)
    dearer = replace(population.rules[0], costs=((0.3, 1.0), (0.0, 1.0)))
    assert not found.covers(dearer)  # the same lambda at other costs decides otherwise


def test_no_rule_is_certified_by_fewer_than_149_prompts() -> None:
    """Not even one that never fails, such as always-largest itself."""
    paths = ladder(200, seed=4)
    paths = Paths(np.where(np.arange(2) == 0, 0.1, paths.beliefs), paths.good)
    never = policies([1e6])  # goes on for all prompts
    assert risk(never[0], paths) == 0.0
    for count, certified in ((0, False), (148, False), (149, True)):
        found = certify(never, paths.take(slice(count)), prompts=names(count))
        assert found.certified is certified
        assert (found.lam, found.failures) == (1e6 if certified else None, 0)


def test_the_first_test_that_does_not_reject_ends_the_path(population: Population) -> None:
    """A later rule that would pass is not certified: which one stands first was fixed before."""
    drawn = population.draw(seed=5)
    backward = certify(population.rules[::-1], drawn, population.epsilon, prompts=names(1_000))
    assert not backward.certified
    assert len(backward.path) == 1
    assert not backward.covers(population.rules[0])
    with pytest.raises(DataError, match="goes on"):
        replace(backward, path=(*backward.path, *backward.path))


# Prompts that count.


def clustered(num_groups: int, seed: int) -> tuple[Paths, list[str]]:
    """Five paraphrases of each question, on which stages answer alike."""
    single = ladder(num_groups, seed)
    rows = np.repeat(np.arange(num_groups), 5)
    return single.take(rows), [f"question {row}" for row in rows]


def test_paraphrases_count_once_and_a_group_fails_with_any_of_them(population: Population) -> None:
    paths, groups = clustered(300, seed=6)
    rule = population.rules[:1]
    whole = certify(rule, paths, prompts=names(1_500), groups=groups)
    assert whole.prompts == 300
    assert whole.path[0].failures == len(
        {groups[row] for row in np.flatnonzero(excess_failures(paths, rule[0].run(paths)))}
    )
    blind = certify(rule, paths, prompts=names(1_500))
    assert blind.prompts == 1_500
    assert blind.path[0].failures == 5 * whole.path[0].failures
    one_fails = paths.good.copy()
    one_fails[1:5] = 1.0
    one_fails[0], beliefs = (0.0, 1.0), np.where(np.arange(1_500)[:, None, None] < 5, 0.99, 0.9)
    sure = Paths(np.broadcast_to(beliefs, paths.beliefs.shape), one_fails)
    failed = certify(rule, sure.take(slice(5)), prompts=names(5), groups=groups[:5]).path[0]
    assert failed.failures == 1


def test_counting_repeats_as_prompts_certifies_too_often() -> None:
    population = ladder(20_000, seed=7)
    [rule] = policies([9.0])
    epsilon, rng = risk(rule, population), np.random.default_rng(8)
    honest = blind = 0
    for _ in range(300):
        rows = np.repeat(rng.integers(20_000, size=120), 5)
        drawn, texts = population.take(rows), [f"question {row // 5}" for row in range(600)]
        honest += certify([rule], drawn, epsilon, prompts=texts).certified
        blind += certify([rule], drawn, epsilon, prompts=names(600)).certified
    assert honest <= 300 * 0.05 + 3 * (300 * 0.05 * 0.95) ** 0.5
    assert blind > 300 * 0.15


def test_weights_shares_and_torn_groups_are_refused() -> None:
    paths, rules = ladder(4, seed=9), policies([1.0])
    weighted = Paths(paths.beliefs, paths.good, [1.0, 2.0, 1.0, 1.0])
    with pytest.raises(DataError, match="weights other than 1"):
        certify(rules, weighted, prompts=names(4))
    shares = Paths(paths.beliefs, paths.good * 0.5)
    with pytest.raises(DataError, match="shares"):
        certify(rules, shares, prompts=names(4))
    with pytest.raises(DataError, match="two groups"):
        certify(rules, paths, prompts=["a", "a", "b", "c"], groups=[1, 2, 3, 4])
    with pytest.raises(ShapeError, match="3 prompts for 4 paths"):
        certify(rules, paths, prompts=names(3))
    with pytest.raises(ShapeError, match="3 groups for 4 prompts"):
        certify(rules, paths, prompts=names(4), groups=[1, 2, 3])


def test_prompts_certify_once() -> None:
    paths, rules = ladder(300, seed=10), policies([9.0])
    first = certify(rules, paths, prompts=names(300))
    with pytest.raises(CascadeError, match="300 of the 300 certification prompts were used"):
        certify(rules, paths, prompts=names(300)[::-1], used=[first.used])
    with pytest.raises(CascadeError, match="1 of the 300"):  # one is one too many
        certify(rules, paths, prompts=names(300, start=299), used=[first.used])
    fitted_on = UsedPrompts.of(names(50, start=320))
    with pytest.raises(CascadeError, match="20 of the 300"):
        certify(rules, paths, prompts=names(300, start=40), used=[fitted_on])
    certify(rules, paths, prompts=names(300, start=300), used=[first.used])


# The path, and the file.


def test_the_path_goes_from_safe_to_cheap() -> None:
    calibration = ladder(600, seed=11)
    grid = [(lam, kappa) for lam in (0.25, 0.5, 1.0, 2.0, 4.0, 16.0) for kappa in (-1.0, 0.0)]
    path = order_path(calibration, COSTS, grid)
    assert len(path) > 3
    assert {(rule.lam, rule.kappa) for rule in path} <= set(grid)
    excess: list[float] = [risk(rule, calibration) for rule in path]
    costs: list[float] = [float(rule.run(calibration, COSTS).cost.mean()) for rule in path]
    assert excess == sorted(excess)
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == len(costs)
    left_out = set(grid) - {(rule.lam, rule.kappa) for rule in path}
    for lam, kappa in left_out:  # one on the path is as safe and as cheap
        rule = fit(calibration, COSTS, lam, kappa)
        lost, paid = risk(rule, calibration), rule.run(calibration, COSTS).cost.mean()
        pairs = zip(excess, costs, strict=True)
        assert any(safe <= lost and cheap <= paid for safe, cheap in pairs)


def test_json_gives_back_the_same_certificate() -> None:
    found = certify(policies([4.0, 1.0]), ladder(400, seed=12), prompts=names(400))
    plain = json.loads(json.dumps(found.to_plain()))
    assert Certificate.from_plain(plain) == found
    with pytest.raises(FormatError, match="99"):
        Certificate.from_plain({**plain, "format_version": 99})
    with pytest.raises(DataError, match="kind"):
        Certificate.from_plain({**plain, "kind": "stopping policy"})
    with pytest.raises(DataError, match="damaged"):
        Certificate.from_plain({**plain, "path": [{}]})


def test_a_certificate_without_a_policy_serves_the_largest_stage() -> None:
    step = Step(1.0, 0.0, "a", 9, 0.9, False)
    none = Certificate(0.02, 0.05, 200, (step,), UsedPrompts(()))
    assert (none.certified, none.lam, none.kappa, none.failures) == (False, None, None, 0)
