"""What an answer's own token log-probabilities say about it, as a fixed row of numbers.

Sums and means of log-probabilities fall with length, so quantiles, the minimum and the length
itself stand beside the mean. Owns the list of features; weighing them is the predictor's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stepwell.cascade.paths import FloatArray
from stepwell.errors import DataError, ShapeError

QUANTILES = (0.0, 0.1, 0.25, 0.5)
LOWEST_LOGPROB = -40.0  # below this a token was as good as impossible, however far below
FEATURES = (
    "logprob_minimum",
    "logprob_quantile_10",
    "logprob_quantile_25",
    "logprob_median",
    "logprob_mean",
    "probability_minimum",
    "probability_geometric_mean",
    "log_length",
    "margin_minimum",
    "margin_mean",
    "agreement",
)


def answer_features(
    logprobs: Sequence[float] | FloatArray,
    *,
    margins: Sequence[float] | FloatArray | None = None,
    agrees: bool | None = None,
) -> FloatArray:
    """The features of one answer, [len(FEATURES)]; NaN where one cannot be known.

    logprobs are the natural log-probabilities of the answer's tokens; margins, one a token, by how
    much each beat the runner-up; agrees says whether the answer equals that of the stage run
    before. Raises DataError where one is NaN.
    """
    row = np.full(len(FEATURES), np.nan)
    row[7] = np.log1p(len(logprobs))
    if len(logprobs):
        ordered = np.sort(_numbers("logprobs", logprobs).clip(min=LOWEST_LOGPROB))
        places = np.multiply(QUANTILES, len(ordered) - 1)
        row[0:4] = np.interp(places, np.arange(len(ordered)), ordered)
        row[4] = ordered.mean()
        row[5], row[6] = np.exp(ordered[0]), np.exp(row[4])
    if margins is not None and len(margins):
        if len(margins) != len(logprobs):
            raise ShapeError(f"got {len(margins)} margins for {len(logprobs)} log-probabilities.")
        values = _numbers("margins", margins)
        row[8], row[9] = values.min(), values.mean()
    if agrees is not None:
        row[10] = float(agrees)
    return row


def batch_features(
    logprobs: Sequence[Sequence[float]], agrees: FloatArray | None = None
) -> FloatArray:
    """The features of N answers, [N, len(FEATURES)]; agrees is [N], 1, 0 or NaN where unknown."""
    rows = np.empty((len(logprobs), len(FEATURES)))
    for row, answer in enumerate(logprobs):
        rows[row] = answer_features(answer)
    if agrees is not None:
        rows[:, FEATURES.index("agreement")] = agrees
    return rows


def _numbers(name: str, values: npt.ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if np.isnan(array).any():
        raise DataError(f"{name} hold NaN: the stage's logits were not finite.")
    return array
