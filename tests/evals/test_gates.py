"""The gates of a ladder, on labels small enough to count."""

from __future__ import annotations

import numpy as np
import pytest

from stepwell.cascade.costs import Costs, StageCost
from stepwell.evals.gates import by_depth, falls, gates, rises, shares_won, verifies, wins

GOOD = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
EVEN = np.ones(4)


def costs(*verified: float) -> Costs:
    pairs = zip(("a", "b", "c"), (0.1, 0.5, 1.0), verified, strict=True)
    return Costs(
        tuple(StageCost(name, 1.0, {"8": anew}, {"8": again}) for name, anew, again in pairs)
    )


def test_accuracy_rises_by_the_least_step() -> None:
    assert rises(GOOD, EVEN).value == pytest.approx(0.25)
    assert rises(GOOD, EVEN).holds
    assert not rises(GOOD[:, ::-1], EVEN).holds
    assert not rises(GOOD[:, [0, 0]], EVEN).holds
    assert rises(GOOD, np.array([0.0, 0.0, 1.0, 0.0])).value == -1.0


def test_accuracy_falls_from_the_shallow_half_to_the_deep_one() -> None:
    depths = np.array([1, 1, 2, 3])
    found = falls(GOOD, EVEN, depths)
    assert found.value == pytest.approx((0.5 + 1.0) / 2 - (0.5 + 0.5) / 2)
    assert found.holds
    assert not falls(GOOD, EVEN, depths[::-1]).holds
    alike = falls(GOOD, EVEN, np.zeros(4, dtype=np.int64))
    assert alike.value is None
    assert not alike.holds


def test_a_stage_wins_where_no_smaller_one_is_right() -> None:
    assert shares_won(GOOD, EVEN) == (0.5, 0.5)
    assert wins(GOOD, EVEN).holds
    below = np.array([[1.0, 1.0], [0.0, 0.0]])
    assert shares_won(below, np.ones(2)) == (0.5, 0.0)
    assert not wins(below, np.ones(2)).holds


def test_verifying_must_pay_for_every_stage_but_the_first() -> None:
    found = verifies(costs(0.2, 0.25, 0.8), 8)
    assert found.value == pytest.approx(0.8)
    assert found.holds
    assert not verifies(costs(0.05, 0.25, 1.0), 8).holds


def test_the_floor_leaves_room_or_does_not() -> None:
    depths = np.array([1, 1, 2, 3])
    good = np.hstack([GOOD, np.ones((4, 1))])
    for floor, holds in ((0.35, True), (0.36, False)):
        found = gates(good, EVEN, depths, costs(0.1, 0.2, 0.3), 8, floor)
        assert len(found) == 5
        assert found[-1].value == floor
        assert found[-1].holds is holds


def test_depths_are_kept_apart_where_they_are_few() -> None:
    found = by_depth(GOOD, np.array([1, 1, 2, 3]))
    assert found.groups == ("1", "2", "3")
    assert found.counts == (2, 1, 1)
    assert found.right == ((0.5, 1.0), (1.0, 0.0), (0.0, 1.0))


def test_neighbouring_depths_are_put_together_where_they_are_many() -> None:
    depths = np.arange(100)
    good = (depths[:, None] < 50).astype(np.float64)
    found = by_depth(good, depths, most=4)
    assert found.groups == ("0 to 24", "25 to 49", "50 to 74", "75 to 99")
    assert found.counts == (25, 25, 25, 25)
    assert found.right == ((1.0,), (1.0,), (0.0,), (0.0,))
