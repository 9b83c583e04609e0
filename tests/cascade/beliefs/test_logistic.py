"""Logistic regressions: at the minimum, alone as together, and deaf to noise by evidence."""

from __future__ import annotations

import numpy as np
import pytest

from stepwell.cascade.beliefs.logistic import (
    fit_by_evidence,
    fit_logistic,
    log_loss,
    logit,
    sigmoid,
)
from stepwell.cascade.rule.paths import FloatArray


def test_newton_finds_the_minimum() -> None:
    """The gradient of the objective vanishes there, by finite differences."""
    rng = np.random.default_rng(13)
    design, labels = rng.normal(size=(40, 3)), rng.random(40)
    weights, ridge, start = rng.random(40), np.array([0.1, 1.0, 3.0]), rng.normal(size=3)

    def objective(beta: FloatArray) -> float:
        return log_loss(design @ beta, labels, weights) + ridge @ (beta - start) ** 2 / 2

    found = fit_logistic(design, labels, weights, ridge, start)
    for direction in np.eye(3) * 1e-5:
        slope = (objective(found + direction) - objective(found - direction)) / 2e-5
        assert abs(slope) < 1e-5
        assert objective(found + 100 * direction) > objective(found)
    # Plain Newton steps swing between two far sides here for ever.
    steep = fit_logistic(
        np.ones((1, 1)), np.zeros(1), np.ones(1), np.full(1, 1e-3), np.full(1, 20.0)
    )
    assert sigmoid(steep)[0] == pytest.approx(1e-3 * (20 - steep[0]), rel=1e-3)
    separable = np.array([[-1.0], [1.0]])
    far = fit_logistic(separable, np.array([0.0, 1.0]), np.ones(2), np.full(1, 1e-8), np.zeros(1))
    assert np.isfinite(far).all()
    assert far[0] > 5


def test_an_offset_is_a_constant_that_is_not_learned() -> None:
    rng = np.random.default_rng(0)
    design, labels = rng.normal(size=(30, 1)), (rng.random(30) < 0.8).astype(float)
    both = np.column_stack([np.ones(30), design])
    nailed, start = np.array([1e12, 1.0]), np.array([1.3, 0.0])
    with_constant = fit_logistic(both, labels, np.ones(30), nailed, start)
    with_offset = fit_logistic(design, labels, np.ones(30), np.ones(1), np.zeros(1), 1.3)
    assert with_offset[0] == pytest.approx(with_constant[1], rel=1e-6)


def simulated(
    num_prompts: int, seed: int, informative: int = 2, noise: int = 20
) -> tuple[FloatArray, FloatArray]:
    """A design with a constant, inputs that matter and inputs that do not; two kinds of label."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(num_prompts, informative + noise))
    logits = 0.5 + np.outer([1.2, -0.8], inputs[:, :informative].sum(axis=1))
    labels = (rng.random(logits.shape) < sigmoid(logits)).astype(float)
    return np.column_stack([np.ones(num_prompts), inputs]), labels


def test_evidence_gives_noise_a_ridge_that_leaves_it_out() -> None:
    design, labels = simulated(400, seed=1)
    beta, ridge = fit_by_evidence(design, labels, np.ones((1, 400)), np.zeros((2, 23)))
    assert ridge[0, 0] == 1.0
    assert ridge[0, 1:3].max() < 3.0
    assert np.median(ridge[0, 3:]) > 100.0
    fresh, truth = simulated(4_000, seed=2)
    ours = log_loss(beta[0] @ fresh.T, truth, np.ones(truth.shape))
    for fixed in (0.3, 3.0, 30.0):  # no single ridge does as well
        same = np.append(1.0, np.full(22, fixed))
        each = [fit_logistic(design, kind, np.ones(400), same, np.zeros(23)) for kind in labels]
        assert ours < log_loss(np.stack(each) @ fresh.T, truth, np.ones(truth.shape))


def test_many_regressions_at_once_are_those_of_each_alone() -> None:
    design, labels = simulated(60, seed=3, noise=2)
    weights = np.random.default_rng(4).uniform(0.0, 2.0, size=(3, 60))
    weights[0, :20] = 0.0
    start = np.zeros((2, 5))
    start[:, 0] = logit(labels.mean(axis=1))
    beta, ridge = fit_by_evidence(design, labels, weights, start)
    for way in range(3):
        alone = fit_by_evidence(design, labels, weights[way : way + 1], start)
        np.testing.assert_allclose(alone[1][0], ridge[way], rtol=1e-3)
        for kind in range(2):
            again = fit_logistic(design, labels[kind], weights[way], ridge[way], start[kind])
            np.testing.assert_allclose(again, beta[way, kind], atol=1e-5)


def test_a_weight_of_0_is_as_good_as_absence() -> None:
    design, labels = simulated(50, seed=5, noise=2)
    weights = np.where(np.arange(50) < 30, 1.0, 0.0)
    start = np.zeros((2, 5))
    held = fit_by_evidence(design, labels, weights[None], start)
    absent = fit_by_evidence(design[:30], labels[:, :30], weights[None, :30], start)
    np.testing.assert_allclose(held[0], absent[0], atol=1e-8)
    np.testing.assert_allclose(held[1], absent[1], rtol=1e-8)
