"""How likely each stage's answer is good enough, given what was seen so far: the thin predictor.

After stage k there is one regularised logistic head for every stage j, over the features of the
answers up to k, so earlier answers are scored anew when later ones arrive. Each belief is drawn
toward stage j's base rate where few prompts like this one were seen, and calibrated on held-out
folds. Owns the beliefs; what is done with them is stopping.py's. The rest of the package
knows `fit`, `beliefs`, `paths`, `save` and `load` only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from stepwell.cascade.calibration import calibrate, fit_curve
from stepwell.cascade.documents import Array, from_document, to_document
from stepwell.cascade.logistic import fit_logistic, log_loss, logit, sigmoid
from stepwell.cascade.paths import FloatArray
from stepwell.config import write_json
from stepwell.errors import DataError, ShapeError

FOLDS = 5
RIDGES = (1.0, 10.0, 100.0)  # in prompts; the one with the least held-out loss is taken, for each k
FARTHEST = 4.0  # standard deviations from the mean at which a feature is cut off
STRONGEST = 1e6  # prompts that a base rate counts as where the features say nothing


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads after a stage k, one for each stage j; D = 1 + k * F inputs, the first constant."""

    weights: Array  # [K, D]
    spread: Array  # [D, D]: x spread x is 1 / the number of prompts like x
    strength: Array  # [K], the prompts that the base rate counts as
    curves: Array  # [K, 1 + 2M], as `calibrate` reads them

    def beliefs(self, design: FloatArray, base: FloatArray) -> FloatArray:
        """Beliefs [..., K] from inputs [..., D] and base rates [K]."""
        raw = sigmoid(design @ self.weights.T)
        like = 1.0 / ((design @ self.spread) * design).sum(axis=-1, keepdims=True)
        shrunk = (like * raw + self.strength * base) / (like + self.strength)
        return sigmoid(calibrate(logit(shrunk), logit(base), self.curves))


@dataclass(frozen=True, eq=False)
class Predictor:
    """Calibrated heads for every (k, j), over features [K, F] in the caller's own order."""

    centre: Array  # [K, F]
    scale: Array  # [K, F]
    base: Array  # [K], how often each stage is good
    heads: tuple[Heads, ...]  # after stages 1..K

    KIND: ClassVar[str] = "quality predictor"
    VERSION: ClassVar[int] = 1

    def __post_init__(self) -> None:
        width = self.centre.shape[-1]
        expected = [(len(self.base), 1 + k * width) for k in range(1, len(self.base) + 1)]
        if [head.weights.shape for head in self.heads] != expected:
            raise DataError(f"a predictor of {len(self.base)} stages has heads of other shapes.")

    @property
    def num_stages(self) -> int:
        """K."""
        return len(self.base)

    @classmethod
    def fit(
        cls, features: npt.ArrayLike, good: npt.ArrayLike, weights: npt.ArrayLike | None = None
    ) -> Self:
        """The predictor learned from N prompts on which all stages were run.

        features are [N, K, F], NaN where unknown; good [N, K] in [0, 1]; weights [N]. The prompts
        must not be those that a stopping rule is then fitted on. Without any, beliefs are 1/2.
        """
        labels = np.asarray(good, dtype=np.float64)
        values = np.asarray(features, dtype=np.float64)
        if labels.ndim != 2 or values.ndim != 3 or values.shape[:2] != labels.shape:
            raise ShapeError(
                f"features are {list(values.shape)} and good {list(labels.shape)}, "
                f"expected [N, K, F] and [N, K]."
            )
        counts = _counts(np.ones(len(labels)) if weights is None else weights, len(labels))
        centre, scale = _standards(values, counts)
        base = (counts @ labels + 0.5) / (counts.sum() + 1.0)
        inputs = _standardised(values, centre, scale)
        heads = tuple(
            _fit_heads(_design(inputs, k), labels, counts, base)
            for k in range(1, labels.shape[1] + 1)
        )
        return cls(centre, scale, base, heads)

    def beliefs(self, features_so_far: FloatArray, k: int) -> FloatArray:
        """Pr(stage j's answer is good | answers up to k), [..., K], from features [..., k, F].

        The row of a stage that was skipped is NaN and counts as average. k = 0: the base rates.
        """
        width = self.centre.shape[1]
        if features_so_far.shape[-2:] != (k, width) or k > self.num_stages:
            raise ShapeError(
                f"features so far are {list(features_so_far.shape)}, "
                f"expected [..., {k}, {width}] of at most {self.num_stages} stages."
            )
        if k == 0:
            return np.broadcast_to(self.base, (*features_so_far.shape[:-2], self.num_stages))
        inputs = _standardised(features_so_far, self.centre[:k], self.scale[:k])
        return self.heads[k - 1].beliefs(_design(inputs, k), self.base)

    def paths(self, features: npt.ArrayLike) -> FloatArray:
        """The beliefs of N prompts after every stage, [N, K + 1, K], from features [N, K, F]."""
        values = self._whole(features)
        return np.stack(
            [self.beliefs(values[:, :k], k) for k in range(self.num_stages + 1)], axis=1
        )

    def paths_by_state(self, features: npt.ArrayLike) -> FloatArray:
        """The beliefs of N prompts after every set of stages, [N, 2^K, K]: bit n-1 for stage n.

        As `beliefs` gives them where the stages not in the set were skipped.
        """
        values = self._whole(features)
        after = []
        for state in range(1 << self.num_stages):
            k = state.bit_length()
            run = state >> np.arange(k) & 1 == 1
            after.append(self.beliefs(np.where(run[:, None], values[:, :k], np.nan), k))
        return np.stack(after, axis=1)

    def _whole(self, features: npt.ArrayLike) -> FloatArray:
        values = np.asarray(features, dtype=np.float64)
        if values.ndim != 3 or values.shape[1:] != self.centre.shape:
            expected = ", ".join(str(size) for size in self.centre.shape)
            raise ShapeError(f"features are {list(values.shape)}, expected [N, {expected}].")
        return values

    def save(self, path: str | Path) -> None:
        """Write the predictor as JSON, whole or not at all."""
        write_json(path, to_document(self, self.KIND, self.VERSION))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The predictor that `save` wrote. Raises FormatError where it is newer, else DataError."""
        try:
            plain = json.loads(Path(path).read_text(encoding="utf-8"))
        except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{path} cannot be read as JSON: {error}.") from None
        return from_document(cls, plain, cls.KIND, cls.VERSION)


def _counts(weights: npt.ArrayLike, num_prompts: int) -> FloatArray:
    """Weights scaled so that they sum to the effective number of prompts."""
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (num_prompts,):
        raise ShapeError(f"weights are {list(given.shape)}, expected [{num_prompts}].")
    if num_prompts and not (np.isfinite(given).all() and given.min() >= 0 and given.any()):
        raise DataError("weights must be finite and 0 or more, and not all 0.")
    scale = given.sum() / (given**2).sum() if num_prompts else 1.0
    counts: FloatArray = given * scale
    return counts


def _standards(features: FloatArray, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of each feature where known, both [K, F]; 0 and 1 if never."""
    known = np.isfinite(features)
    share = known * counts[:, None, None]
    total = np.maximum(share.sum(axis=0), 1e-300)
    values = np.where(known, features, 0.0)
    centre = (share * values).sum(axis=0) / total
    spread = np.sqrt((share * (values - centre) ** 2).sum(axis=0) / total)
    return centre, np.where(spread > 1e-12, spread, 1.0)


def _standardised(features: FloatArray, centre: FloatArray, scale: FloatArray) -> FloatArray:
    """Features in standard deviations from their means, cut off; the unknown count as average."""
    inputs = np.clip((features - centre) / scale, -FARTHEST, FARTHEST)
    return np.where(np.isnan(inputs), 0.0, inputs)


def _design(inputs: FloatArray, k: int) -> FloatArray:
    """A constant and the inputs of stages 1..k, [..., 1 + k * F]."""
    seen = inputs[..., :k, :]
    flat = seen.reshape(*seen.shape[:-2], k * seen.shape[-1])
    return np.concatenate([np.ones((*flat.shape[:-1], 1)), flat], axis=-1)


def _fit_heads(design: FloatArray, good: FloatArray, counts: FloatArray, base: FloatArray) -> Heads:
    """The heads after one stage: ridge, strength, curves from held-out folds, weights from all."""
    trials = [_held_out(design, good, counts, base, ridge) for ridge in RIDGES]
    columns = range(len(base))
    losses = [
        sum(log_loss(logit(raw[:, j]), good[:, j], counts) for j in columns) for raw, _ in trials
    ]
    chosen = int(np.argmin(losses))
    raw, like = trials[chosen]
    strength = _strength(raw, good, counts, base)
    shrunk = logit((like * raw + strength * base) / (like + strength))
    curves = [fit_curve(shrunk[:, j], good[:, j], counts, float(logit(base[j]))) for j in columns]
    weights, spread = _fit_weights(design, good, counts, base, RIDGES[chosen])
    return Heads(weights, spread, strength, np.stack(curves))


def _held_out(
    design: FloatArray, good: FloatArray, counts: FloatArray, base: FloatArray, ridge: float
) -> tuple[FloatArray, FloatArray]:
    """Each prompt's uncalibrated beliefs [N, K] and its like [N, 1], from folds that lack it."""
    raw, like = np.empty(good.shape), np.empty((len(good), 1))
    folds = np.arange(len(good)) % FOLDS
    for fold in range(min(FOLDS, len(good))):
        inside, outside = folds != fold, folds == fold
        weights, spread = _fit_weights(design[inside], good[inside], counts[inside], base, ridge)
        rows = design[outside]
        raw[outside] = sigmoid(rows @ weights.T)
        like[outside] = 1.0 / ((rows @ spread) * rows).sum(axis=1, keepdims=True)
    return raw, like


def _fit_weights(
    design: FloatArray, good: FloatArray, counts: FloatArray, base: FloatArray, ridge: float
) -> tuple[FloatArray, FloatArray]:
    """Weights [K, D] and spread [D, D] of the heads after one stage."""
    penalty = np.full(design.shape[1], ridge)
    penalty[0] = 1.0  # the constant is held to the base rate by one prompt, not by the ridge
    weights = []
    for labels, rate in zip(good.T, base, strict=True):
        start = np.zeros(design.shape[1])
        start[0] = logit(rate)
        weights.append(fit_logistic(design, labels, counts, penalty, start))
    spread = np.linalg.inv((design.T * counts) @ design + np.diag(penalty)).astype(np.float64)
    return np.stack(weights), spread


def _strength(
    raw: FloatArray, good: FloatArray, counts: FloatArray, base: FloatArray
) -> FloatArray:
    """How many prompts each base rate counts as, by moments of the Beta that beliefs scatter in.

    A Beta with mean b and strength s has variance b (1 - b) / (s + 1). The covariance of held-out
    beliefs with labels estimates it; overfitting does not raise it, as it does their variance.
    """
    if len(good) < 2:
        return np.full(len(base), STRONGEST)
    share = counts / counts.sum()
    shared = share @ ((raw - share @ raw) * (good - share @ good))
    needed = base * (1.0 - base) / np.maximum(shared, 1e-12) - 1.0
    strength: FloatArray = np.clip(needed, 0.0, STRONGEST)
    return strength
