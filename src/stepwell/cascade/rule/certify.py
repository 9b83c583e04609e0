"""Certificates: how often, at most, a policy is wrong where the largest stage is right.

Learn then Test with a fixed sequence (Angelopoulos et al. 2021): policies are put into one order
before the certification prompts are seen, and each hypothesis "its excess loss is more than
epsilon" is tested in turn, at the full delta, until one stands. All that fell before are certified
together: the chance that any of them exceeds epsilon is at most delta. Pure arrays. Owns order,
tests and the certificate; how policies are fitted is stopping.py's.

A prompt is an excess failure where the largest stage's answer is right and the policy's is wrong.
Always-largest has none by construction, and is what to serve where nothing is certified.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from stepwell.cascade.documents import from_document, to_document
from stepwell.cascade.rule.paths import BoolArray, FloatArray, IntArray, Outcome, Paths
from stepwell.cascade.rule.stopping import Policy, fit
from stepwell.cascade.rule.tuning import LAMBDAS
from stepwell.cascade.splits import UsedPrompts
from stepwell.config import fingerprint
from stepwell.errors import CascadeError, ConfigError, DataError, ShapeError

EPSILON = 0.02
DELTA = 0.05
GRID = tuple(product(LAMBDAS, (-1.0, 0.0)))  # (lambda, kappa)


@dataclass(frozen=True)
class Step:
    """One test on the path: of the policy with this fingerprint, which has this lambda and kappa.

    p_value is Pr(Bin(prompts, epsilon) <= failures).
    """

    lam: float | None
    kappa: float
    policy: str
    failures: int
    p_value: float
    rejected: bool


@dataclass(frozen=True)
class Certificate:
    """With probability 1 - delta over the prompts drawn, excess loss is at most epsilon.

    That holds for every policy whose step was rejected, on prompts like those of the certification
    split, at the costs that the policy was fitted for. prompts counts independent ones. path holds
    the steps that were tested; `used` are the prompts, which can certify nothing again.
    """

    epsilon: float
    delta: float
    prompts: int
    path: tuple[Step, ...]
    used: UsedPrompts

    KIND: ClassVar[str] = "certificate"
    VERSION: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not all(step.rejected for step in self.path[:-1]):
            raise DataError("a certificate's path goes on after a test that did not reject.")

    @property
    def certified(self) -> bool:
        """Whether a policy of the path is. If not, serve the largest stage, which needs none."""
        return self._served is not None

    @property
    def lam(self) -> float | None:
        """Lambda of the policy to serve, the cheapest certified; None for always-largest."""
        return self._served.lam if self._served else None

    @property
    def kappa(self) -> float | None:
        """Kappa of the policy to serve; None for always-largest."""
        return self._served.kappa if self._served else None

    @property
    def failures(self) -> int:
        """Those of the policy to serve among the prompts."""
        return self._served.failures if self._served else 0

    @property
    def _served(self) -> Step | None:
        return next((step for step in reversed(self.path) if step.rejected), None)

    def covers(self, policy: Policy) -> bool:
        """Whether this very policy, with its costs and tables, is certified."""
        name = fingerprint(policy.to_plain())
        return any(step.rejected and step.policy == name for step in self.path)

    def is_about(self, policies: Sequence[Policy], epsilon: float, delta: float) -> bool:
        """Whether these policies, in this order, at these rates, are what was tested."""
        names = [fingerprint(policy.to_plain()) for policy in policies[: len(self.path)]]
        return (epsilon, delta, names) == (
            self.epsilon,
            self.delta,
            [step.policy for step in self.path],
        )

    def to_plain(self) -> dict[str, Any]:
        """The certificate as plain Python that JSON holds."""
        return to_document(self, self.KIND, self.VERSION)

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """What `to_plain` wrote; FormatError where it is newer, DataError where it is damaged."""
        return from_document(cls, plain, cls.KIND, cls.VERSION)


def order_path(
    calibration: Paths,
    costs: npt.ArrayLike,
    grid: Iterable[tuple[float, float]] = GRID,
    *,
    quoted: npt.ArrayLike | None = None,
) -> tuple[Policy, ...]:
    """Policies fitted at each (lambda, kappa) of a grid, in the order in which to test them.

    Safest first, by excess loss on the calibration paths; of equally safe ones the dearest. Each is
    cheaper there than all before it, so that the last one certified is the one to serve. costs and
    quoted are as in `fit`.
    """
    tried: list[tuple[float, float, int, Policy]] = []
    for lam, kappa in grid:
        policy = fit(calibration, costs, lam, kappa, quoted=quoted)
        outcome = policy.run(calibration, costs, quoted)
        lost = calibration.mean((calibration.good[:, -1] - outcome.good).clip(min=0.0))
        tried.append((lost, -calibration.mean(outcome.cost), len(tried), policy))
    path: list[Policy] = []
    cheapest = math.inf
    for _, saved, _, policy in sorted(tried, key=lambda each: each[:3]):
        if -saved < cheapest:
            cheapest = -saved
            path.append(policy)
    return tuple(path)


def certify(
    policies: Sequence[Policy],
    certification: Paths,
    epsilon: float = EPSILON,
    delta: float = DELTA,
    groups: Sequence[Hashable] | None = None,
    *,
    prompts: Sequence[str],
    used: Iterable[UsedPrompts] = (),
    costs: npt.ArrayLike | None = None,
) -> Certificate:
    """The certificate of policies in their order, from prompts that nothing else was fitted on.

    groups [N] name prompts that count once, as paraphrases do; a group fails where any of its
    prompts does, which is never fewer than where one is drawn from it. Without groups, prompts of
    the same text are one. `used` are sets of prompts that must not occur again: those of earlier
    certificates, and of the fit. costs are as in `Policy.run`.

    Raises DataError where prompts have weights or labels are shares, for which failures do not
    follow a binomial, and CascadeError where a prompt was used.
    """
    _check_rates(epsilon, delta)
    _check_independent(certification, prompts)
    marks = UsedPrompts.of(prompts)
    _check_unused(marks, used)
    group = _group_of(prompts, groups)
    count = int(group.max(initial=-1)) + 1
    path: list[Step] = []
    for policy in policies:
        failed = excess_failures(certification, policy.run(certification, costs))
        failures = len(np.unique(group[failed]))
        p_value = binomial_cdf(failures, count, epsilon)
        name = fingerprint(policy.to_plain())
        step = Step(policy.lam, policy.kappa, name, failures, p_value, p_value <= delta)
        path.append(step)
        if not step.rejected:
            break
    return Certificate(epsilon, delta, count, tuple(path), marks)


def excess_failures(paths: Paths, outcome: Outcome) -> BoolArray:
    """Where the largest stage's answer is right and the one returned is wrong, [N]."""
    failed: BoolArray = (paths.good[:, -1] == 1.0) & (outcome.good == 0.0)
    return failed


def plan(epsilon: float, delta: float, prompts: int) -> int | None:
    """The most failures among so many prompts that still certify; None: not even without one."""
    _check_rates(epsilon, delta)
    allowed = np.flatnonzero(_binomial_cdfs(prompts, epsilon) <= delta)
    return int(allowed[-1]) if len(allowed) else None


def binomial_cdf(successes: int, trials: int, chance: float) -> float:
    """Pr(Bin(trials, chance) <= successes)."""
    return float(_binomial_cdfs(trials, chance)[min(successes, trials)])


def _binomial_cdfs(trials: int, chance: float) -> FloatArray:
    """Pr(Bin(trials, chance) <= k) for k = 0..trials; terms are formed as logarithms."""
    k = np.arange(1, trials + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((trials - k + 1) / k))])
    counts = np.arange(trials + 1)
    terms = ways + counts * math.log(chance) + (trials - counts) * math.log1p(-chance)
    cdfs: FloatArray = np.minimum(np.cumsum(np.exp(terms)), 1.0)
    return cdfs


def _check_rates(epsilon: float, delta: float) -> None:
    if not (0.0 < epsilon < 1.0 and 0.0 < delta < 1.0):
        raise ConfigError(f"epsilon={epsilon}, delta={delta}: expected numbers between 0 and 1.")


def _check_independent(certification: Paths, prompts: Sequence[str]) -> None:
    if len(prompts) != len(certification):
        raise ShapeError(f"{len(prompts)} prompts for {len(certification)} paths.")
    if (certification.weights != 1.0).any():
        raise DataError(
            "the certification prompts have weights other than 1: a certificate counts prompts.",
            fix="draw prompts as often as they occur, and give none a weight.",
        )
    if not np.isin(certification.good, (0.0, 1.0)).all():
        raise DataError(
            "labels of the certification prompts are shares: a certificate counts failures.",
            fix="label one answer of each stage to each prompt, as right or wrong.",
        )


def _check_unused(marks: UsedPrompts, used: Iterable[UsedPrompts]) -> None:
    for earlier in used:
        if again := marks.shared(earlier):
            raise CascadeError(
                f"{again} of the {len(marks)} certification prompts were used before: choosing and "
                "testing on the same prompts certifies nothing.",
                fix="certify on prompts that nothing was fitted, chosen or certified on.",
            )


def _group_of(prompts: Sequence[str], groups: Sequence[Hashable] | None) -> IntArray:
    """The number of each prompt's group, [N], from 0."""
    named: Sequence[Hashable] = prompts if groups is None else groups
    if len(named) != len(prompts):
        raise ShapeError(f"{len(named)} groups for {len(prompts)} prompts.")
    numbers: dict[Hashable, int] = {}
    found = [numbers.setdefault(name, len(numbers)) for name in named]
    if len(set(zip(prompts, found, strict=True))) > len(set(prompts)):
        raise DataError("the same prompt is in two groups, but repeats count once.")
    return np.array(found, dtype=np.int64)
