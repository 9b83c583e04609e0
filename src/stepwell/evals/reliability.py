"""How far beliefs are borne out: of answers believed in to 80%, are 80% right?

Pure arrays. Beliefs may be anybody's; prompts weigh as much as they are asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepwell.cascade.rule.paths import FloatArray, IntArray
from stepwell.errors import ShapeError

BINS = 10


@dataclass(frozen=True, eq=False)
class Reliability:
    """Beliefs against labels, in bins of equal weight.

    believed and found: mean belief and mean label of each bin. error: the mean gap between them
    (ECE). brier: the mean squared gap between a belief and its label. auroc: how often a right
    answer is believed in more than a wrong one, NaN where all are right or all are wrong.
    """

    name: str
    believed: FloatArray
    found: FloatArray
    error: float
    brier: float
    auroc: float


def reliability(
    name: str, beliefs: FloatArray, good: FloatArray, weights: FloatArray, bins: int = BINS
) -> Reliability:
    """The reliability of beliefs [N] in answers with labels [N] in [0, 1]; weights [N]."""
    if not beliefs.shape == good.shape == weights.shape == (len(weights),):
        raise ShapeError(
            f"beliefs are {list(beliefs.shape)}, good {list(good.shape)}, "
            f"weights {list(weights.shape)}, expected [N] each."
        )
    counted = weights > 0
    beliefs, good, share = beliefs[counted], good[counted], weights[counted] / weights.sum()
    place = _bins(beliefs, share, bins)
    mass, believed, found = (
        np.bincount(place, weights=values) for values in (share, share * beliefs, share * good)
    )
    return Reliability(
        name,
        believed / mass,
        found / mass,
        error=float(np.abs(believed - found).sum()),
        brier=float(share @ (beliefs - good) ** 2),
        auroc=_auroc(beliefs, good, share),
    )


def reliability_of_gain(
    name: str, gains: FloatArray, found: FloatArray, weights: FloatArray, bins: int = BINS
) -> Reliability:
    """The reliability of gains [N] believed in, against those found [N], both in [-1, 1].

    auroc: how often a gain that was found is believed to be larger than where there was none.
    """
    moved = reliability(name, (gains + 1.0) / 2, (found + 1.0) / 2, weights, bins)
    ranked = reliability(name, (gains + 1.0) / 2, (found > 0).astype(np.float64), weights, bins)
    return Reliability(
        name,
        2 * moved.believed - 1,
        2 * moved.found - 1,
        error=2 * moved.error,
        brier=4 * moved.brier,
        auroc=ranked.auroc,
    )


def _bins(beliefs: FloatArray, share: FloatArray, bins: int) -> IntArray:
    """The bin of each prompt, counted from 0 without gaps; equal beliefs are in the same one."""
    _, level = np.unique(beliefs, return_inverse=True)
    mass = np.bincount(level, weights=share)
    middle = mass.cumsum() - mass / 2
    places = np.minimum(middle * bins, bins - 1).astype(np.int64)
    _, dense = np.unique(places[level], return_inverse=True)
    return dense


def _auroc(beliefs: FloatArray, good: FloatArray, share: FloatArray) -> float:
    """Pr(a right answer is believed in more than a wrong one), half for equal beliefs."""
    _, level = np.unique(beliefs, return_inverse=True)
    right = np.bincount(level, weights=share * good)
    wrong = np.bincount(level, weights=share * (1.0 - good))
    pairs = right.sum() * wrong.sum()
    if not pairs > 0:
        return np.nan
    return float(right @ (wrong.cumsum() - wrong / 2) / pairs)
