"""The closed-loop solution of optimal stopping with recall and skipping, from recorded paths.

Going on costs its best fixed plan plus a residual, which is negative as far as it helps to see the
next answer before deciding again. The residual is averaged over the calibration prompts that share
a cell of the state, backward from the last stage, each prompt along its own path; no transition
matrix is estimated.
Owns the solver and its tables; prices and the policy's face are in stopping.py.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import chain
from math import isfinite

import numpy as np

from stepwell.cascade.rule.outlook import Outlook, detours, look_ahead
from stepwell.cascade.rule.paths import BoolArray, FloatArray, IntArray, Paths
from stepwell.errors import DataError

SPLIT_BELIEF_ABOVE = 1_000  # prompts; with fewer, a second axis of cells costs more than it tells
BELIEF_BINS = 3
LEAST_IN_BIN = 8  # prompts, where residuals are shrunk: their scatter must be known
ROUNDING = 1e-9  # values nearer than this are the same, in the unit of the costs
RESIDUAL_FLOOR = 1e-18  # a variance, far below any cost; keeps exact data from dividing by zero


@dataclass(frozen=True)
class Table:
    """The residuals of one state by cell, with their posterior standard deviations.

    A cell is a bin of the margin times a bin of the belief kept; residual[cell][action], where
    action 0 goes on to the next stage, 1 skips one, and so on.
    """

    margin_edges: tuple[float, ...]
    kept_edges: tuple[float, ...]
    residual: tuple[tuple[float, ...], ...]
    deviation: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        num_cells = (len(self.margin_edges) + 1) * (len(self.kept_edges) + 1)
        rows = (*self.residual, *self.deviation)
        numbers = (*self.margin_edges, *self.kept_edges, *chain.from_iterable(rows))
        if len(self.residual) != num_cells or len(self.deviation) != num_cells:
            raise DataError(f"a table of {num_cells} cells holds {len(self.residual)} of them.")
        if not all(map(isfinite, numbers)):
            raise DataError("a table holds a number that is not finite.")

    def lookup(self, outlook: Outlook) -> tuple[FloatArray, FloatArray]:
        """Residuals and standard deviations for each prompt and action, both [N, K - k]."""
        cells = _cells(self.margin_edges, self.kept_edges, outlook)
        return np.array(self.residual)[cells], np.array(self.deviation)[cells]

    def cell(self, margin: float, kept: float) -> int:
        """The cell of a single prompt."""
        column = bisect_right(self.kept_edges, kept)
        return bisect_right(self.margin_edges, margin) * (len(self.kept_edges) + 1) + column


@dataclass(frozen=True)
class SolverOptions:
    """How residuals are estimated: number of quantile bins, shrinkage, and folds (1: in sample)."""

    bins: int = 8
    shrink: bool = True
    folds: int = 5


def choose(
    outlook: Outlook, residual: FloatArray, deviation: FloatArray, kappa: float
) -> tuple[BoolArray, IntArray, FloatArray]:
    """Whether each prompt goes on, the action it would go on with, and the gain of that, all [N].

    Goes on iff the advantage A over stopping has A - kappa * sd(A) > 0; ties stop. In state 0
    nothing was run and everything goes on that can.
    """
    quoted = outlook.plans + residual
    action = quoted.argmin(axis=1)
    rows = np.arange(len(action))
    advantage = outlook.stop_loss - quoted[rows, action]
    going = advantage - kappa * deviation[rows, action] > 0
    going |= (outlook.state == 0) & (advantage > -np.inf)
    return going, action, advantage


def solve(
    paths: Paths,
    costs: FloatArray,
    quoted: FloatArray,
    price: float,
    kappa: float,
    options: SolverOptions,
) -> tuple[Table, ...]:
    """One table for each state, in the order of the states' bits; costs are [N, K, K].

    Plans are made with the costs quoted, also [N, K, K]; what is backed up was paid.

    What is backed up is what the action chosen came to on the prompt's own path, unpenalised; with
    folds, chosen by tables in which the prompt had no part, so that the least of several noisy
    estimates is not taken at its word.
    """
    shortest = detours(quoted)
    rows = np.arange(len(paths))
    values: dict[int, FloatArray] = {}
    tables: dict[int, Table] = {}
    for state in reversed(range(1 << paths.num_stages)):
        last = state.bit_length()
        outlook = look_ahead(state, paths.after(state), quoted, shortest, price)
        if last == paths.num_stages:
            values[state], tables[state] = outlook.stop_loss, Table((), (), ((),), ((),))
            continue
        onward = [values[state | 1 << stage] for stage in range(last, paths.num_stages)]
        targets = costs[:, last, last:] + np.stack(onward, axis=1)
        tables[state], residual, deviation = _fit_table(
            outlook, targets - outlook.plans, paths.weights, options
        )
        going, action, _ = choose(outlook, residual, deviation, kappa)
        values[state] = np.where(going, targets[rows, action], outlook.stop_loss)
    return tuple(tables[state] for state in range(len(tables)))


def _fit_table(
    outlook: Outlook, residual: FloatArray, weights: FloatArray, options: SolverOptions
) -> tuple[Table, FloatArray, FloatArray]:
    """The table of one state, and the residuals [N, A] and deviations that the solver acts on."""
    most = max(1, len(weights) // LEAST_IN_BIN) if options.shrink else options.bins
    margin_edges = quantile_edges(outlook.margin, min(options.bins, most))
    split = BELIEF_BINS if len(weights) > SPLIT_BELIEF_ABOVE else 1
    kept_edges = quantile_edges(outlook.kept, split)
    cells = _cells(margin_edges, kept_edges, outlook)
    num_cells = (len(margin_edges) + 1) * (len(kept_edges) + 1)
    folds = np.arange(len(weights)) % min(options.folds, len(weights))
    moments = _moments(folds * num_cells + cells, residual, weights, num_cells, folds.max() + 1)
    mean, deviation = _estimate(moments.sum(axis=0), options.shrink)
    table = Table(margin_edges, kept_edges, _plain(mean), _plain(deviation))
    if len(moments) == 1:
        return table, mean[cells], deviation[cells]
    others = np.tensordot(1.0 - np.eye(len(moments)), moments, axes=1)
    unseen_mean, unseen_deviation = _estimate(others, options.shrink)
    return table, unseen_mean[folds, cells], unseen_deviation[folds, cells]


def quantile_edges(values: FloatArray, bins: int) -> tuple[float, ...]:
    """At most bins - 1 edges that part values into about equally many.

    Equal values, which rounding may have set apart, stay together: a cut falls at the next gap.
    """
    ordered = np.sort(values)
    gaps = np.flatnonzero(np.diff(ordered) > ROUNDING) + 1
    cuts = np.ceil(np.arange(1, bins) * len(ordered) / bins)
    ends = np.unique(np.searchsorted(gaps, cuts))
    right = gaps[ends[ends < len(gaps)]]
    middles = ordered[right - 1] + (ordered[right] - ordered[right - 1]) / 2
    return tuple(float(edge) for edge in middles)


def _cells(
    margin_edges: tuple[float, ...], kept_edges: tuple[float, ...], outlook: Outlook
) -> IntArray:
    by_margin = np.searchsorted(np.array(margin_edges), outlook.margin, side="right")
    by_kept = np.searchsorted(np.array(kept_edges), outlook.kept, side="right")
    return by_margin * (len(kept_edges) + 1) + by_kept


def _moments(
    slots: IntArray, residual: FloatArray, weights: FloatArray, num_cells: int, num_folds: int
) -> FloatArray:
    """Sums over the prompts of each fold and cell, [folds, cells, A, 4]: w, w^2, w r, w r^2."""
    size = num_folds * num_cells
    sums = np.empty((size, residual.shape[1], 4))
    sums[..., 0] = np.bincount(slots, weights, size)[:, None]
    sums[..., 1] = np.bincount(slots, weights**2, size)[:, None]
    for action, values in enumerate(residual.T):
        sums[:, action, 2] = np.bincount(slots, weights * values, size)
        sums[:, action, 3] = np.bincount(slots, weights * values**2, size)
    return sums.reshape(num_folds, num_cells, residual.shape[1], 4)


def _estimate(moments: FloatArray, shrink: bool) -> tuple[FloatArray, FloatArray]:
    """Mean residual of each cell and its posterior standard deviation, both [..., cells, A].

    Shrunk: a cell toward the state's mean, as far as the cells differ no more than chance would
    have them (DerSimonian and Laird 1986), and that mean toward 0 as far as it may be chance
    (James-Stein). Unshrunk: the plain mean; an empty cell takes the state's.
    """
    total, squares, first, second = np.moveaxis(moments, -1, 0)
    full = total > 0
    count = np.divide(total**2, squares, out=np.zeros_like(total), where=full)
    mean = np.divide(first, total, out=np.zeros_like(total), where=full)
    within = (second - total * mean**2).clip(min=0.0).sum(axis=-2, keepdims=True)
    num_full = full.sum(axis=-2, keepdims=True)
    freedom = 1.0 - num_full / np.maximum(count.sum(axis=-2, keepdims=True), num_full + 1.0)
    noise = within / total.sum(axis=-2, keepdims=True) / freedom + RESIDUAL_FLOOR
    sharpness = count / noise  # 1 / the variance of a cell's mean; 0 where the cell is empty
    if shrink:
        return _shrunk(mean, sharpness)
    overall = first.sum(axis=-2, keepdims=True) / total.sum(axis=-2, keepdims=True)
    return np.where(full, mean, overall), np.sqrt(1.0 / np.where(full, sharpness, 1.0 / noise))


def _shrunk(mean: FloatArray, sharpness: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Posterior means and standard deviations of cells, from their means and inverse variances."""

    def over_cells(values: FloatArray) -> FloatArray:
        summed: FloatArray = values.sum(axis=-2, keepdims=True)
        return summed

    pooled = over_cells(sharpness * mean) / over_cells(sharpness)
    scatter = over_cells(sharpness * (mean - pooled) ** 2)
    chance = over_cells(np.sign(sharpness)) - 1
    scale = over_cells(sharpness) - over_cells(sharpness**2) / over_cells(sharpness)
    spread = np.where(chance > 0, (scatter - chance) / np.where(scale > 0, scale, 1.0), 0.0)
    spread = spread.clip(min=0.0)
    precision = np.where(sharpness > 0, 1.0 / (spread + 1.0 / np.maximum(sharpness, 1e-300)), 0.0)
    centre = over_cells(precision * mean) / over_cells(precision)
    doubt = 1.0 / over_cells(precision)
    trust = (1.0 - doubt / np.maximum(centre**2, doubt)).clip(min=0.0)
    own = spread * sharpness / (1.0 + spread * sharpness)
    posterior = own * mean + (1.0 - own) * trust * centre
    variance = spread * (1.0 - own) + (1.0 - own) ** 2 * trust * doubt
    return posterior, np.sqrt(variance)


def _plain(values: FloatArray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in values)
