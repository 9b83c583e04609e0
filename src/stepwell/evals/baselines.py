"""What a cascade is measured against: rules that know less than a fitted policy, or everything.

Pure arrays. Each baseline gives the `Outcome` it has on recorded paths; costs are those of
`incremental_costs`. The open-loop rule is `open_loop` of cascade.rule.stopping. Curves through the
outcomes, and what lies between them, are in frontier.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from stepwell.cascade.rule.outlook import Outlook
from stepwell.cascade.rule.paths import (
    BoolArray,
    FloatArray,
    IntArray,
    Outcome,
    Paths,
    incremental_costs,
)
from stepwell.cascade.rule.replay import replay
from stepwell.errors import CascadeError, ShapeError
from stepwell.evals.frontier import hull_indices


def always(paths: Paths, costs: npt.ArrayLike, stage: int) -> Outcome:
    """Running one stage, and nothing else, for every prompt."""
    if not 1 <= stage <= paths.num_stages:
        raise CascadeError(f"stage is {stage}, expected 1 to {paths.num_stages}.")
    direct = incremental_costs(costs, len(paths), paths.num_stages)[:, 0]
    return _only(paths, np.full(len(paths), stage - 1), direct)


def every_stage(paths: Paths, costs: npt.ArrayLike) -> Outcome:
    """Running all stages in order for every prompt and returning the largest one's answer."""
    last = np.full(len(paths), paths.num_stages - 1)
    return _through(paths, last, path_costs(paths, costs))


def prompt_router(paths: Paths, costs: npt.ArrayLike, price: float) -> Outcome:
    """Picking one stage from the prompt alone, by cost + price * the failure believed in."""
    direct = incremental_costs(costs, len(paths), paths.num_stages)[:, 0]
    believed = direct + price * (1.0 - paths.after(0))
    return _only(paths, believed.argmin(axis=1), direct)


def myopic(paths: Paths, costs: npt.ArrayLike, price: float) -> Outcome:
    """Going up one stage at a time, as long as the next one is worth its cost if it is the last."""

    def rule(outlook: Outlook) -> tuple[BoolArray, IntArray]:
        last = outlook.state.bit_length()
        after = np.maximum(outlook.kept, outlook.beliefs[:, last])
        going = outlook.steps[:, 0] + price * (1.0 - after) < outlook.stop_loss
        return going | (outlook.state == 0), np.zeros(len(going), dtype=np.int64)

    return replay(paths, costs, price, rule)


def oracle(
    paths: Paths,
    costs: npt.ArrayLike,
    price: float = np.inf,
    *,
    pays: Literal["stage", "path"],
) -> Outcome:
    """The best that knowing every label could do, at a price of failure.

    pays="stage": only the stage returned is run. pays="path": stages are run in order up to it. At
    an infinite price that is the first right answer, and where there is none the cheapest stage,
    which for a path is stage 1.
    """
    paid = incremental_costs(costs, len(paths), paths.num_stages)[:, 0]
    if pays == "path":
        paid = path_costs(paths, costs)
    if np.isinf(price):
        best = paths.good == paths.good.max(axis=1, keepdims=True)
        chosen = np.where(best, paid, np.inf).argmin(axis=1)
    else:
        chosen = (paid + price * (1.0 - paths.good)).argmin(axis=1)
    return _through(paths, chosen, paid) if pays == "path" else _only(paths, chosen, paid)


def path_costs(paths: Paths, costs: npt.ArrayLike) -> FloatArray:
    """What running the stages in order up to each one costs, [N, K]."""
    paid = incremental_costs(costs, len(paths), paths.num_stages)
    steps = np.arange(paths.num_stages)
    total: FloatArray = paid[:, steps, steps].cumsum(axis=1)
    return total


@dataclass(frozen=True)
class ThresholdRule:
    """Going through some of the stages in order, up to the first that is confident enough."""

    stages: tuple[int, ...]
    thresholds: tuple[float, ...]  # one for each of them but the last, which always stops

    def run(self, confidence: FloatArray, paths: Paths, costs: npt.ArrayLike) -> Outcome:
        """What the rule does; confidence [N, K] is each stage's own in its own answer."""
        if confidence.shape != paths.good.shape:
            expected = list(paths.good.shape)
            raise ShapeError(f"confidence is {list(confidence.shape)}, expected {expected}.")
        paid = incremental_costs(costs, len(paths), paths.num_stages)
        cost, last = np.zeros(len(paths)), np.zeros(len(paths), dtype=np.int64)
        run = np.zeros(paths.good.shape, dtype=np.bool_)
        going, before = np.ones(len(paths), dtype=np.bool_), 0
        for stage, threshold in zip(self.stages, (*self.thresholds, -np.inf), strict=True):
            cost += np.where(going, paid[:, before, stage - 1], 0.0)
            last[going], run[going, stage - 1] = stage, True
            going, before = going & (confidence[:, stage - 1] < threshold), stage
        return Outcome(last, run, cost, paths.good[np.arange(len(paths)), last - 1])


def tune_thresholds(
    confidence: FloatArray, paths: Paths, costs: npt.ArrayLike, *, levels: int = 12
) -> tuple[ThresholdRule, ...]:
    """The threshold rules that are best on these paths at some price, by rising cost.

    Tried are all subsets of the stages and, for each, all vectors of `levels` quantiles of
    confidence, some (1 + levels)^K / levels rules. Best at some price are the corners of the hull
    of cost and quality.
    """
    rules = list(_threshold_rules(confidence, levels))
    outcomes = [rule.run(confidence, paths, costs) for rule in rules]
    cost = np.array([paths.mean(outcome.cost) for outcome in outcomes])
    quality = np.array([paths.mean(outcome.good) for outcome in outcomes])
    return tuple(rules[index] for index in hull_indices(cost, quality))


def _threshold_rules(confidence: FloatArray, levels: int) -> Iterator[ThresholdRule]:
    shares = np.arange(1, levels + 1) / (levels + 1)
    quantiles = np.quantile(confidence, shares, axis=0).T.tolist()
    num_stages = confidence.shape[1]
    for size in range(1, num_stages + 1):
        for stages in itertools.combinations(range(1, num_stages + 1), size):
            grids = [quantiles[stage - 1] for stage in stages[:-1]]
            for thresholds in itertools.product(*grids):
                yield ThresholdRule(stages, thresholds)


def _only(paths: Paths, index: IntArray, paid: FloatArray) -> Outcome:
    """The outcome of running a single stage for each prompt: its index [N], its cost in [N, K]."""
    rows = np.arange(len(paths))
    run = np.arange(paths.num_stages) == index[:, None]
    return Outcome(index + 1, run, paid[rows, index], paths.good[rows, index])


def _through(paths: Paths, index: IntArray, paid: FloatArray) -> Outcome:
    """The outcome of running all stages up to an index [N], and returning that one's answer."""
    rows = np.arange(len(paths))
    run = np.arange(paths.num_stages) <= index[:, None]
    return Outcome(index + 1, run, paid[rows, index], paths.good[rows, index])
