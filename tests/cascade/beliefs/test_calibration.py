"""The calibration map: monotone, humble with few prompts, and right with many."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stepwell.cascade.beliefs.calibration import calibrate, fit_curve, pool_adjacent
from stepwell.cascade.beliefs.logistic import sigmoid
from stepwell.cascade.rule.paths import FloatArray

ZERO = np.zeros(1)


def mapped(logits: FloatArray, curve: FloatArray) -> FloatArray:
    return calibrate(logits[:, None], ZERO, curve[None])[:, 0]


def test_a_curve_bends_to_what_no_straight_line_fits() -> None:
    """Truth: a step. The straight line alone is off by more than a tenth on average."""
    rng = np.random.default_rng(0)

    def sample(size: int) -> tuple[FloatArray, FloatArray]:
        logits = rng.uniform(-3.0, 3.0, size)
        return logits, np.where(logits > 1.0, 0.95, 0.3)

    logits, chance = sample(4_000)
    labels = (rng.random(4_000) < chance).astype(float)
    curve = fit_curve(logits, labels, np.ones(4_000), 0.0)
    fresh, truth = sample(4_000)
    assert np.abs(sigmoid(mapped(fresh, curve)) - truth).mean() < 0.05
    assert np.abs(sigmoid(mapped(fresh, curve[:1])) - truth).mean() > 0.1


def test_a_curve_never_falls() -> None:
    rng = np.random.default_rng(1)
    grid = np.linspace(-8.0, 8.0, 400)
    for size in (0, 1, 15, 45, 300):
        logits = rng.normal(size=size)
        curve = fit_curve(logits, (rng.random(size) < 0.5).astype(float), np.ones(size), 0.0)
        assert (np.diff(mapped(grid, curve)) >= 0.0).all()


def test_without_prompts_it_changes_nothing() -> None:
    grid = np.linspace(-5.0, 5.0, 11)
    curve = fit_curve(np.empty(0), np.empty(0), np.empty(0), 0.0)
    np.testing.assert_array_equal(mapped(grid, curve), grid)


def test_overconfident_logits_are_flattened_about_the_centre() -> None:
    rng = np.random.default_rng(2)
    true = rng.normal(size=3_000)
    labels = (rng.random(3_000) < sigmoid(1.0 + true)).astype(float)
    curve = fit_curve(1.0 + 3.0 * true, labels, np.ones(3_000), 1.0)
    assert curve[0] == pytest.approx(1 / 3, abs=0.05)
    for kept in (curve, curve[:1]):
        found = calibrate(np.array([[1.0], [2.5]]), np.ones(1), kept[None])[:, 0]
        np.testing.assert_allclose(found, [1.0, 1.5], atol=0.2)


def test_pooling_gives_the_least_squares_rising_sequence() -> None:
    """Against a search over all ways to cut the sequence into blocks of equal value."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        values, weights = rng.normal(size=5), rng.uniform(0.2, 2.0, 5)
        best = np.inf
        for inner in itertools.chain.from_iterable(
            itertools.combinations(range(1, 5), size) for size in range(5)
        ):
            tried = np.empty(5)
            for start, end in itertools.pairwise((0, *inner, 5)):
                tried[start:end] = np.average(values[start:end], weights=weights[start:end])
            if (np.diff(tried) >= 0).all():
                best = min(best, weights @ (tried - values) ** 2)
        found = pool_adjacent(values, weights)
        assert (np.diff(found) >= 0).all()
        assert weights @ (found - values) ** 2 == pytest.approx(best)
