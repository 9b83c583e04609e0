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
from stepwell.cascade.rule.dynamic_programme import SolverOptions, Table, choose, solve
from stepwell.cascade.rule.exchange import Exchange
from stepwell.cascade.rule.outlook import (
    Outlook,
    detours,
    fixed_detours,
    fixed_plans,
    look_ahead,
    stages_of,
)
from stepwell.cascade.rule.paths import (
    BoolArray,
    FloatArray,
    IntArray,
    Outcome,
    Paths,
    incremental_costs,
)
from stepwell.cascade.rule.replay import replay
from stepwell.errors import CascadeError, ConfigError, DataError, ShapeError

MAX_STAGES = 10  # the solver visits all 2^K sets of stages
FOLDS = 5  # of the cross-fit


class Decision(NamedTuple):
    """Stop and return `stage`'s answer, or run `stage` next."""

    stop: bool
    stage: int
    advantage: float  # what going on is believed to save, in the unit of the costs
    deviation: float  # the posterior standard deviation of that


@dataclass(frozen=True, eq=False)
class Verdict:
    """Decisions for N prompts in one state, as `Decision` has them for one."""

    going: BoolArray  # [N]
    stage: IntArray  # [N], the stage to run next where going; elsewhere `best`
    best: IntArray  # [N], the stage seen whose answer is believed in most; 0 in state 0
    kept: FloatArray  # [N], the belief in it
    advantage: FloatArray  # [N]


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
        widths = [self.num_stages - state.bit_length() for state in range(1 << self.num_stages)]
        if any(len(row) != self.num_stages for row in self.costs):
            raise DataError("a policy's costs are not square.")
        if self.tables and [len(table.residual[0]) for table in self.tables] != widths:
            raise DataError(f"a policy of {self.num_stages} stages has tables of another ladder.")

    @property
    def num_stages(self) -> int:
        """K."""
        return len(self.costs)

    @cached_property
    def _shortest(self) -> list[list[float]]:
        return fixed_detours(self.costs)

    @cached_property
    def _stages_of(self) -> list[list[int]]:
        return [stages_of(state) for state in range(1 << self.num_stages)]

    def decide(
        self,
        stage: int,
        beliefs: Sequence[float] | FloatArray,
        *,
        seen: Iterable[int] | None = None,
        costs: Sequence[Sequence[float]] | None = None,
    ) -> Decision:
        """What to do after `stage` (0: only the prompt was seen), given beliefs in all K stages.

        seen are the stages run, whose answers can be returned; all up to `stage` if not given.
        costs are this request's own, [K][K] like the policy's, read from `stage` on.
        """
        believed = self._checked(stage, beliefs)
        state = (1 << stage) - 1 if seen is None else _state(stage, seen)
        kept, best = 0.0, 0
        for number in self._stages_of[state]:
            if not best or believed[number - 1] > kept:
                kept, best = believed[number - 1], number
        if stage == self.num_stages:
            return Decision(True, best, 0.0, 0.0)
        shortest = self._shortest if costs is None else fixed_detours(self._own(costs))
        plans = fixed_plans(stage, believed, costs or self.costs, shortest, self.price)
        action, advantage, deviation = self._weigh(state, kept, plans)
        if stage and advantage - self.kappa * deviation <= 0:
            return Decision(True, best, advantage, deviation)
        return Decision(False, stage + 1 + action, advantage, deviation)

    def decide_batch(
        self,
        state: int,
        beliefs: FloatArray,
        costs: npt.ArrayLike | None = None,
        available: BoolArray | None = None,
    ) -> Verdict:
        """`decide` for N prompts with beliefs [N, K] that ran the same stages: bit n-1 for stage n.

        costs are as in `incremental_costs`, the policy's own if not given. available [N, K] are the
        stages that can be run; where none is left, a prompt stops even before any was.
        """
        if not 0 <= state < 1 << self.num_stages or beliefs.shape[1:] != (self.num_stages,):
            raise ShapeError(
                f"state {state} with beliefs {list(beliefs.shape)}, "
                f"expected a state of {self.num_stages} stages and [N, {self.num_stages}]."
            )
        if len(beliefs) == 1 and costs is None and available is None:
            return self._verdict_of_one(state, beliefs[0])
        paid, ways = self._paid_and_ways(costs, len(beliefs))
        seen, last = np.array(self._stages_of[state], dtype=np.int64), state.bit_length()
        outlook = look_ahead(state, beliefs, paid, ways, self.price)
        if available is not None:
            possible = available.copy()
            possible[:, seen - 1] = True
            hoped = np.where(possible, beliefs, 0.0)
            outlook = look_ahead(state, hoped, paid, ways, self.price)
            outlook.plans[~available[:, last:]] = np.inf
        best = np.zeros(len(beliefs), dtype=np.int64)
        if state:
            best = seen[beliefs[:, seen - 1].argmax(axis=1)]
        if last == self.num_stages:
            nowhere = np.zeros(len(beliefs))
            return Verdict(nowhere > 0, best, best, outlook.kept, nowhere)
        going, action, advantage = self._choose(outlook)
        onward = np.where(going, last + 1 + action, best)
        return Verdict(going, onward, best, outlook.kept, advantage)

    def run(
        self,
        paths: Paths,
        costs: npt.ArrayLike | None = None,
        quoted: npt.ArrayLike | None = None,
    ) -> Outcome:
        """What `decide` would do with each recorded path, step by step.

        costs are what is paid, the policy's own if not given; quoted, what is known of them when
        deciding, the same if not given.
        """

        def rule(outlook: Outlook) -> tuple[BoolArray, IntArray]:
            return self._choose(outlook)[:2]

        paid = self.costs if costs is None else costs
        return replay(paths, paid, self.price, rule, quoted=quoted)

    def _verdict_of_one(self, state: int, beliefs: FloatArray) -> Verdict:
        """The verdict of a single prompt, without the price of arrays."""
        seen = self._stages_of[state]
        made = self.decide(state.bit_length(), beliefs, seen=seen)
        best = max(seen, key=lambda stage: float(beliefs[stage - 1]), default=0)
        kept = float(beliefs[best - 1]) if seen else 0.0
        return Verdict(
            np.array([not made.stop]),
            np.array([made.stage]),
            np.array([best]),
            np.array([kept]),
            np.array([made.advantage]),
        )

    @cached_property
    def _own_steps(self) -> tuple[FloatArray, FloatArray]:
        """The policy's own costs and detours, both [1, K, K]."""
        paid = incremental_costs(self.costs, 1, self.num_stages)
        return paid, detours(paid)

    def _paid_and_ways(
        self, costs: npt.ArrayLike | None, count: int
    ) -> tuple[FloatArray, FloatArray]:
        """Costs and detours of so many prompts, both [N, K, K]."""
        if costs is not None:
            paid = incremental_costs(costs, count, self.num_stages)
            return paid, detours(paid)
        shape = (count, self.num_stages, self.num_stages)
        paid, ways = self._own_steps
        return np.broadcast_to(paid, shape), np.broadcast_to(ways, shape)

    def _choose(self, outlook: Outlook) -> tuple[BoolArray, IntArray, FloatArray]:
        if self.tables:
            residual, deviation = self.tables[outlook.state].lookup(outlook)
        else:
            residual = deviation = np.zeros(outlook.plans.shape)
        return choose(outlook, residual, deviation, self.kappa)

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

    def _checked(self, stage: int, beliefs: Sequence[float] | FloatArray) -> list[float]:
        """Beliefs as plain floats, which compare faster than an array's."""
        if not 0 <= stage <= self.num_stages:
            raise CascadeError(f"stage is {stage}, expected 0 to {self.num_stages}.")
        believed = [float(belief) for belief in beliefs]
        if len(believed) != self.num_stages:
            raise ShapeError(f"got {len(believed)} beliefs, expected {self.num_stages}.")
        for belief in believed:
            if not 0.0 <= belief <= 1.0:
                raise DataError(f"a belief is {belief}, expected a probability.")
        return believed

    def _own(self, costs: Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
        """A request's own costs, once checked."""
        if len(costs) != self.num_stages or any(len(row) != self.num_stages for row in costs):
            raise ShapeError(f"a request's costs must be [{self.num_stages}][{self.num_stages}].")
        for k, row in enumerate(costs):
            for cost in row[k:]:
                if not 0.0 <= cost < math.inf:
                    raise DataError(f"a cost is {cost}, expected a finite number from 0.")
        return costs

    def to_plain(self) -> dict[str, Any]:
        """The policy as plain Python that JSON holds."""
        return to_document(self, self.KIND, self.VERSION)

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """The policy that `to_plain` wrote; FormatError where it is newer, DataError if damaged."""
        return from_document(cls, plain, cls.KIND, cls.VERSION)


def open_loop(costs: npt.ArrayLike, price: float) -> Policy:
    """The policy without data: after each stage the best fixed plan by the beliefs held there.

    costs are [K, K] or [K]; price is that of one failure, in their unit.
    """
    num_stages = np.shape(costs)[-1] if np.ndim(costs) else 0
    mean = incremental_costs(costs, 1, num_stages)[0]
    if not (math.isfinite(price) and price >= 0):
        raise ConfigError(f"the price of a failure is {price}, expected 0 or more and finite.")
    return Policy(float(price), 0.0, tuple(map(tuple, mean.tolist())))


def always(stage: int, num_stages: int) -> Policy:
    """The policy that runs one stage and nothing else, as long as it can be run."""
    if not 1 <= stage <= num_stages:
        raise CascadeError(f"stage is {stage}, expected 1 to {num_stages}.")
    row = tuple(float(number != stage) for number in range(1, num_stages + 1))
    return Policy(0.0, 0.0, (row,) * num_stages)


def fit(
    paths: Paths,
    costs: npt.ArrayLike,
    lam: float = 1.0,
    kappa: float = 0.0,
    *,
    price: float | None = None,
    quoted: npt.ArrayLike | None = None,
    bins: int = 8,
    shrink: bool = True,
    cross_fit: bool = True,
) -> Policy:
    """The policy that minimises cost + price * failures on the calibration paths.

    costs as in `incremental_costs`. The price is lam times the ladder's own rate of exchange, or
    `price` in the unit of the costs. quoted are the costs that are known when deciding, where what
    is paid depends on what a later stage will say; the costs themselves if not given. kappa > 0
    goes on only where the gain is that many standard deviations sure; kappa < 0 is cautious about
    quality.
    """
    if paths.num_stages > MAX_STAGES:
        raise CascadeError(f"{paths.num_stages} stages, at most {MAX_STAGES} can be solved.")
    if not (math.isfinite(kappa) and math.isfinite(lam) and lam >= 0 and bins >= 1):
        raise ConfigError(
            f"lam={lam}, kappa={kappa}, bins={bins}: expected finite numbers, lam >= 0, bins >= 1."
        )
    exchange = None
    if price is None:
        exchange = Exchange.measure(paths, costs)
        price = lam * exchange.price
    paid = incremental_costs(costs, len(paths), paths.num_stages)
    mean = np.average(paid, axis=0, weights=paths.weights) if len(paths) else costs
    asked = lam if exchange is not None else None
    plain = replace(open_loop(mean, price), kappa=kappa, lam=asked, exchange=exchange)
    if len(paths) < (2 if shrink else 1):
        return plain
    options = SolverOptions(bins, shrink, FOLDS if cross_fit else 1)
    known = paid if quoted is None else incremental_costs(quoted, len(paths), paths.num_stages)
    return replace(plain, tables=solve(paths, paid, known, price, kappa, options))


def _state(stage: int, seen: Iterable[int]) -> int:
    """The stages seen as bits."""
    numbers = sorted(set(seen))
    if (numbers[-1] if numbers else 0) != stage or (numbers and numbers[0] < 1):
        raise CascadeError(f"stages {numbers} were seen, expected {stage} as the last.")
    return sum(1 << (number - 1) for number in numbers)
