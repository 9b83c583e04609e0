"""What is fitted for a ladder: predictor, calibration paths, costs, certificate, and what to serve.

The calibration paths are kept, not a policy, so that a request can name a lambda of its own:
solving takes milliseconds. Owns what is fitted and the rules that follow from it; the folder that
holds it is fitted_files.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from stepwell.cascade.beliefs.predictor import Predictor
from stepwell.cascade.collect import Collected
from stepwell.cascade.costs import Costs, UnitCosts
from stepwell.cascade.fitted_files import FIT_AGAIN, Parts, load_parts, save_parts
from stepwell.cascade.ladder import Budget, CertificateConfig, Certified, LadderConfig
from stepwell.cascade.rule.certify import Certificate, certify, order_path
from stepwell.cascade.rule.exchange import Exchange
from stepwell.cascade.rule.paths import FloatArray
from stepwell.cascade.rule.stopping import Policy, always, fit
from stepwell.cascade.rule.tuning import LAMBDAS, fit_budget, fit_quality
from stepwell.cascade.splits import UsedPrompts
from stepwell.cascade.stage import Stage
from stepwell.errors import CascadeError

QUALITY_MARGIN: Final = 0.005  # on calibration prompts, so that new ones stay within a point
MOST_POLICIES: Final = 256  # kept solved; a server is asked for any number of lambdas

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rule:
    """What decides: one policy, or two of which `share` of the prompts are served by the dearer.

    certified: whether a certificate covers it.
    """

    dearer: Policy
    cheaper: Policy
    share: float = 1.0
    certified: bool = False

    @classmethod
    def of(cls, policy: Policy, *, certified: bool = False) -> Rule:
        """The rule of a single policy."""
        return cls(policy, policy, 1.0, certified)


@dataclass(frozen=True, eq=False)
class Fitted(Parts):
    """Everything that deciding needs, and the fingerprints of the stages that it was fitted for."""

    _rules: dict[tuple[object, ...], Rule] = field(default_factory=dict, init=False, repr=False)
    _gates: dict[object, FloatArray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        counts = (
            self.predictor.num_stages,
            self.calibration.num_stages,
            len(self.costs.stages),
            len(self.fingerprints),
        )
        if len(set(counts)) > 1:
            raise CascadeError(
                "Predictor, paths, costs and fingerprints are of ladders with"
                f" {', '.join(map(str, counts))} stages.",
                fix=FIT_AGAIN,
            )

    @classmethod
    def fit(
        cls,
        config: LadderConfig,
        stages: Sequence[Stage],
        predictor_data: Collected,
        calibration_data: Collected,
        costs: Costs,
        certification_data: Collected | None = None,
        earlier: Certificate | None = None,
    ) -> Fitted:
        """Fit predictor and rule on disjoint prompts, certify on others still, choose lambda.

        `auto` is the cheapest certified rule where one is; else the cheapest lambda that keeps the
        largest stage's quality within half a point on the calibration prompts. Where none does it
        is the largest lambda, where nothing shows that larger stages are better it is 1, and a
        warning says so. earlier: the ladder's certificate so far, whose prompts can certify no
        other rule.
        """
        data = predictor_data
        predictor = Predictor.fit(
            data.seen, data.good, data.weights, hidden=config.predictor.hidden
        )
        fitted = cls(
            predictor,
            calibration_data.paths(predictor),
            calibration_data.accepted,
            calibration_data.sure,
            costs,
            float(LAMBDAS[-1]),
            tuple(stage.fingerprint for stage in stages),
        )
        fitted = replace(fitted, lam=fitted._keeping_quality(config))
        if certification_data is None or not len(certification_data):
            return fitted
        known = predictor_data.prompts, calibration_data.prompts
        used = [UsedPrompts.of(prompts) for prompts in known]
        certificate = fitted.certify(config, certification_data, used, earlier)
        return replace(fitted, certificate=certificate)

    def certify(
        self,
        config: LadderConfig,
        data: Collected,
        used: Sequence[UsedPrompts] = (),
        earlier: Certificate | None = None,
    ) -> Certificate | None:
        """Test rules of rising thrift on prompts that nothing else has seen; see certify.py.

        Where an earlier certificate is about the very same rules it is kept; where it is about
        others, its prompts are left out, and None is returned where no prompt is left.
        """
        asked = config.policy.lam
        terms = asked.certificate if isinstance(asked, Certified) else CertificateConfig()
        path = order_path(self.calibration, self.steps(config), quoted=self.mean_steps(config))
        if earlier is not None:
            if earlier.is_about(path, terms.epsilon, terms.delta):
                return earlier
            fresh = np.flatnonzero([prompt not in earlier.used for prompt in data.prompts])
            logger.warning(
                "%d of %d certification prompts have certified another rule before and are left"
                " out; collect more for a certificate of this one.",
                len(data) - len(fresh),
                len(data),
            )
            if not len(fresh):
                return None
            data = data.take(fresh)
        return certify(
            path,
            data.paths(self.predictor),
            terms.epsilon,
            terms.delta,
            prompts=data.prompts,
            used=used,
        )

    def rule(self, config: LadderConfig, lam: float | None = None) -> Rule:
        """What decides at a lambda, or where none is given as the ladder file says."""
        key = (lam, config.policy, config.costs, config.serving.max_rows)
        if key not in self._rules:
            if len(self._rules) >= MOST_POLICIES:
                self._rules.clear()
            self._rules[key] = self._rule(config, lam)
        return self._rules[key]

    def lambda_for(self, config: LadderConfig) -> float:
        """The lambda of requests that name none; infinite where it is always the largest stage."""
        rule = self.rule(config)
        return np.inf if rule.dearer.lam is None else rule.dearer.lam

    def gates(self, config: LadderConfig) -> FloatArray:
        """How sure a stage must have been of its answer that a later one verifies it, [K, K].

        By seconds, whatever the rule weighs; see UnitCosts.gates.
        """
        key = ("gates", config.policy.mode, config.serving.max_rows)
        if key not in self._gates:
            units = UnitCosts.of(self.costs, config.changed(costs="measured"))
            self._gates[key] = units.gates(self.accepted, self.sure, self.calibration.weights)
        return self._gates[key]

    def steps(self, config: LadderConfig, data: Collected | None = None) -> FloatArray:
        """What each prompt pays for a stage after another, [N, K, K]; by default calibration's."""
        accepted, sure = (self.accepted, self.sure) if data is None else (data.accepted, data.sure)
        return UnitCosts.of(self.costs, config).steps(accepted, sure, self.gates(config))

    def mean_steps(self, config: LadderConfig) -> FloatArray:
        """The same in the mean, [K, K]: what is known when deciding."""
        steps = self.steps(config)
        if not len(steps):
            anew = UnitCosts.of(self.costs, config).anew
            return np.triu(np.tile(anew, (len(anew), 1)))
        mean: FloatArray = np.average(steps, axis=0, weights=self.calibration.weights)
        return mean

    def save(self, directory: str | Path) -> None:
        """Write all of it into a directory, in place of what was fitted before: all or nothing."""
        save_parts(self, directory)

    @classmethod
    def load(cls, directory: str | Path) -> Fitted:
        """What `save` wrote.

        Raises CascadeError where the ladder was never fitted or a file, which it names, is damaged,
        and FormatError where a newer version wrote it.
        """
        return cls(**vars(load_parts(directory)))

    def _rule(self, config: LadderConfig, lam: float | None) -> Rule:
        asked = config.policy.lam
        if lam is not None:
            return self._solved(config, lam)
        if isinstance(asked, Budget):
            return self._within(config, asked.budget)
        if isinstance(asked, Certified):
            return self._certified(config, asked)
        return self._auto(config) if asked == "auto" else self._solved(config, asked)

    def _auto(self, config: LadderConfig) -> Rule:
        """The cheapest certified rule, else the one that keeps the largest stage's quality.

        Always the largest stage where, on the calibration prompts, that costs less and is as good.
        """
        certificate, data = self.certificate, self.calibration
        rule = self._solved(config, self.lam)
        if certificate is not None and certificate.lam is not None:
            rule = self._solved(config, certificate.lam, certificate.kappa)
        steps, largest = self.steps(config), self._largest
        found, sure = (each.run(data, steps, each.costs) for each in (rule.dearer, largest.dearer))
        cheaper = data.mean(sure.cost) < data.mean(found.cost)
        as_good = data.mean(sure.good) >= data.mean(found.good) - QUALITY_MARGIN
        return largest if cheaper and as_good else rule

    @property
    def _largest(self) -> Rule:
        """Always the largest stage, which loses nothing against itself."""
        number = self.predictor.num_stages
        return Rule.of(always(number, number), certified=self.certificate is not None)

    def _solved(self, config: LadderConfig, lam: float, kappa: float | None = None) -> Rule:
        """The rule at a lambda; certified where the certificate covers just that."""
        doubt = config.policy.risk.kappa if kappa is None else kappa
        policy = fit(
            self.calibration, self.steps(config), lam, doubt, quoted=self.mean_steps(config)
        )
        covered = self.certificate is not None and self.certificate.covers(policy)
        return Rule.of(policy, certified=covered)

    def _within(self, config: LadderConfig, budget: float) -> Rule:
        """The rule that meets a mean cost on the calibration prompts: mostly two that are mixed."""
        mixture = fit_budget(
            self.calibration,
            self.steps(config),
            budget,
            config.policy.risk.kappa,
            quoted=self.mean_steps(config),
        )
        return Rule(mixture.dearer, mixture.cheaper, mixture.share)

    def _certified(self, config: LadderConfig, asked: Certified) -> Rule:
        """The rule of the certificate; always the largest stage where it certifies none.

        Raises CascadeError where there is no certificate, or one of other terms.
        """
        certificate, wanted = self.certificate, asked.certificate
        if certificate is None or (certificate.epsilon, certificate.delta) != (
            wanted.epsilon,
            wanted.delta,
        ):
            raise CascadeError(
                f"The ladder was not certified at epsilon {wanted.epsilon:g} and delta"
                f" {wanted.delta:g}.",
                fix=FIT_AGAIN,
            )
        if certificate.lam is None:
            return self._largest
        return self._solved(config, certificate.lam, certificate.kappa)

    def _keeping_quality(self, config: LadderConfig) -> float:
        """The cheapest lambda that keeps the largest stage's quality within the margin.

        1 where nothing shows that the largest stage is right more often than the smallest: which
        lambda keeps its quality would be chance.
        """
        exchange = Exchange.measure(self.calibration, self.steps(config))
        if not exchange.measured:
            logger.warning(
                "%d calibration prompts do not show that the largest stage is better than the"
                " smallest and dearer; the ladder is fitted for lambda 1.",
                len(self.calibration),
            )
            return 1.0
        try:
            policy = fit_quality(
                self.calibration,
                self.steps(config),
                QUALITY_MARGIN,
                config.policy.risk.kappa,
                quoted=self.mean_steps(config),
            )
        except CascadeError as error:
            logger.warning("%s The ladder is fitted for that lambda.", error.problem)
            return float(LAMBDAS[-1])
        assert policy.lam is not None
        return policy.lam
