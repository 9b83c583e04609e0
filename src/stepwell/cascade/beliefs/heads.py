"""A head: the beliefs held after one set of stages, drawn toward base rates and calibrated.

Owns the head's arithmetic and its fit from held-out folds. What its inputs are, and the layer that
is shared by all heads, are predictor.py's and mlp.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepwell.cascade.beliefs.calibration import calibrate, fit_curve
from stepwell.cascade.beliefs.logistic import fit_by_evidence, logit, second_moments, sigmoid
from stepwell.cascade.beliefs.mlp import Trunk
from stepwell.cascade.rule.paths import BoolArray, FloatArray, IntArray

STRONGEST = 1e6  # prompts that a base rate counts as where the inputs say nothing
HIDDEN_RIDGE = 10.0  # of hidden units, where prompts alike are counted


@dataclass(frozen=True, eq=False)
class Head:
    """Beliefs in K stages from W inputs: a constant first, the units of the hidden layer last."""

    weights: FloatArray  # [K, W]
    spread: FloatArray  # [W, W]: x spread x is 1 / the number of prompts like x
    strength: FloatArray  # [K], the prompts that the base rate counts as
    curves: FloatArray  # [K, 1 + 2M], as `calibrate` reads them

    def beliefs(self, design: FloatArray, base: FloatArray) -> FloatArray:
        """Beliefs [..., K] from inputs [..., W] and base rates [K].

        Each is drawn toward its base rate as the mean of a Beta posterior would be: the rate counts
        as `strength` prompts against those like this one.
        """
        raw = sigmoid(design @ self.weights.T)
        like = 1.0 / ((design @ self.spread) * design).sum(axis=-1, keepdims=True)
        shrunk = (like * raw + self.strength * base) / (like + self.strength)
        return sigmoid(calibrate(logit(shrunk), logit(base), self.curves))


@dataclass(frozen=True, eq=False)
class Rows:
    """What one head learns from: inputs [R, D], labels [R, K], counts [R], and folds [R].

    used: the C inputs that its regressions read, of which the first is constant; the hidden layer
    reads all of them. Rows of one fold are predicted by what was learned without them.
    """

    inputs: FloatArray
    used: IntArray
    good: FloatArray
    counts: FloatArray
    folds: IntArray


@dataclass(frozen=True, eq=False)
class Regressions:
    """Weights [F + 1, K, C] and ridges [F + 1, C]: for each fold without it, at last from all."""

    weights: FloatArray
    ridge: FloatArray

    @classmethod
    def fit(cls, rows: Rows, base: FloatArray, num_folds: int) -> Regressions:
        """The logistic regressions of a head on labels whose base rates are [K]."""
        start = np.zeros((len(base), len(rows.used)))
        start[:, 0] = logit(base)
        learns = rows.counts * (np.arange(num_folds + 1)[:, None] != rows.folds)
        return cls(*fit_by_evidence(rows.inputs[:, rows.used], rows.good.T, learns, start))

    def log_odds(self, rows: Rows) -> FloatArray:
        """What each of them says, [F + 1, R, K]."""
        import torch

        weights = torch.tensor(self.weights).transpose(1, 2)
        said: FloatArray = (torch.tensor(rows.inputs[:, rows.used]) @ weights).numpy()
        return said


def fit_head(
    rows: Rows, regressions: Regressions, trunks: Sequence[Trunk], index: int, base: FloatArray
) -> Head:
    """The head with this index in the trunks, which were learned as the regressions were.

    Strength and curves come from rows held out; weights and spread from all of them.
    """
    raw, like = np.empty(rows.good.shape), np.empty((len(rows.good), 1))
    for fold, trunk in enumerate(trunks):
        weights = np.concatenate([regressions.weights[fold], trunk.outer[index]], axis=1)
        ridge = np.concatenate(
            [regressions.ridge[fold], np.full(trunk.inner.shape[1], HIDDEN_RIDGE)]
        )
        outside = rows.folds == fold
        spread, raw[outside], like[outside] = _fold(rows, trunk, weights, ridge, outside)
    strength = _strength(raw, rows.good, rows.counts, base)
    shrunk = logit((like * raw + strength * base) / (like + strength))
    curves = [
        fit_curve(shrunk[:, j], rows.good[:, j], rows.counts, float(logit(rate)))
        for j, rate in enumerate(base)
    ]
    return Head(weights, spread, strength, np.stack(curves))


def _fold(
    rows: Rows, trunk: Trunk, weights: FloatArray, ridge: FloatArray, outside: BoolArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The spread [W, W] of the rows inside; raw beliefs [O, K] and like [O, 1] of those outside."""
    import torch

    inputs = torch.tensor(rows.inputs)
    units = (inputs @ torch.tensor(trunk.inner)).tanh()
    design = torch.cat([inputs[:, rows.used], units], dim=1)
    learns = torch.tensor(rows.counts * ~outside)[None]
    precision = second_moments(design, learns)[0] + torch.tensor(ridge).diag()
    spread, out = precision.inverse(), design[torch.tensor(outside)]
    like = 1.0 / ((out @ spread) * out).sum(dim=1, keepdim=True)
    raw = (out @ torch.tensor(weights).T).sigmoid()
    return spread.numpy(), raw.numpy(), like.numpy()


def _strength(
    raw: FloatArray, good: FloatArray, counts: FloatArray, base: FloatArray
) -> FloatArray:
    """How many prompts each base rate counts as, by moments of the Beta that beliefs scatter in.

    A Beta with mean b and strength s has variance b (1 - b) / (s + 1). The covariance of held-out
    beliefs with labels estimates it; overfitting does not raise it, as it does their variance.
    """
    if len(good) < 2:
        return np.full(len(base), STRONGEST)
    share = (counts / counts.sum())[:, None]
    centred = raw - (share * raw).sum(axis=0), good - (share * good).sum(axis=0)
    shared = (share * centred[0] * centred[1]).sum(axis=0)
    needed = base * (1.0 - base) / np.maximum(shared, 1e-12) - 1.0
    strength: FloatArray = np.clip(needed, 0.0, STRONGEST)
    return strength
