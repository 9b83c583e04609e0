"""The bootstrap over seeds and prompts, on numbers small enough to count."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from stepwell.cascade.rule.paths import FloatArray
from stepwell.errors import ShapeError
from stepwell.evals.frontier import Interval, Statistic, bootstrap
from stepwell.evals.nested import nested_bootstrap, over_seeds


def mean_of(values: FloatArray) -> Statistic:
    return lambda weights: [float(values @ weights / weights.sum())]


def nested_mean(seeds: Sequence[FloatArray], **options: int) -> Interval:
    [found] = nested_bootstrap(
        [mean_of(values) for values in seeds], [np.ones(len(values)) for values in seeds], **options
    )
    return found


def test_the_estimate_is_the_mean_over_seeds_of_weighted_means() -> None:
    first, second = np.array([1.0, 0.0]), np.array([0.0, 0.0, 1.0])
    [found] = nested_bootstrap(
        [mean_of(first), mean_of(second)], [np.array([3.0, 1.0]), np.array([1.0, 1.0, 2.0])]
    )
    assert found.estimate == pytest.approx((0.75 + 0.5) / 2)


def test_seeds_that_differ_widen_the_interval_where_prompts_agree() -> None:
    """Of two seeds that say 0 and 1, means of draws are 0, 1/2 or 1."""
    found = nested_mean([np.zeros(50), np.ones(50)])
    assert found == Interval(0.5, 0.0, 1.0)
    assert nested_mean([np.ones(50), np.ones(50)]) == Interval(1.0, 1.0, 1.0)


def test_prompts_widen_it_where_seeds_agree() -> None:
    """For one seed it is the interval over its prompts."""
    values = (np.arange(200) % 4 == 0).astype(np.float64)
    found = nested_mean([values], pool=2000)
    [plain] = bootstrap(mean_of(values), np.ones(200))
    assert found.low == pytest.approx(plain.low, abs=0.01)
    assert found.high == pytest.approx(plain.high, abs=0.01)


def covers(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


def test_it_covers_the_truth_where_pooling_all_prompts_does_not() -> None:
    """Five seeds whose truths lie around 0, with many prompts each."""
    random = np.random.default_rng(0)
    nested = pooled = 0
    for trial in range(100):
        truths = random.normal(scale=0.2, size=5)
        seeds = [truth + random.normal(scale=0.5, size=100) for truth in truths]
        nested += covers(nested_mean(seeds, pool=20, resamples=400, seed=trial), 0.0)
        together = np.concatenate(seeds)
        [flat] = bootstrap(mean_of(together), np.ones(500), resamples=400, seed=trial)
        pooled += covers(flat, 0.0)
    assert nested >= 80
    assert pooled <= 50


def test_all_numbers_of_a_seed_come_from_the_same_prompts() -> None:
    """A difference of equal things is 0 in every resample."""
    values = np.random.default_rng(0).random(30)

    def statistic(weights: FloatArray) -> list[float]:
        mean = float(values @ weights / weights.sum())
        return [mean, mean, mean - mean]

    first, second, difference = nested_bootstrap([statistic] * 3, [np.ones(30)] * 3)
    assert first.low < first.high
    assert first == second
    assert difference == Interval(0.0, 0.0, 0.0)


def test_what_a_seed_cannot_say_is_left_out() -> None:
    found = over_seeds([1.0, float("nan"), 3.0])
    assert found.estimate == 2.0
    assert (found.low, found.high) == (1.0, 3.0)
    nothing = over_seeds([float("nan")] * 2)
    assert np.isnan([nothing.estimate, nothing.low, nothing.high]).all()


def test_seeds_must_give_the_same_numbers() -> None:
    with pytest.raises(ShapeError, match="1, 2 numbers"):
        nested_bootstrap([lambda _: [1.0], lambda _: [1.0, 2.0]], [np.ones(2)] * 2)
    with pytest.raises(ShapeError, match="0 statistics"):
        nested_bootstrap([], [])
