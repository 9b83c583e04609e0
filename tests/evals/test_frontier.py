"""The geometry of cost and quality, by hand and by properties, and the paired bootstrap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.cascade.rule.paths import FloatArray, Outcome
from stepwell.errors import ShapeError
from stepwell.evals.frontier import (
    Curve,
    Hull,
    bootstrap,
    hull,
    hull_indices,
    paired_difference,
    standings,
)

points = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 10)).map(lambda pair: (pair[0] / 4, pair[1] / 10)),
    min_size=1,
    max_size=12,
)


def arrays(pairs: list[tuple[float, float]]) -> tuple[FloatArray, FloatArray]:
    cost, quality = np.array(pairs, dtype=float).T
    return cost, quality


def best_mix(cost: FloatArray, quality: FloatArray, budget: float) -> float:
    """The best quality for at most `budget` by mixing any two points, by trying all pairs."""
    best = 0.0
    for a, b in itertools.product(range(len(cost)), repeat=2):
        if cost[a] <= budget:
            share = 1.0 if cost[b] <= budget else (budget - cost[a]) / (cost[b] - cost[a])
            best = max(best, quality[a] + share * (quality[b] - quality[a]))
    return float(best)


def test_a_hull_by_hand() -> None:
    cost = np.array([1.0, 2.0, 3.0, 4.0, 2.5])
    quality = np.array([0.5, 0.6, 0.9, 0.85, 0.9])
    assert hull_indices(cost, quality).tolist() == [0, 4]
    reached = hull(cost, quality)
    assert reached.quality_at(1.75) == pytest.approx(0.7)
    assert reached.quality_at(9.0) == 0.9
    assert reached.quality_at(0.9) == 0.0
    assert reached.cost_at(0.7) == pytest.approx(1.75)
    assert reached.cost_at(0.2) == 1.0
    assert reached.cost_at(0.91) == np.inf
    assert reached.area(1.0, 4.0) == pytest.approx(1.5 * 0.7 + 1.5 * 0.9)
    assert reached.area(0.0, 1.75) == pytest.approx(0.75 * 0.6)
    assert reached.area(3.0, 3.0) == 0.0
    assert reached.area(0.0, 0.5) == 0.0


@settings(deadline=None, derandomize=True)
@given(points, st.integers(0, 24))
def test_the_hull_is_the_best_of_all_mixtures(pairs: list[tuple[float, float]], step: int) -> None:
    cost, quality = arrays(pairs)
    budget = step / 4
    assert hull(cost, quality).quality_at(budget) == pytest.approx(best_mix(cost, quality, budget))


@settings(deadline=None, derandomize=True)
@given(points)
def test_the_hull_lies_on_or_above_every_point_and_is_concave(
    pairs: list[tuple[float, float]],
) -> None:
    cost, quality = arrays(pairs)
    reached = hull(cost, quality)
    for paid, good in zip(cost, quality, strict=True):
        assert reached.quality_at(paid) >= good - 1e-12
        assert reached.cost_at(good) <= paid + 1e-12
    assert (np.diff(reached.cost) > 0).all()
    assert (np.diff(reached.quality) > 0).all()
    slopes = np.diff(reached.quality) / np.diff(reached.cost)
    assert (np.diff(slopes) < 0).all()


@settings(deadline=None, derandomize=True)
@given(points, st.integers(0, 10), st.integers(1, 14))
def test_the_area_is_the_integral(pairs: list[tuple[float, float]], low: int, width: int) -> None:
    reached = hull(*arrays(pairs))
    start, end = low / 2, (low + width) / 2
    middles = np.linspace(start, end, 4_001)[:-1] + (end - start) / 8_000
    total = np.mean([reached.quality_at(cost) for cost in middles]) * (end - start)
    assert reached.area(start, end) == pytest.approx(total, abs=2e-3)


def test_points_that_do_not_match_are_a_typed_error() -> None:
    with pytest.raises(ShapeError):
        hull(np.zeros(2), np.zeros(3))
    with pytest.raises(ShapeError):
        hull(np.empty(0), np.empty(0))


# A small population: three stages at costs 0.1, 0.4, 1.


GOOD = np.array(
    [[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 0]],
    dtype=float,
)
COSTS = np.array([0.1, 0.4, 1.0])
WEIGHTS = np.array([2.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0])


def fixed_curve() -> Curve:
    return Curve("fixed", np.repeat(COSTS[:, None], len(GOOD), axis=1), GOOD.T.copy())


def oracle_curve() -> Curve:
    """The first right answer, stages paid in order; stage 1 where there is none."""
    first = np.where(GOOD.any(axis=1), GOOD.argmax(axis=1), 0)
    return Curve("oracle", COSTS.cumsum()[first][None], GOOD.max(axis=1)[None])


def test_a_curve_gives_weighted_means() -> None:
    cost, quality = fixed_curve().points(WEIGHTS)
    np.testing.assert_allclose(cost, COSTS)
    np.testing.assert_allclose(quality, [5 / 10, 5 / 10, 8 / 10])


def test_random_mixing_closes_nothing_and_the_oracle_everything() -> None:
    fixed, oracle = fixed_curve(), oracle_curve()
    share = 0.3
    mixed = Curve(
        "mixed",
        share * fixed.cost[[0, 2]] + (1 - share) * fixed.cost[[2, 2]],
        share * fixed.good[[0, 2]] + (1 - share) * fixed.good[[2, 2]],
    )
    found = standings([fixed, mixed, oracle], fixed, oracle, WEIGHTS, resamples=20)
    assert [standing.name for standing in found] == ["fixed", "mixed", "oracle"]
    closed = [standing.gap_closed.estimate for standing in found]
    assert closed == pytest.approx([0.0, 0.0, 1.0], abs=1e-12)
    worse = Curve("worse", fixed.cost, fixed.good * [[1.0], [1.0], [0.8]])
    below = standings([worse], fixed, oracle, WEIGHTS, resamples=20)[0]
    assert below.gap_closed.estimate < -0.05
    assert below.cost_at_quality.estimate == np.inf


def test_a_standing_by_hand() -> None:
    """Random mixing runs straight from (.1, .5) to (1, .8); the rule's one point is (.5, .8)."""
    fixed, oracle = fixed_curve(), oracle_curve()
    rule = Curve("rule", np.full((1, 8), 0.5), GOOD[:, 2][None])
    found = standings([rule, oracle], fixed, oracle, WEIGHTS, within=0.03, resamples=20)
    random_area = 0.9 * 0.65
    area = 0.4 * 0.65 + 0.5 * 0.8
    assert found[0].area_above_random.estimate == pytest.approx(area - random_area)
    # The oracle: cost .1 x 6, .5 x 1, 1.5 x 3, each by weight, and right on 9 of 10.
    oracle_cost = (0.1 * 6 + 0.5 * 1 + 1.5 * 3) / 10
    oracle_area = (oracle_cost - 0.1) * (0.5 + 0.9) / 2 + (1.0 - oracle_cost) * 0.9
    gap = oracle_area - random_area
    assert found[0].gap_closed.estimate == pytest.approx((area - random_area) / gap)
    assert found[0].cost_at_quality.estimate == pytest.approx(0.1 + 0.4 * (0.27 / 0.3))
    floor = 0.1 + (oracle_cost - 0.1) * (0.27 / 0.4)
    assert found[1].cost_at_quality.estimate == pytest.approx(floor)


def test_where_there_is_no_gap_the_share_closed_is_not_a_number() -> None:
    alike = Curve("fixed", fixed_curve().cost, np.ones((3, 8)))
    found = standings([alike], alike, alike, WEIGHTS, resamples=5)
    assert np.isnan(found[0].gap_closed.estimate)


# The bootstrap.


def test_the_interval_of_a_mean_is_that_of_the_normal() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)

    def mean(weights: FloatArray) -> list[float]:
        return [float(np.average(values, weights=weights))]

    (interval,) = bootstrap(mean, np.ones(400), resamples=4_000)
    error = 1.96 * values.std() / 20
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - error, abs=0.01)
    assert interval.high == pytest.approx(values.mean() + error, abs=0.01)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(150):
        values = rng.random(60)

        def mean(weights: FloatArray, values: FloatArray = values) -> list[float]:
            return [float(np.average(values, weights=weights))]

        (interval,) = bootstrap(mean, np.ones(60), resamples=200, seed=seed, level=0.8)
        covered += interval.low <= 0.5 <= interval.high
    assert 105 <= covered <= 135


def test_the_bootstrap_is_deterministic_and_heeds_its_seed() -> None:
    def spread(weights: FloatArray) -> list[float]:
        return [float(weights[0]), float(weights[1])]

    first = bootstrap(spread, np.ones(30), resamples=50, seed=3)
    assert first == bootstrap(spread, np.ones(30), resamples=50, seed=3)
    assert len(first) == 2
    drawn = [bootstrap(spread, np.ones(30), resamples=5, seed=seed) for seed in range(9)]
    assert any(one != drawn[0] for one in drawn)


def test_prompts_of_no_weight_are_never_all_that_is_drawn() -> None:
    weights = np.array([1.0, *[0.0] * 200])

    def mean(resampled: FloatArray) -> list[float]:
        assert resampled.sum() > 0
        return [float(np.average(np.arange(201), weights=resampled))]

    (interval,) = bootstrap(mean, weights, resamples=50)
    assert (interval.low, interval.high) == (0.0, 0.0)


def test_a_statistic_may_be_infinite() -> None:
    def never(weights: FloatArray) -> list[float]:
        return [np.inf if weights[0] else 1.0]

    (interval,) = bootstrap(never, np.ones(5), resamples=200)
    assert (interval.estimate, interval.low, interval.high) == (np.inf, 1.0, np.inf)


def test_pairing_sees_a_difference_that_unpaired_intervals_hide() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(size=200)

    def outcome(shift: float) -> Outcome:
        cost = hard + shift
        ones = np.ones(200)
        return Outcome(ones.astype(np.int64), np.ones((200, 1), dtype=bool), cost, ones)

    difference = paired_difference(outcome(0.1), outcome(0.0), np.ones(200), resamples=300)
    assert difference.cost.low == pytest.approx(0.1)
    assert difference.cost.high == pytest.approx(0.1)
    assert difference.quality.estimate == 0.0
    apart = np.random.default_rng(3).permutation(200)
    unpaired = Outcome(
        np.ones(200, dtype=np.int64), np.ones((200, 1), dtype=bool), hard[apart], np.ones(200)
    )
    hidden = paired_difference(outcome(0.1), unpaired, np.ones(200), resamples=300)
    assert hidden.cost.low < 0.0 < hidden.cost.high


def test_a_hull_is_given_by_its_corners() -> None:
    reached = Hull(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert reached.area(0.0, 1.0) == pytest.approx(0.5)
