"""A cascade held against everything simpler: what it costs, how often it is right, how surely.

All rules are replayed on the same test prompts, on which every stage was run once. A rule that has
a setting gets it from the calibration prompts, by the criterion that the cascade's own lambda was
chosen by: the cheapest one that keeps the largest stage's quality within a point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stepwell.cascade.collect import Collected
from stepwell.cascade.features import FEATURES
from stepwell.cascade.fitted import QUALITY_MARGIN
from stepwell.cascade.paths import FloatArray, Outcome, Paths
from stepwell.cascade.pipeline import Cascade
from stepwell.cascade.tuning import LAMBDAS
from stepwell.evals.baselines import ThresholdRule, always, oracle, tune_thresholds
from stepwell.evals.frontier import (
    Curve,
    Difference,
    Standing,
    cheapest_reaching,
    hull_indices,
    paired_difference,
    standings,
)

LADDER = "ladder"
MIXING = "random mixing"
THRESHOLD = "confidence threshold"
ORACLE = "oracle that pays the path"
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

    rows: each rule at its setting, the oracle (the floor) last. lambdas: the cascade at prices that
    a request may name. curves: cost against quality of each rule with a setting. standings: where
    they lie between random mixing and the oracle. differences: cascade minus the rule named, paired
    over prompts.
    """

    rows: tuple[Row, ...]
    lambdas: tuple[Row, ...]
    curves: tuple[Curve, ...]
    standings: tuple[Standing, ...]
    differences: tuple[tuple[str, Difference], ...]
    weights: FloatArray

    def row(self, name: str) -> Row:
        """The row of a rule."""
        return next(row for row in self.rows if row.name == name)


def compare(cascade: Cascade, calibration: Collected, test: Collected, batch: int) -> Comparison:
    """How the cascade stands on prompts that nothing was fitted or tuned on.

    batch: the batch size of the headline cost; batch size 1 and FLOPs stand beside it.
    """
    bench = Bench(cascade, calibration, test, batch)
    rules = [*bench.fixed(), bench.mixing(), bench.threshold(), bench.ladder()]
    floor = bench.replay(ORACLE, oracle(bench.test, bench.units, pays="path"))
    fixed, *curves = bench.curves()
    limit = Curve(ORACLE, floor.cost[None], floor.good[None])
    return Comparison(
        rows=tuple(bench.row(rule) for rule in (*rules, floor)),
        lambdas=tuple(bench.row(bench.ladder(lam)) for lam in SHOWN_LAMBDAS),
        curves=(fixed, *curves, limit),
        standings=standings(curves, fixed, limit, test.weights),
        differences=tuple(
            (rule.name, paired_difference(rules[-1], rule, test.weights)) for rule in rules[:-1]
        ),
        weights=test.weights,
    )


class Bench:
    """The test prompts, the calibration prompts and the costs that all rules are measured with."""

    def __init__(
        self, cascade: Cascade, calibration: Collected, test: Collected, batch: int
    ) -> None:
        self.cascade, self.batch = cascade, batch
        self.calibration = self._paths(calibration)
        self.test = self._paths(test)
        self.calibration_confidence = _confidence(calibration)
        self.test_confidence = _confidence(test)
        self.units = _relative(cascade.fitted.costs.seconds(batch))

    def fixed(self) -> list[Replay]:
        """Always one stage, for each stage."""
        return [
            self.replay(f"always {stage.name}", always(self.test, self.units, number))
            for number, stage in enumerate(self.cascade.stages, start=1)
        ]

    def mixing(self) -> Replay:
        """Two fixed stages drawn by lot, in the share that reaches the target on calibration."""
        numbers = range(1, len(self.units) + 1)
        known = [always(self.calibration, self.units, number) for number in numbers]
        quality = np.array([self.calibration.mean(outcome.good) for outcome in known])
        corners = hull_indices(self.units, quality)
        upper = int(np.searchsorted(quality[corners], self.target))
        low, high = corners[max(upper - 1, 0)], corners[upper]
        gap = quality[high] - quality[low]
        share = (self.target - quality[low]) / gap if gap > 0 else 1.0
        fixed = self.fixed()
        return self._mixed(MIXING, fixed[high], fixed[low], float(share))

    def threshold(self) -> Replay:
        """Up to the first answer that is confident enough, thresholds tuned on calibration."""
        rules = self._threshold_rules
        known = [
            rule.run(self.calibration_confidence, self.calibration, self.units) for rule in rules
        ]
        chosen = self._cheapest(known)
        return self.replay(THRESHOLD, self._run_threshold(rules[chosen]))

    def ladder(self, lam: float | None = None) -> Replay:
        """The cascade's own rule, at its own price or another."""
        policy = self.cascade.policy(lam)
        name = LADDER if lam is None else f"lambda {lam:g}"
        return self.replay(name, policy.run(self.test, self.units))

    def curves(self) -> tuple[Curve, ...]:
        """Fixed stages, thresholds and the cascade, each over all of its settings."""
        policies = [self.cascade.policy(lam) for lam in LAMBDAS]
        numbers = range(1, len(self.units) + 1)
        return (
            Curve.of(MIXING, [always(self.test, self.units, number) for number in numbers]),
            Curve.of(THRESHOLD, [self._run_threshold(rule) for rule in self._threshold_rules]),
            Curve.of(LADDER, [policy.run(self.test, self.units) for policy in policies]),
        )

    def replay(self, name: str, outcome: Outcome) -> Replay:
        """An outcome under a name."""
        return Replay(name, outcome.good, outcome.stages_run.astype(float), outcome.cost)

    def row(self, rule: Replay) -> Row:
        """A rule in means over the test prompts."""
        costs = self.cascade.fitted.costs
        return Row(
            rule.name,
            quality=self.test.mean(rule.good),
            batched=self.test.mean(rule.runs @ self.units),
            flops=self.test.mean(rule.runs @ _relative(costs.flops())),
            alone=self.test.mean(rule.runs @ _relative(costs.seconds(1))),
            stages_run=self.test.mean(rule.runs.sum(axis=1)),
        )

    @property
    def target(self) -> float:
        """The quality that a setting has to keep on the calibration prompts."""
        return self.calibration.mean(self.calibration.good[:, -1]) - QUALITY_MARGIN

    @cached_property
    def _threshold_rules(self) -> tuple[ThresholdRule, ...]:
        return tune_thresholds(self.calibration_confidence, self.calibration, self.units)

    def _run_threshold(self, rule: ThresholdRule) -> Outcome:
        return rule.run(self.test_confidence, self.test, self.units)

    def _cheapest(self, outcomes: Sequence[Outcome]) -> int:
        """Which of these outcomes on the calibration prompts reaches the target most cheaply."""
        cost = np.array([self.calibration.mean(outcome.cost) for outcome in outcomes])
        quality = np.array([self.calibration.mean(outcome.good) for outcome in outcomes])
        return cheapest_reaching(cost, quality, self.target)

    def _paths(self, data: Collected) -> Paths:
        beliefs = self.cascade.fitted.predictor.paths_by_state(data.features)
        return Paths(beliefs, data.good, data.weights)

    def _mixed(self, name: str, first: Replay, second: Replay, share: float) -> Replay:
        def mix(one: FloatArray, other: FloatArray) -> FloatArray:
            return share * one + (1.0 - share) * other

        return Replay(
            name,
            mix(first.good, second.good),
            mix(first.runs, second.runs),
            mix(first.cost, second.cost),
        )


def _confidence(data: Collected) -> FloatArray:
    """Each stage's confidence in its own answer: the mean log-probability of its tokens, [N, K]."""
    return data.features[:, :, FEATURES.index("logprob_mean")]


def _relative(costs: FloatArray) -> FloatArray:
    relative: FloatArray = costs / costs[-1]
    return relative
