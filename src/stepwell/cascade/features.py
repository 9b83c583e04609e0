"""What an answer's own token log-probabilities say about it, as a fixed row of numbers.

Sums and means of log-probabilities fall with length, so quantiles, the minimum and the length
itself stand beside the mean. Owns the list of features; weighing them is the predictor's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from stepwell.cascade.paths import FloatArray, IntArray
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
AGREEMENT = FEATURES.index("agreement")


def answer_features(
    logprobs: Sequence[float] | FloatArray,
    *,
    margins: Sequence[float] | FloatArray | None = None,
    agrees: bool | None = None,
) -> FloatArray:
    """The features of one answer, [len(FEATURES)]; NaN where one cannot be known.

    logprobs are the natural log-probabilities of the answer's tokens; margins, one a token, by how
    much each beat the runner-up; agrees says whether the answer equals that of the stage right
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
        row[AGREEMENT] = float(agrees)
    return row


def batch_features(
    logprobs: Sequence[Sequence[float]], agrees: FloatArray | None = None
) -> FloatArray:
    """The features of N answers, [N, len(FEATURES)]; agrees is [N], 1, 0 or NaN where unknown.

    All at once what `answer_features` gives one by one. Raises DataError where one is NaN.
    """
    lengths = np.fromiter(map(len, logprobs), dtype=np.int64, count=len(logprobs))
    values = _numbers("logprobs", list(chain.from_iterable(logprobs))).clip(min=LOWEST_LOGPROB)
    padded = np.full((len(lengths), max(lengths.max(initial=0), 1)), np.nan)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = values
    means = np.nansum(padded, axis=1) / np.where(lengths, lengths, np.nan)
    padded.sort(axis=1)  # NaN comes last
    rows = np.full((len(lengths), len(FEATURES)), np.nan)
    rows[:, 0:4] = _quantiles(padded, lengths)
    rows[:, 4] = means
    rows[:, 5:7] = np.exp(rows[:, [0, 4]])
    rows[:, 7] = np.log1p(lengths)
    if agrees is not None:
        rows[:, AGREEMENT] = agrees
    return rows


def seen_features(features: FloatArray, state: int) -> FloatArray:
    """What is known after just the stages of a state (bit n-1 for stage n) were run, [N, k, F].

    features [N, K, F] are those of all stages, run in order; k is the last stage of the state. NaN
    where a stage was skipped; agreement, too, where the stage right before was.
    """
    run = state >> np.arange(state.bit_length()) & 1 == 1
    seen: FloatArray = np.where(run[:, None], features[:, : len(run)], np.nan)
    seen[:, 1:, AGREEMENT][:, ~run[:-1]] = np.nan
    return seen


def _quantiles(ordered: FloatArray, lengths: IntArray) -> FloatArray:
    """The quantiles of N rising rows [N, T] of which the first `lengths` entries count, [N, Q]."""
    places = np.multiply.outer((lengths - 1).clip(min=0), QUANTILES)
    below = places.astype(np.int64)
    rows = np.arange(len(ordered))[:, None]
    low, high = ordered[rows, below], ordered[rows, np.ceil(places).astype(np.int64)]
    between: FloatArray = low + (places - below) * (high - low)
    return between


def _numbers(name: str, values: npt.ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if np.isnan(array).any():
        raise DataError(f"{name} hold NaN: the stage's logits were not finite.")
    return array
