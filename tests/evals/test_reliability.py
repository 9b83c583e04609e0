"""Whether beliefs are borne out: by hand, by counting pairs, and on beliefs that are true."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stepwell.errors import ShapeError
from stepwell.evals.reliability import reliability, reliability_of_gain


def test_two_bins_by_hand() -> None:
    beliefs = np.array([0.2, 0.4, 0.6, 0.9])
    good = np.array([0.0, 1.0, 1.0, 1.0])
    found = reliability("small", beliefs, good, np.ones(4), bins=2)
    np.testing.assert_allclose(found.believed, [0.3, 0.75])
    np.testing.assert_allclose(found.found, [0.5, 1.0])
    assert found.error == pytest.approx((0.2 + 0.25) / 2)
    assert found.brier == pytest.approx((0.04 + 0.36 + 0.16 + 0.01) / 4)
    assert found.auroc == 1.0


def test_a_prompt_of_weight_two_counts_as_two_prompts() -> None:
    rng = np.random.default_rng(0)
    beliefs, good = rng.random(40), (rng.random(40) < 0.6).astype(float)
    weights = rng.integers(0, 3, size=40)
    weighted = reliability("x", beliefs, good, weights.astype(float))
    repeated = reliability(
        "x", beliefs.repeat(weights), good.repeat(weights), np.ones(weights.sum())
    )
    assert weighted.error == pytest.approx(repeated.error)
    assert weighted.brier == pytest.approx(repeated.brier)
    assert weighted.auroc == pytest.approx(repeated.auroc)


def test_auroc_counts_pairs() -> None:
    rng = np.random.default_rng(1)
    beliefs = rng.integers(0, 6, size=50) / 6  # with ties
    good, weights = (rng.random(50) < 0.5).astype(float), rng.random(50)
    won = total = 0.0
    for i, j in itertools.product(range(50), repeat=2):
        if good[i] == 1 and good[j] == 0:
            share = weights[i] * weights[j]
            total += share
            won += share * ((beliefs[i] > beliefs[j]) + 0.5 * (beliefs[i] == beliefs[j]))
    assert reliability("x", beliefs, good, weights).auroc == pytest.approx(won / total)
    assert np.isnan(reliability("x", beliefs, np.ones(50), weights).auroc)


def test_true_beliefs_are_borne_out_and_sharpened_ones_are_not() -> None:
    rng = np.random.default_rng(2)
    beliefs = rng.random(20_000)
    good = (rng.random(20_000) < beliefs).astype(float)
    true = reliability("x", beliefs, good, np.ones(20_000))
    assert true.error < 0.015
    sharpened = np.clip(1.5 * (beliefs - 0.5) + 0.5, 0, 1)
    assert reliability("x", sharpened, good, np.ones(20_000)).error > 0.08


def test_equal_beliefs_share_a_bin() -> None:
    good = np.array([1.0, 0.0] * 10)
    found = reliability("x", np.full(20, 0.5), good, np.ones(20))
    np.testing.assert_allclose(found.believed, [0.5])
    assert found.error == pytest.approx(0.0)


def test_shapes_that_do_not_match_are_a_typed_error() -> None:
    with pytest.raises(ShapeError, match=r"expected \[N\] each"):
        reliability("x", np.ones(3), np.ones(2), np.ones(3))


def test_a_gain_is_reliable_as_counted_by_hand() -> None:
    gains = np.array([0.5, 0.5, -0.2, -0.2])
    found = np.array([1.0, 0.0, 0.0, -1.0])
    made = reliability_of_gain("x", gains, found, np.ones(4))
    assert made.error == pytest.approx((abs(0.5 - 0.5) + abs(-0.2 + 0.5)) / 2)
    assert made.brier == pytest.approx((0.25 + 0.25 + 0.04 + 0.64) / 4)
    assert made.auroc == pytest.approx((1.0 + 1.0 + 0.5) / 3)
    np.testing.assert_allclose(made.believed, [-0.2, 0.5])
    np.testing.assert_allclose(made.found, [-0.5, 0.5])


def test_a_gain_foretold_the_wrong_way_round_is_not_reliable() -> None:
    gains, found = np.array([0.9, 0.8, -0.7]), np.array([1.0, 1.0, -1.0])
    right = reliability_of_gain("x", gains, found, np.ones(3))
    wrong = reliability_of_gain("x", -gains, found, np.ones(3))
    assert right.auroc == 1.0
    assert wrong.auroc == 0.0
    assert wrong.error > right.error + 1
