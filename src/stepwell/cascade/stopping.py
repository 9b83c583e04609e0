"""When to stop: the policy that decides after each stage, and how it is fitted.

Pure arrays: recorded paths and costs in, decisions out. Costs are in units of the mean full
generation by the largest stage. Owns the price of a failure and the policy's face; the solver is in
dynamic_programme.py, the search for a lambda by budget or quality in tuning.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from stepwell.cascade.documents import from_document, to_document
from stepwell.cascade.dynamic_programme import SolverOptions, Table, choose, solve
from stepwell.cascade.outlook import Outlook, detours, fixed_plans, stages_of
from stepwell.cascade.paths import (
    BoolArray,
    FloatArray,
    IntArray,
    Outcome,
    Paths,
    incremental_costs,
)
from stepwell.cascade.replay import replay
from stepwell.errors import CascadeError, ConfigError, DataError, ShapeError

MAX_STAGES = 10  # the solver visits all 2^K sets of stages
FOLDS = 5
ONE_SIDED_95 = 1.6448536269514722  # the 95% point of the standard normal


class Decision(NamedTuple):
    """Stop and return `stage`'s answer, or run `stage` next."""

    stop: bool
    stage: int
    advantage: float  # what going on is believed to save, in the unit of the costs
    deviation: float  # the posterior standard deviation of that


@dataclass(frozen=True)
class Exchange:
    """The ladder's rate of exchange: what always-largest costs more for each failure it avoids."""

    price: float  # P0
    measured: bool  # False: the stages could not be told apart, so P0 is C_K, the largest's cost
    extra_cost: float  # C_K - C_1
    failures_avoided: float  # F_1 - F_K
    lower_bound: float  # of F_1 - F_K, one-sided 95%

    @classmethod
    def measure(cls, paths: Paths, costs: npt.ArrayLike) -> Self:
        """The rate on calibration paths.

        The bound is Wald's with half an observation added to each cell of the paired table
        (Agresti and Min 2005), so that a handful of prompts cannot claim certainty.
        """
        if not len(paths):
            raise CascadeError(
                "a price relative to the ladder needs calibration paths, got none.",
                fix="collect paths, or give the price of a failure itself (price=...).",
            )
        direct = incremental_costs(costs, len(paths), paths.num_stages)[:, 0]
        largest = paths.mean(direct[:, -1])
        extra = largest - paths.mean(direct[:, 0])
        gain = paths.good[:, -1] - paths.good[:, 0]
        avoided = paths.mean(gain)
        count = paths.weights.sum() ** 2 / (paths.weights**2).sum()
        centre = count * avoided / (count + 2)
        spread = (count * paths.mean(gain**2) + 1) / (count + 2) - centre**2
        lower = centre - ONE_SIDED_95 * math.sqrt(spread / (count + 2))
        measured = lower > 0 and extra > 0
        price = extra / avoided if measured else largest
        return cls(price, measured, extra, avoided, lower)


@dataclass(frozen=True)
class Policy:
    """A fitted stopping rule with recall and skipping.

    costs[k][n-1] are the mean incremental costs, used where a request brings none of its own.
    tables hold one entry a state; without any, the policy is the open-loop plug-in.
    """

    price: float  # of one failure, P
    kappa: float
    costs: tuple[tuple[float, ...], ...]
    tables: tuple[Table, ...] = ()
    lam: float | None = None
    exchange: Exchange | None = None

    KIND: ClassVar[str] = "stopping policy"
    VERSION: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if any(len(row) != self.num_stages for row in self.costs):
            raise DataError("a policy's costs are not square.")
        if len(self.tables) not in (0, 1 << self.num_stages):
            raise DataError(
                f"a policy of {self.num_stages} stages has {len(self.tables)} tables, "
                f"expected none or {1 << self.num_stages}."
            )

    @property
    def num_stages(self) -> int:
        """K."""
        return len(self.costs)

    @cached_property
    def _shortest(self) -> list[list[float]]:
        return _as_lists(detours(np.array(self.costs)))

    @cached_property
    def _stages_of(self) -> list[list[int]]:
        return [stages_of(state) for state in range(1 << self.num_stages)]

    def decide(
        self,
        stage: int,
        beliefs: Sequence[float],
        *,
        seen: Iterable[int] | None = None,
        costs: Sequence[Sequence[float]] | None = None,
    ) -> Decision:
        """What to do after `stage` (0: only the prompt was seen), given beliefs in all K stages.

        seen are the stages run, whose answers can be returned; all up to `stage` if not given.
        costs are this request's own, [K][K] as in `costs`; rows before `stage` are not read.
        """
        self._check(stage, beliefs)
        state = (1 << stage) - 1 if seen is None else self._state(stage, seen)
        kept, best = 0.0, 0
        for number in self._stages_of[state]:
            if not best or beliefs[number - 1] > kept:
                kept, best = beliefs[number - 1], number
        if stage == self.num_stages:
            return Decision(True, best, 0.0, 0.0)
        shortest = self._shortest if costs is None else _as_lists(detours(np.array(costs)))
        plans = fixed_plans(stage, kept, beliefs, costs or self.costs, shortest, self.price)
        action, advantage, deviation = self._weigh(state, kept, plans)
        if stage and advantage - self.kappa * deviation <= 0:
            return Decision(True, best, advantage, deviation)
        return Decision(False, stage + 1 + action, advantage, deviation)

    def _weigh(self, state: int, kept: float, plans: list[float]) -> tuple[int, float, float]:
        """The best action, its advantage over stopping, and that advantage's standard deviation."""
        stop_loss = self.price * (1.0 - kept)
        if not self.tables:
            value = min(plans)
            return plans.index(value), stop_loss - value, 0.0
        table = self.tables[state]
        cell = table.cell(stop_loss - min(plans), kept)
        quoted = [plan + more for plan, more in zip(plans, table.residual[cell], strict=True)]
        value = min(quoted)
        action = quoted.index(value)
        return action, stop_loss - value, table.deviation[cell][action]

    def _check(self, stage: int, beliefs: Sequence[float]) -> None:
        if not 0 <= stage <= self.num_stages:
            raise CascadeError(f"stage is {stage}, expected 0 to {self.num_stages}.")
        if len(beliefs) != self.num_stages:
            raise ShapeError(
                f"got {len(beliefs)} beliefs, expected one for each of {self.num_stages}."
            )
        for belief in beliefs:
            if not 0.0 <= belief <= 1.0:
                raise DataError(f"a belief is {belief}, expected a probability.")

    def _state(self, stage: int, seen: Iterable[int]) -> int:
        state = 0
        for number in seen:
            state |= 1 << (number - 1)
        if state.bit_length() != stage:
            raise CascadeError(
                f"the stages seen are {list(stages_of(state))}, none is after {stage}."
            )
        return state

    def run(self, paths: Paths, costs: npt.ArrayLike | None = None) -> Outcome:
        """What `decide` would do with each recorded path, step by step."""

        def rule(outlook: Outlook) -> tuple[BoolArray, IntArray]:
            if self.tables:
                residual, deviation = self.tables[outlook.state].lookup(outlook)
            else:
                residual = deviation = np.zeros(outlook.plans.shape)
            return choose(outlook, residual, deviation, self.kappa)

        return replay(paths, self.costs if costs is None else costs, self.price, rule)

    def to_plain(self) -> dict[str, Any]:
        """The policy as plain Python that JSON holds."""
        return to_document(self, self.KIND, self.VERSION)

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """The policy that `to_plain` wrote; FormatError where it is newer, DataError if damaged."""
        return from_document(cls, plain, cls.KIND, cls.VERSION)


def open_loop(costs: npt.ArrayLike, price: float) -> Policy:
    """The policy without data: after each stage the best fixed plan by the beliefs held there."""
    num_stages = np.shape(costs)[-1] if np.ndim(costs) else 0
    mean = incremental_costs(costs, 1, num_stages)[0]
    if not (math.isfinite(price) and price >= 0):
        raise ConfigError(f"the price of a failure is {price}, expected 0 or more and finite.")
    return Policy(float(price), 0.0, tuple(map(tuple, _as_lists(mean))))


def fit(
    paths: Paths,
    costs: npt.ArrayLike,
    lam: float = 1.0,
    kappa: float = 0.0,
    *,
    price: float | None = None,
    bins: int = 8,
    shrink: bool = True,
    cross_fit: bool = True,
) -> Policy:
    """The policy that minimises cost + price * failures on the calibration paths.

    costs as in `incremental_costs`. The price is lam times the ladder's own rate of exchange, or
    `price` in the unit of the costs. kappa > 0 goes on only where the gain is that many standard
    deviations sure; kappa < 0 is cautious about quality.
    """
    if paths.num_stages > MAX_STAGES:
        raise CascadeError(
            f"the ladder has {paths.num_stages} stages, at most {MAX_STAGES} are solved."
        )
    if not (math.isfinite(kappa) and math.isfinite(lam) and lam >= 0 and bins >= 1):
        raise ConfigError(
            f"lam={lam}, kappa={kappa}, bins={bins}: expected finite, lam >= 0, bins >= 1."
        )
    if price is None:
        exchange = Exchange.measure(paths, costs)
        policy = open_loop(_mean_costs(paths, costs), lam * exchange.price)
        policy = replace(policy, lam=lam, exchange=exchange)
    else:
        policy = open_loop(_mean_costs(paths, costs), price)
    if not len(paths):
        return policy
    paid = incremental_costs(costs, len(paths), paths.num_stages)
    options = SolverOptions(bins, shrink, FOLDS if cross_fit else 1)
    tables = solve(paths, paid, policy.price, kappa, options)
    return replace(policy, kappa=kappa, tables=tables)


def _mean_costs(paths: Paths, costs: npt.ArrayLike) -> npt.ArrayLike:
    """Costs [K, K] of the mean prompt; without prompts, the costs as given."""
    if not len(paths):
        return costs
    paid = incremental_costs(costs, len(paths), paths.num_stages)
    return np.average(paid, axis=0, weights=paths.weights)


def _as_lists(matrix: FloatArray) -> list[list[float]]:
    rows: list[list[float]] = matrix.tolist()
    return rows
