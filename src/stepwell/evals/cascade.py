"""A cascade held against everything simpler: what it costs, how often it is right, how surely.

All rules are replayed on the same test prompts, on which every stage was run once. A rule that has
a setting gets it from the calibration prompts, by the criterion that the cascade's own lambda was
chosen by: the cheapest one that keeps the largest stage's quality within half a point. A baseline
may mix two settings by lot to keep it exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stepwell.cascade.beliefs.features import LOWEST_LOGPROB
from stepwell.cascade.collect import Collected
from stepwell.cascade.fitted import QUALITY_MARGIN
from stepwell.cascade.pipeline import Cascade
from stepwell.cascade.rule.exchange import Exchange
from stepwell.cascade.rule.paths import FloatArray, Outcome, Paths
from stepwell.cascade.rule.stopping import open_loop
from stepwell.cascade.rule.tuning import LAMBDAS
from stepwell.evals.baselines import (
    always,
    every_stage,
    myopic,
    oracle,
    prompt_router,
    tune_thresholds,
)
from stepwell.evals.frontier import (
    Curve,
    Difference,
    Standing,
    hull_indices,
    paired_difference,
    standings,
)
from stepwell.evals.reliability import Reliability, reliability, reliability_of_gain

LADDER = "ladder"
MIXING = "random mixing"
THRESHOLD = "confidence threshold"
ROUTER = "prompt router"
MYOPIC = "myopic rule"
OPEN_LOOP = "open-loop rule"
EVERY = "all stages in turn"
ORACLE = "oracle that pays the path"
STAGE_ORACLE = "oracle that pays one stage"
SHOWN_LAMBDAS = (0.1, 1.0, 10.0)


@dataclass(frozen=True, eq=False)
class Replay:
    """One rule on the test prompts: the label of each answer [N], and which stages it took [N, K].

    Both are expectations where the rule draws lots. cost [N] is in the headline measure.
    """

    name: str
    good: FloatArray
    runs: FloatArray
    cost: FloatArray


@dataclass(frozen=True)
class Row:
    """A rule in means: quality, and three costs relative to always the largest stage."""

    name: str
    quality: float
    batched: float
    flops: float
    alone: float
    stages_run: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """The cascade and everything it was held against.

    batch: the batch size of the headline cost. rows: each rule at its setting, the oracles last:
    the one that pays the path is the floor. replays: the same by prompt. lambdas: the cascade at
    prices that a request may name. curves: cost against quality of each rule with a setting, the
    floor last. standings: where they lie between random mixing and the oracle. differences: cascade
    minus the rule named, paired over prompts. reliability: of what is believed of each stage's
    answer when it has come; gains: of what going on to the largest stage is believed to add.
    exchange: what lambda is relative to.
    """

    batch: int
    replays: tuple[Replay, ...]
    rows: tuple[Row, ...]
    lambdas: tuple[Row, ...]
    curves: tuple[Curve, ...]
    standings: tuple[Standing, ...]
    differences: tuple[tuple[str, Difference], ...]
    reliability: tuple[Reliability, ...]
    gains: tuple[Reliability, ...]
    exchange: Exchange
    weights: FloatArray

    def row(self, name: str) -> Row:
        """The row of a rule."""
        return next(row for row in self.rows if row.name == name)


def compare(cascade: Cascade, calibration: Collected, test: Collected) -> Comparison:
    """How the cascade stands on prompts that nothing was fitted or tuned on.

    The headline cost is in seconds at the batch size that the ladder serves at; batch size 1 and
    FLOPs stand beside it.
    """
    bench = Bench(cascade, calibration, test)
    rules = [*bench.fixed(), *bench.simpler(), bench.ladder()]
    floor = bench.oracle()
    replays = (*rules, bench.stage_oracle(), floor)
    fixed, *curves = bench.curves()
    limit = Curve.of(ORACLE, [floor])
    return Comparison(
        batch=bench.batch,
        rows=tuple(bench.row(rule) for rule in replays),
        replays=replays,
        lambdas=tuple(bench.row(bench.ladder(lam)) for lam in SHOWN_LAMBDAS),
        curves=(fixed, *curves, limit),
        standings=standings(curves, fixed, limit, test.weights),
        differences=tuple(
            (rule.name, paired_difference(rules[-1], rule, test.weights)) for rule in rules[:-1]
        ),
        reliability=bench.reliability(),
        gains=bench.gains(),
        exchange=bench.exchange,
        weights=test.weights,
    )


class Bench:
    """The test prompts, the calibration prompts and the costs that all rules are measured with."""

    def __init__(self, cascade: Cascade, calibration: Collected, test: Collected) -> None:
        self.cascade, self.batch = cascade, cascade.config.serving.max_rows
        predictor = cascade.fitted.predictor
        self.calibration, self.test = calibration.paths(predictor), test.paths(predictor)
        self._test_prompts = test.prompts
        self._calibration_confidence = _confidence(calibration)
        self._test_confidence = _confidence(test)
        measured = cascade.config.changed(costs="measured")
        self._known = cascade.fitted.steps(measured, calibration)
        self._tried = cascade.fitted.steps(measured, test)
        self._quoted = cascade.fitted.mean_steps(measured)
        self._numbers = range(1, len(cascade.stages) + 1)

    def fixed(self) -> list[Replay]:
        """Always one stage, for each stage."""
        return [
            self._replay(f"always {stage.name}", always(self.test, self._tried, number))
            for number, stage in enumerate(self.cascade.stages, start=1)
        ]

    def simpler(self) -> list[Replay]:
        """All stages in turn, and rules that know less than the cascade, each tuned as it was."""
        return [
            self._replay(EVERY, every_stage(self.test, self._tried)),
            self._tuned(MIXING, [], []),
            self._tuned(THRESHOLD, *self._thresholds),
            self._priced(ROUTER, prompt_router),
            self._priced(MYOPIC, myopic),
            self._priced(
                OPEN_LOOP,
                lambda paths, costs, price: open_loop(self._quoted, price).run(
                    paths, costs, self._quoted
                ),
            ),
        ]

    def ladder(self, lam: float | None = None) -> Replay:
        """The cascade's own rule, at its own price or another."""
        name = LADDER if lam is None else f"lambda {lam:g}"
        return self._replay(name, self.served(lam))

    def served(self, lam: float | None = None) -> Outcome:
        """What the cascade would do with the test prompts; of two policies it draws one by lot.

        It decides by the costs that its ladder file names, and pays in seconds.
        """
        policies = self.cascade.policies(self._test_prompts, lam)
        distinct = list({id(policy): policy for policy in policies}.values())
        runs = [policy.run(self.test, self._tried, policy.costs) for policy in distinct]
        chosen = np.array([policy is distinct[0] for policy in policies])
        first, second = runs[0], runs[-1]
        return Outcome(
            np.where(chosen, first.stage_returned, second.stage_returned),
            np.where(chosen[:, None], first.stages_run, second.stages_run),
            np.where(chosen, first.cost, second.cost),
            np.where(chosen, first.good, second.good),
        )

    def oracle(self) -> Replay:
        """The stages in order up to the first right answer, the floor of rules that take turns."""
        return self._replay(ORACLE, oracle(self.test, self._tried, pays="path"))

    def stage_oracle(self) -> Replay:
        """The cheapest stage that is right, known beforehand."""
        return self._replay(STAGE_ORACLE, oracle(self.test, self._tried, pays="stage"))

    def curves(self) -> tuple[Curve, ...]:
        """Fixed stages, thresholds and the cascade, each over all of its settings."""
        return (
            Curve.of(MIXING, self._always(self.test, self._tried)),
            Curve.of(THRESHOLD, self._thresholds[1]),
            Curve.of(LADDER, [self.ladder(lam) for lam in LAMBDAS]),
        )

    def row(self, rule: Replay) -> Row:
        """A rule in means over the test prompts."""
        costs = self.cascade.fitted.costs
        return Row(
            rule.name,
            quality=self.test.mean(rule.good),
            batched=self.test.mean(rule.cost),
            flops=self.test.mean(rule.runs @ _relative(costs.flops())),
            alone=self.test.mean(rule.runs @ _relative(costs.seconds(1))),
            stages_run=self.test.mean(rule.runs.sum(axis=1)),
        )

    def reliability(self) -> tuple[Reliability, ...]:
        """How far belief in each stage's answer, when all up to it were run, is borne out."""
        test = self.test
        return tuple(
            reliability(
                stage.name,
                test.after((1 << number) - 1)[:, number - 1],
                test.good[:, number - 1],
                test.weights,
            )
            for number, stage in enumerate(self.cascade.stages, start=1)
        )

    def gains(self) -> tuple[Reliability, ...]:
        """How far it is borne out what the largest stage is believed to add to the best at hand.

        After each stage but the largest, all up to it run.
        """
        test, rows = self.test, np.arange(len(self.test))
        found = []
        for number, stage in enumerate(self.cascade.stages[:-1], start=1):
            beliefs = test.after((1 << number) - 1)
            best = beliefs[:, :number].argmax(axis=1)
            believed = beliefs[:, -1] - beliefs[rows, best]
            borne = test.good[:, -1] - test.good[rows, best]
            found.append(reliability_of_gain(stage.name, believed, borne, test.weights))
        return tuple(found)

    @cached_property
    def exchange(self) -> Exchange:
        """What one failure costs at lambda = 1."""
        return Exchange.measure(self.calibration, self._known)

    @property
    def target(self) -> float:
        """The quality that a setting has to keep on the calibration prompts."""
        return self.calibration.mean(self.calibration.good[:, -1]) - QUALITY_MARGIN

    @cached_property
    def _thresholds(self) -> tuple[list[Outcome], list[Outcome]]:
        """Up to the first answer that is confident enough, at thresholds tuned on calibration."""
        known, tried = self._known, self._tried
        rules = tune_thresholds(self._calibration_confidence, self.calibration, known)
        return (
            [rule.run(self._calibration_confidence, self.calibration, known) for rule in rules],
            [rule.run(self._test_confidence, self.test, tried) for rule in rules],
        )

    def _always(self, paths: Paths, costs: FloatArray) -> list[Outcome]:
        return [always(paths, costs, number) for number in self._numbers]

    def _priced(self, name: str, rule: Callable[[Paths, FloatArray, float], Outcome]) -> Replay:
        """A rule that weighs cost against failures, at the price that suits it."""
        prices = [lam * self.exchange.price for lam in LAMBDAS]
        known = [rule(self.calibration, self._known, price) for price in prices]
        tried = [rule(self.test, self._tried, price) for price in prices]
        return self._tuned(name, known, tried)

    def _tuned(self, name: str, known: Sequence[Outcome], tried: Sequence[Outcome]) -> Replay:
        """Two settings drawn by lot, in the share that reaches the target on calibration.

        known and tried are what each setting does on calibration and test. Always one stage is a
        setting that every rule has.
        """
        known = [*known, *self._always(self.calibration, self._known)]
        tried = [*tried, *self._always(self.test, self._tried)]
        mean = self.calibration.mean
        quality = np.array([mean(outcome.good) for outcome in known])
        corners = hull_indices(np.array([mean(outcome.cost) for outcome in known]), quality)
        upper = int(np.searchsorted(quality[corners], self.target))
        low, high = corners[max(upper - 1, 0)], corners[upper]
        gap = quality[high] - quality[low]
        share = float((self.target - quality[low]) / gap) if gap > 0 else 1.0
        return _mixed(self._replay(name, tried[high]), self._replay(name, tried[low]), share)

    def _replay(self, name: str, outcome: Outcome) -> Replay:
        runs = outcome.stages_run.astype(np.float64)
        return Replay(name, outcome.good, runs, outcome.cost)


def _mixed(first: Replay, second: Replay, share: float) -> Replay:
    """What is expected of drawing the first rule with a probability, else the second."""

    def mix(one: FloatArray, other: FloatArray) -> FloatArray:
        return share * one + (1.0 - share) * other

    return Replay(
        first.name,
        mix(first.good, second.good),
        mix(first.runs, second.runs),
        mix(first.cost, second.cost),
    )


def _confidence(data: Collected) -> FloatArray:
    """Each stage's confidence in its answer, the mean log-probability of its tokens, [N, K].

    The lowest where the answer has none.
    """
    column = data.seen.features.answer_names.index("logprob_mean")
    return np.nan_to_num(data.seen.answers[:, :, column], nan=LOWEST_LOGPROB)


def _relative(costs: FloatArray) -> FloatArray:
    relative: FloatArray = costs / costs[-1]
    return relative
