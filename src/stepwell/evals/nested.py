"""Intervals over training seeds and prompts together: seeds are drawn first, then prompts of each.

Pure arrays. What a rule gains is asked of ladders that were not trained yet, so that a mean over
few seeds is surer of its prompts than of its seeds; both are drawn anew. Owns this bootstrap; one
over prompts alone is in frontier.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepwell.cascade.rule.paths import FloatArray
from stepwell.errors import ShapeError
from stepwell.evals.frontier import Interval, Statistic

POOL = 200  # resamples of the prompts of one seed, of which each draw of that seed takes one


def nested_bootstrap(
    statistics: Sequence[Statistic],
    weights: Sequence[FloatArray],
    *,
    pool: int = POOL,
    resamples: int = 2_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Interval, ...]:
    """The mean over seeds of each number, with a percentile interval over seeds and prompts.

    One statistic and one vector of prompt weights for each seed; a statistic gives Q numbers for
    weights, NaN where it cannot. A resample draws as many seeds as there are, with replacement, and
    for each draw one of `pool` resamples of that seed's prompts; its mean leaves NaN out. Raises
    ShapeError where there is no seed, or one gives another number of numbers.
    """
    if not statistics or len(statistics) != len(weights):
        raise ShapeError(f"{len(statistics)} statistics for {len(weights)} vectors of weights.")
    random = np.random.default_rng(seed)
    pairs = list(zip(statistics, weights, strict=True))
    found = [np.array(statistic(own), dtype=np.float64) for statistic, own in pairs]
    if len({len(each) for each in found}) > 1:
        raise ShapeError(f"seeds give {', '.join(str(len(each)) for each in found)} numbers.")
    pools = np.stack([_pool(*pair, pool, random) for pair in pairs])  # [S, pool, Q]
    seeds = random.integers(len(pairs), size=(resamples, len(pairs)))
    places = random.integers(pool, size=seeds.shape)
    drawn = _mean(pools[seeds, places], axis=1)
    tails = (1.0 - level) / 2, (1.0 + level) / 2
    return tuple(
        _interval(estimate, column, tails)
        for estimate, column in zip(_mean(np.stack(found), axis=0), drawn.T, strict=True)
    )


def over_seeds(values: Sequence[float], *, resamples: int = 2_000, seed: int = 0) -> Interval:
    """The mean of one number a seed, with an interval over seeds alone."""
    statistics = [lambda _weights, value=value: [value] for value in values]
    [found] = nested_bootstrap(
        statistics, [np.ones(1)] * len(values), pool=1, resamples=resamples, seed=seed
    )
    return found


def _pool(
    statistic: Statistic, weights: FloatArray, count: int, random: np.random.Generator
) -> FloatArray:
    """The numbers for `count` resamples of prompts, [count, Q]."""
    even = (weights > 0) / np.count_nonzero(weights)
    drawn = [statistic(weights * random.multinomial(len(weights), even)) for _ in range(count)]
    return np.array(drawn, dtype=np.float64)


def _mean(values: FloatArray, axis: int) -> FloatArray:
    """The mean of what is known, NaN where nothing is."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=axis)
    with np.errstate(invalid="ignore"):
        mean: FloatArray = total / known.sum(axis=axis)
    return mean


def _interval(estimate: float, drawn: FloatArray, tails: tuple[float, float]) -> Interval:
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return Interval(float(estimate), np.nan, np.nan)
    low, high = np.quantile(known, tails, method="inverted_cdf")
    return Interval(float(estimate), float(low), float(high))
