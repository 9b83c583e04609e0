"""Cost against quality: the hull that rules reach, the share of the gap they close, and how surely.

Pure arrays. A rule run at several settings (prices, thresholds) is a curve: its cost and quality on
the same N prompts at each. Randomising between settings reaches every point of the hull. Owns the
geometry and the paired bootstrap over prompts; the rules themselves are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stepwell.cascade.rule.paths import FloatArray, IntArray
from stepwell.errors import ShapeError


class Measured(Protocol):
    """Anything that has a cost and a label of the answer returned for each of N prompts."""

    @property
    def cost(self) -> FloatArray: ...

    @property
    def good(self) -> FloatArray: ...


@dataclass(frozen=True, eq=False)
class Curve:
    """One rule at R settings on N prompts: cost and label of the answer returned, both [R, N]."""

    name: str
    cost: FloatArray
    good: FloatArray

    @classmethod
    def of(cls, name: str, outcomes: Sequence[Measured]) -> Curve:
        """The curve through the outcomes of a rule on the same prompts."""
        cost = np.stack([outcome.cost for outcome in outcomes])
        return cls(name, cost, np.stack([outcome.good for outcome in outcomes]))

    def points(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean cost and mean quality at each setting, both [R], for prompts that weigh [N]."""
        share = weights / weights.sum()
        return self.cost @ share, self.good @ share


@dataclass(frozen=True, eq=False)
class Hull:
    """What mixing reaches: corners by rising cost and quality, concave, flat after the last."""

    cost: FloatArray
    quality: FloatArray

    def quality_at(self, cost: float) -> float:
        """The best quality for a mean cost; 0 for less than the cheapest corner."""
        if cost < self.cost[0]:
            return 0.0
        return float(np.interp(cost, self.cost, self.quality))

    def cost_at(self, quality: float) -> float:
        """The least mean cost for a quality; infinite where it is not reached."""
        if quality > self.quality[-1]:
            return np.inf
        return float(np.interp(quality, self.quality, self.cost))

    def area(self, low: float, high: float) -> float:
        """The integral of the best quality over mean costs from low to high."""
        start = max(low, float(self.cost[0]))
        if high <= start:
            return 0.0
        inside = self.cost[(self.cost > start) & (self.cost < high)]
        ends = np.array([start, *inside, high])
        return float(np.trapezoid(np.interp(ends, self.cost, self.quality), ends))


def hull_indices(cost: FloatArray, quality: FloatArray) -> IntArray:
    """Which points are corners of the upper hull, by strictly rising cost and quality.

    Free disposal: a dearer point of no higher quality is no corner. Of equal points the first is.
    """
    corners: list[int] = []
    for index in np.lexsort((-quality, cost)):
        if corners and quality[index] <= quality[corners[-1]]:
            continue
        while len(corners) > 1 and _below(cost, quality, corners[-2], corners[-1], int(index)):
            corners.pop()
        corners.append(int(index))
    return np.array(corners, dtype=np.int64)


def _below(cost: FloatArray, quality: FloatArray, left: int, middle: int, right: int) -> bool:
    """Whether the middle point lies on or below the line through the others."""
    rise = (quality[middle] - quality[left]) * (cost[right] - cost[left])
    return bool(rise <= (quality[right] - quality[left]) * (cost[middle] - cost[left]))


def hull(cost: FloatArray, quality: FloatArray) -> Hull:
    """The upper hull of points [R]."""
    if cost.shape != quality.shape or cost.ndim != 1 or not len(cost):
        raise ShapeError(f"cost is {list(cost.shape)} and quality {list(quality.shape)}.")
    corners = hull_indices(cost, quality)
    return Hull(cost[corners], quality[corners])


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap percentile interval."""

    estimate: float
    low: float
    high: float


Statistic = Callable[[FloatArray], Sequence[float]]


def bootstrap(
    statistic: Statistic,
    weights: FloatArray,
    *,
    resamples: int = 2_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Interval, ...]:
    """An interval for each number that `statistic` computes from prompt weights [N].

    Prompts are drawn with replacement, and a draw multiplies a prompt's weight by its count, so
    whatever the statistic compares is paired by prompt. Percentiles are order statistics, so a
    statistic may be infinite.
    """
    random = np.random.default_rng(seed)
    even = (weights > 0) / np.count_nonzero(weights)
    drawn = np.array(
        [statistic(weights * random.multinomial(len(weights), even)) for _ in range(resamples)]
    )
    tails = (1.0 - level) / 2, (1.0 + level) / 2
    low, high = np.quantile(drawn, tails, axis=0, method="inverted_cdf")
    return tuple(
        Interval(float(estimate), float(least), float(most))
        for estimate, least, most in zip(statistic(weights), low, high, strict=True)
    )


@dataclass(frozen=True)
class Difference:
    """How two outcomes on the same prompts differ in the mean: first minus second."""

    cost: Interval
    quality: Interval


def paired_difference(
    first: Measured, second: Measured, weights: FloatArray, *, resamples: int = 2_000, seed: int = 0
) -> Difference:
    """The differences of mean cost and quality, with intervals over prompts."""
    dearer, better = first.cost - second.cost, first.good - second.good

    def means(resampled: FloatArray) -> list[float]:
        total = resampled.sum()
        return [float(dearer @ resampled / total), float(better @ resampled / total)]

    return Difference(*bootstrap(means, weights, resamples=resamples, seed=seed))


@dataclass(frozen=True)
class Standing:
    """Where one curve stands between random mixing of the fixed stages and the oracle."""

    name: str
    area_above_random: Interval
    gap_closed: Interval
    cost_at_quality: Interval  # the least cost within `within` of the largest stage's quality


def standings(
    curves: Sequence[Curve],
    fixed: Curve,
    oracle: Curve,
    weights: FloatArray,
    *,
    within: float = 0.01,
    resamples: int = 2_000,
    seed: int = 0,
) -> tuple[Standing, ...]:
    """The standing of each curve; `fixed` holds always-1 .. always-K in order.

    Areas are under the hulls over [C_1, C_K]; to every hull always-1 is added, which anybody can
    mix in. The gap closed is (A - A_random) / (A_oracle - A_random), NaN where there is no gap.
    """

    def statistic(resampled: FloatArray) -> list[float]:
        return _standing_numbers(curves, fixed, oracle, resampled, within)

    found = bootstrap(statistic, weights, resamples=resamples, seed=seed)
    triples = [found[start : start + 3] for start in range(0, len(found), 3)]
    return tuple(
        Standing(curve.name, *triple) for curve, triple in zip(curves, triples, strict=True)
    )


def _standing_numbers(
    curves: Sequence[Curve], fixed: Curve, oracle: Curve, weights: FloatArray, within: float
) -> list[float]:
    """Area above random, gap closed and cost at equal quality of each curve, one after another."""
    costs, qualities = fixed.points(weights)
    low, high = float(costs[0]), float(costs[-1])

    def hull_of(curve: Curve) -> Hull:
        cost, quality = curve.points(weights)
        return hull(np.append(cost, costs[0]), np.append(quality, qualities[0]))

    random_area = hull(costs, qualities).area(low, high)
    gap = hull_of(oracle).area(low, high) - random_area
    numbers = []
    for curve in curves:
        reached = hull_of(curve)
        above = reached.area(low, high) - random_area
        closed = above / gap if gap > 0 else np.nan
        numbers += [above, closed, reached.cost_at(float(qualities[-1]) - within)]
    return numbers
