"""A second solver of the same stopping problem, to check the first: Longstaff and Schwartz (2001).

Regresses what going on came to, along each calibration path, on a few functions of the beliefs, and
backs up the realised value. It shares the walk through the states with dynamic_programme.py and
none of its estimates: no bins, no open-loop plans, no shrinkage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stepwell.cascade.rule.outlook import Outlook, detours, look_ahead
from stepwell.cascade.rule.paths import (
    BoolArray,
    FloatArray,
    IntArray,
    Outcome,
    Paths,
    incremental_costs,
)
from stepwell.cascade.rule.replay import replay


@dataclass(frozen=True, eq=False)
class RegressionRule:
    """Continuation values that are quadratic in the beliefs: coefficients [D, K - k] a state."""

    price: float
    coefficients: tuple[FloatArray, ...]

    def __call__(self, outlook: Outlook) -> tuple[BoolArray, IntArray]:
        """Whether each prompt goes on, and with which action."""
        quoted = basis(outlook) @ self.coefficients[outlook.state]
        going = (quoted.min(axis=1) < outlook.stop_loss) | (outlook.state == 0)
        return going, quoted.argmin(axis=1)

    def run(self, paths: Paths, costs: npt.ArrayLike) -> Outcome:
        """What the rule does with each recorded path."""
        return replay(paths, costs, self.price, self)


def fit_by_regression(paths: Paths, costs: npt.ArrayLike, price: float) -> RegressionRule:
    """The rule of least squares on the calibration paths, for a price of one failure."""
    paid = incremental_costs(costs, len(paths), paths.num_stages)
    shortest = detours(paid)
    root = np.sqrt(paths.weights)[:, None]
    rows = np.arange(len(paths))
    values: dict[int, FloatArray] = {}
    fitted: list[FloatArray] = [np.empty((0, 0))] * (1 << paths.num_stages)
    for state in reversed(range(len(fitted))):
        last = state.bit_length()
        outlook = look_ahead(state, paths.after(state), paid, shortest, price)
        values[state] = outlook.stop_loss
        if last < paths.num_stages:
            onward = [values[state | 1 << stage] for stage in range(last, paths.num_stages)]
            targets = outlook.steps + np.stack(onward, axis=1)
            least_squares = np.linalg.lstsq(basis(outlook) * root, targets * root, rcond=1e-9)
            fitted[state] = least_squares[0].astype(np.float64)
            going, action = RegressionRule(price, tuple(fitted))(outlook)
            values[state] = np.where(going, targets[rows, action], outlook.stop_loss)
    return RegressionRule(price, tuple(fitted))


def basis(outlook: Outlook) -> FloatArray:
    """1, the belief kept, the beliefs in later stages, their squares and products, [N, D]."""
    later = outlook.beliefs[:, outlook.state.bit_length() :]
    linear = np.column_stack([np.ones(len(later)), outlook.kept, later])
    left, right = np.triu_indices(linear.shape[1])
    products: FloatArray = linear[:, left] * linear[:, right]
    return products
