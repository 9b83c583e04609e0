"""Calibration: a monotone map from the log-odds that a model gives to those that labels bear out.

Owns the map's shape and its fit on held-out predictions; knows nothing of stages or features.
"""

from __future__ import annotations

import numpy as np

from stepwell.cascade.beliefs.logistic import fit_logistic, logit, sigmoid
from stepwell.cascade.rule.paths import FloatArray

MOST_KNOTS = 10
PROMPTS_PER_KNOT = 20
KNOT_STRENGTH = 20.0  # prompts that the straight line counts as at each knot


def calibrate(logits: FloatArray, centre: FloatArray, curve: FloatArray) -> FloatArray:
    """Calibrated log-odds of logits [..., J] about their centres [J] by curves [J, 1 + 2M].

    A curve holds a slope about the centre, then M knots (rising) and the M values there; between
    knots the map is straight, beyond them it has slope 1.
    """
    num_knots = curve.shape[1] // 2
    straight = centre + curve[:, 0] * (logits - centre)
    if not num_knots:
        return straight
    bent = np.empty(straight.shape)
    for j, row in enumerate(curve):
        given, knots, values = straight[..., j], row[1 : 1 + num_knots], row[1 + num_knots :]
        beyond = given - np.minimum(np.maximum(given, knots[0]), knots[-1])
        bent[..., j] = np.interp(given, knots, values) + beyond
    return bent


def fit_curve(
    logits: FloatArray, labels: FloatArray, counts: FloatArray, centre: float
) -> FloatArray:
    """The curve [1 + 2M] for held-out logits [N]: first a slope, then bends where labels insist.

    The slope is a logistic regression held to 1 by one prompt. Knots lie at quantiles of the
    straight line; each is pulled to its prompts' share of labels, against the line's own weight,
    and kept in rising order by pooling neighbours.
    """
    offsets = (logits - centre)[:, None]
    slope = fit_logistic(offsets, labels, counts, np.ones(1), np.ones(1), centre).clip(min=0.0)
    straight = centre + slope * (logits - centre)
    num_knots = min(MOST_KNOTS, len(logits) // PROMPTS_PER_KNOT)
    parts = np.array_split(np.argsort(straight, kind="stable"), max(num_knots, 1))
    weight = np.array([counts[rows].sum() for rows in parts])
    if num_knots < 2 or not weight.all():
        return slope
    given = np.array([np.average(sigmoid(straight[rows]), weights=counts[rows]) for rows in parts])
    found = np.array([np.average(labels[rows], weights=counts[rows]) for rows in parts])
    drawn = (weight * found + KNOT_STRENGTH * given) / (weight + KNOT_STRENGTH)
    rising = pool_adjacent(drawn, weight + KNOT_STRENGTH)
    return np.concatenate([slope, logit(given), logit(rising)])


def pool_adjacent(values: FloatArray, weights: FloatArray) -> FloatArray:
    """The nearest values in weighted least squares that never fall (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        mean, total, size = float(value), float(weight), 1
        while blocks and blocks[-1][0] > mean:
            before, share, length = blocks.pop()
            mean = (before * share + mean * total) / (share + total)
            total, size = share + total, length + size
        blocks.append((mean, total, size))
    return np.concatenate([np.full(size, mean) for mean, _, size in blocks])
