"""Regularised logistic regression in float64, by Newton's method.

Convex and deterministic: the same arrays give the same weights. Knows nothing of stages or answers.
"""

from __future__ import annotations

import numpy as np

from stepwell.cascade.paths import FloatArray

MAX_STEPS = 50
TOLERANCE = 1e-9  # of the Newton decrement, in nats summed over the prompts


def sigmoid(logits: FloatArray) -> FloatArray:
    """Probabilities, without overflow."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


def logit(probabilities: FloatArray) -> FloatArray:
    """Log-odds; 0 and 1 are moved inside by less than 1e-12."""
    inside = np.clip(probabilities, 1e-12, 1.0 - 1e-12)
    log_odds: FloatArray = np.log(inside) - np.log1p(-inside)
    return log_odds


def log_loss(logits: FloatArray, labels: FloatArray, weights: FloatArray) -> float:
    """The weighted sum of -log Pr(label), in nats; labels may be shares in [0, 1]."""
    return float(weights @ (np.logaddexp(0.0, logits) - labels * logits))


def fit_logistic(
    design: FloatArray,
    labels: FloatArray,
    weights: FloatArray,
    ridge: FloatArray,
    start: FloatArray,
    offset: FloatArray | float = 0.0,
) -> FloatArray:
    """Coefficients [D] that minimise log loss + sum of ridge * (coefficient - start)^2 / 2.

    design is [N, D]; labels in [0, 1]; weights count prompts; ridge [D] must be positive; offset is
    added to the logits. Newton steps are halved until the objective falls.
    """

    def objective(beta: FloatArray) -> float:
        penalty = float(ridge @ (beta - start) ** 2) / 2
        return log_loss(design @ beta + offset, labels, weights) + penalty

    beta, value = start, objective(start)
    for _ in range(MAX_STEPS):
        chance = sigmoid(design @ beta + offset)
        slope = design.T @ (weights * (chance - labels)) + ridge * (beta - start)
        curvature = (design.T * (weights * chance * (1.0 - chance))) @ design + np.diag(ridge)
        step = np.linalg.solve(curvature, slope)
        if float(slope @ step) < TOLERANCE:
            break
        size = 1.0
        while size > 1e-6 and objective(beta - size * step) > value:
            size /= 2
        beta = beta - size * step
        value = objective(beta)
    return beta
