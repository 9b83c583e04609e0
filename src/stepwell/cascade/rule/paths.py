"""Recorded paths of prompts through all stages, what they cost, and what became of them.

Owns the arrays that stopping rules are fitted on and replayed over, and the checks of their shapes.
Knows nothing of rules, models or predictors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stepwell.errors import DataError, ShapeError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False, init=False)
class Paths:
    """What was believed and what was true of N prompts on which all K stages were run.

    beliefs[i, k, j-1] is Pr(stage j's answer is good | all seen after stage k), k = 0..K. So held,
    a rule that skips a stage knows what its answer would have shown; beliefs [N, 2^K, K] leave that
    out, with beliefs[i, s] held after just the stages of state s were run (bit n-1 for stage n).
    good[i, j-1] is the label of stage j's answer in [0, 1] (a share, where answers are sampled);
    weights[i] >= 0.
    """

    beliefs: FloatArray
    good: FloatArray
    weights: FloatArray

    def __init__(
        self, beliefs: npt.ArrayLike, good: npt.ArrayLike, weights: npt.ArrayLike | None = None
    ) -> None:
        labels = np.asarray(good, dtype=np.float64)
        if labels.ndim != 2 or labels.shape[1] < 1:
            raise ShapeError(f"good is {list(labels.shape)}, expected [N, K] with K >= 1.")
        shape = len(labels), labels.shape[1] + 1, labels.shape[1]
        if np.shape(beliefs)[1:2] == (1 << labels.shape[1],):
            shape = len(labels), 1 << labels.shape[1], labels.shape[1]
        ones = np.ones(len(labels)) if weights is None else weights
        object.__setattr__(self, "beliefs", _checked("beliefs", beliefs, shape, highest=1.0))
        object.__setattr__(self, "good", _checked("good", labels, labels.shape, highest=1.0))
        object.__setattr__(self, "weights", _checked("weights", ones, shape[:1]))
        if len(self) and not self.weights.any():
            raise DataError("all weights are 0, expected at least one prompt that counts.")

    def __len__(self) -> int:
        return len(self.good)

    @property
    def num_stages(self) -> int:
        """K."""
        return int(self.good.shape[1])

    @property
    def effective_count(self) -> float:
        """How many equally weighted prompts these are worth (Kish): N where weights are equal."""
        return float(self.weights.sum() ** 2 / (self.weights**2).sum()) if len(self) else 0.0

    def after(self, state: int) -> FloatArray:
        """The beliefs held after the stages of a state were run, [N, K]."""
        by_state = self.beliefs.shape[1] > self.num_stages + 1
        held: FloatArray = self.beliefs[:, state if by_state else state.bit_length()]
        return held

    def take(self, rows: IntArray | BoolArray | slice) -> Paths:
        """The paths of some of the prompts."""
        return Paths(self.beliefs[rows], self.good[rows], self.weights[rows])

    def mean(self, values: FloatArray) -> float:
        """The weighted mean over prompts of values [N]."""
        return float(np.average(values, weights=self.weights))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a rule did with N prompts: whose answer it returned, what it ran and what it paid."""

    stage_returned: IntArray  # [N], 1..K
    stages_run: BoolArray  # [N, K]
    cost: FloatArray  # [N], in the unit of the costs
    good: FloatArray  # [N], the label of the answer returned


def incremental_costs(costs: npt.ArrayLike, num_prompts: int, num_stages: int) -> FloatArray:
    """Costs as [N, K, K]: [i, k, n-1] is what running stage n costs prompt i after stage k < n.

    Accepts that shape; [K, K] where all prompts cost the same; or [K] where a stage also costs the
    same whatever ran before. Entries with n <= k are not read and come back as 0.
    Raises ShapeError, and DataError where a cost is negative or not finite.
    """
    given = np.asarray(costs, dtype=np.float64)
    full = (num_prompts, num_stages, num_stages)
    if given.shape not in (full, full[1:], full[2:]):
        raise ShapeError(
            f"costs are {list(given.shape)}, expected {list(full)}, {list(full[1:])} "
            f"or {list(full[2:])} for {num_stages} stages and {num_prompts} prompts."
        )
    matrix = np.triu(given if given.ndim > 1 else np.tile(given, (num_stages, 1)))
    return np.broadcast_to(_checked("costs", matrix, matrix.shape), full)


def _checked(
    name: str, values: npt.ArrayLike, shape: Sequence[int], *, highest: float = np.inf
) -> FloatArray:
    """Values as float64 of the given shape, all finite and in [0, highest]."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != tuple(shape):
        raise ShapeError(f"{name} is {list(array.shape)}, expected {list(shape)}.")
    wrong = ~(np.isfinite(array) & (array >= 0) & (array <= highest))
    if wrong.any():
        where = tuple(int(index) for index in np.argwhere(wrong)[0])
        limit = "0 or more and finite" if np.isinf(highest) else f"between 0 and {highest:g}"
        raise DataError(f"{name}{list(where)} is {array[where]}, expected a number {limit}.")
    return array
