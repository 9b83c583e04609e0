"""What must hold of a ladder before anything is claimed of a rule on it.

Pure arithmetic on labels, depths and costs. A ladder that fails a gate is reported as failing it;
nothing is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from stepwell.cascade.costs import Costs
from stepwell.cascade.rule.paths import BoolArray, FloatArray, IntArray

FLOOR: Final = 0.35  # the oracle's share of always-largest, above which a ladder leaves no room
MOST_GROUPS: Final = 8


@dataclass(frozen=True)
class Gate:
    """One condition: the number it is judged by, and whether it holds.

    limit: what the number must be, in words. value is None where there is nothing to judge.
    """

    name: str
    value: float | None
    limit: str
    holds: bool


@dataclass(frozen=True)
class ByDepth:
    """Right answers by difficulty: groups by name, questions in each, shares [groups][stages]."""

    groups: tuple[str, ...]
    counts: tuple[int, ...]
    right: tuple[tuple[float, ...], ...]


def gates(
    good: FloatArray, weights: FloatArray, depths: IntArray, costs: Costs, batch: int, floor: float
) -> tuple[Gate, ...]:
    """The gates of labels [N, K]; floor is what the oracle that pays the path costs."""
    return (
        rises(good, weights),
        falls(good, weights, depths),
        wins(good, weights),
        verifies(costs, batch),
        Gate(
            "a perfect rule that pays the path is cheap", floor, f"at most {FLOOR}", floor <= FLOOR
        ),
    )


def rises(good: FloatArray, weights: FloatArray) -> Gate:
    """Each stage is right more often than the one before."""
    least = float(np.diff(weights @ good / weights.sum()).min())
    return Gate("accuracy rises with the stage", least, "above 0, the least step", least > 0)


def falls(good: FloatArray, weights: FloatArray, depths: IntArray) -> Gate:
    """The shallower half of the depths is answered better than the deeper one, by all stages."""
    name, limit = "accuracy falls with depth", "above 0, shallow half minus deep half"
    known = np.unique(depths)
    if len(known) < 2:
        return Gate(name, None, limit, False)
    shallow = depths < known[len(known) // 2]
    fall = _share(good, weights, shallow).mean() - _share(good, weights, ~shallow).mean()
    return Gate(name, float(fall), limit, bool(fall > 0))


def wins(good: FloatArray, weights: FloatArray) -> Gate:
    """Each stage is right somewhere that no smaller one is."""
    least = min(shares_won(good, weights))
    limit = "above 0, the least share of questions"
    return Gate("each stage is right where no smaller one is", least, limit, least > 0)


def shares_won(good: FloatArray, weights: FloatArray) -> tuple[float, ...]:
    """The share of questions that each stage is right on and no smaller one, [K]."""
    before = np.concatenate(
        [np.zeros((len(good), 1)), np.maximum.accumulate(good, axis=1)[:, :-1]], 1
    )
    won = weights @ (good * (1.0 - before)) / weights.sum()
    return tuple(won.tolist())


def verifies(costs: Costs, batch: int) -> Gate:
    """Verifying a whole draft costs each later stage less than writing it."""
    anew, saved = costs.seconds(batch)[1:], costs.saved(batch)[1:]
    most = float((1.0 - saved / anew).max())
    limit = "below 1, the largest ratio of seconds"
    return Gate("verifying a whole draft costs less than writing it", most, limit, most < 1)


def by_depth(good: FloatArray, depths: IntArray, most: int = MOST_GROUPS) -> ByDepth:
    """Shares of right answers by depth, neighbouring depths together where there are many.

    Each question counts once, however often it is asked.
    """
    known, counts = np.unique(depths, return_counts=True)
    middle = counts.cumsum() - counts / 2
    group = np.minimum(middle / counts.sum() * most, most - 1).astype(np.int64)
    if len(known) <= most:
        group = np.arange(len(known))
    names, sizes, right = [], [], []
    for number in np.unique(group):
        low, high = known[group == number][[0, -1]]
        rows = (depths >= low) & (depths <= high)
        names.append(str(low) if low == high else f"{low} to {high}")
        sizes.append(int(rows.sum()))
        right.append(tuple(good[rows].mean(axis=0).tolist()))
    return ByDepth(tuple(names), tuple(sizes), tuple(right))


def _share(good: FloatArray, weights: FloatArray, rows: BoolArray) -> FloatArray:
    share: FloatArray = weights[rows] @ good[rows] / weights[rows].sum()
    return share
