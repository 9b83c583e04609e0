"""Choosing lambda: by a budget of mean cost, or by the quality of the largest stage.

Owns the search over fitted policies and the mixture of two of them; a single fit is in stopping.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from stepwell.cascade.documents import from_document, to_document
from stepwell.cascade.rule import stopping
from stepwell.cascade.rule.paths import FloatArray, Outcome, Paths
from stepwell.cascade.rule.stopping import Decision, Policy
from stepwell.errors import CascadeError, ShapeError

HALVINGS = 30  # of the logarithm of lambda between a policy below the budget and one above
LARGEST_LAMBDA = 2.0**20
LAMBDAS = tuple(2.0 ** (step / 2) for step in range(-12, 25))  # 1/64 to 4,096


@dataclass(frozen=True)
class Mixture:
    """Two policies, of which `share` of the prompts are served by the dearer one.

    A caller draws one uniform `u` a prompt and passes the same one to each of its decisions.
    """

    cheaper: Policy
    dearer: Policy
    share: float

    KIND: ClassVar[str] = "stopping mixture"
    VERSION: ClassVar[int] = 1

    def policy(self, u: float) -> Policy:
        """The policy that serves a prompt whose uniform draw from [0, 1) is `u`."""
        return self.dearer if u < self.share else self.cheaper

    def decide(
        self,
        stage: int,
        beliefs: Sequence[float],
        *,
        u: float,
        seen: Iterable[int] | None = None,
        costs: Sequence[Sequence[float]] | None = None,
    ) -> Decision:
        """As `Policy.decide`, by the policy that `u` picks."""
        return self.policy(u).decide(stage, beliefs, seen=seen, costs=costs)

    def run(self, paths: Paths, u: FloatArray, costs: npt.ArrayLike | None = None) -> Outcome:
        """What `decide` would do with each recorded path; u is [N]."""
        if u.shape != (len(paths),):
            raise ShapeError(f"u is {list(u.shape)}, expected [{len(paths)}].")
        dearer, cheaper = self.dearer.run(paths, costs), self.cheaper.run(paths, costs)
        picked = u < self.share
        return Outcome(
            np.where(picked, dearer.stage_returned, cheaper.stage_returned),
            np.where(picked[:, None], dearer.stages_run, cheaper.stages_run),
            np.where(picked, dearer.cost, cheaper.cost),
            np.where(picked, dearer.good, cheaper.good),
        )

    def to_plain(self) -> dict[str, Any]:
        """The mixture as plain Python that JSON holds."""
        return to_document(self, self.KIND, self.VERSION)

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """The mixture that `to_plain` wrote; FormatError if it is newer, DataError if damaged."""
        return from_document(cls, plain, cls.KIND, cls.VERSION)


def fit_budget(
    paths: Paths,
    costs: npt.ArrayLike,
    budget: float,
    kappa: float = 0.0,
    *,
    quoted: npt.ArrayLike | None = None,
) -> Mixture:
    """The mixture whose mean cost on the calibration paths is `budget`, or the dearest policy.

    Lambda moves the mean cost in jumps; the mixture randomises between the two beside the budget.
    quoted are the costs known when deciding, as in `fit`. Raises CascadeError where even lambda = 0
    costs more.
    """

    def fit(paths: Paths, costs: npt.ArrayLike, lam: float, kappa: float) -> Policy:
        return stopping.fit(paths, costs, lam, kappa, quoted=quoted)

    def cost_of(policy: Policy) -> float:
        return paths.mean(policy.run(paths, costs, quoted).cost)

    cheaper, low = fit(paths, costs, 0.0, kappa), 0.0
    if cost_of(cheaper) > budget:
        raise CascadeError(
            f"the budget is {budget:g} a prompt, the cheapest policy costs {cost_of(cheaper):g}.",
            fix="raise the budget, or put a cheaper stage first.",
        )
    dearer, high = fit(paths, costs, 1.0, kappa), 1.0
    while cost_of(dearer) <= budget:
        cheaper, low = dearer, high
        if high >= LARGEST_LAMBDA:
            return Mixture(cheaper, cheaper, 1.0)
        high *= 2.0
        dearer = fit(paths, costs, high, kappa)
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5 if low else high / 4.0
        policy = fit(paths, costs, middle, kappa)
        if cost_of(policy) <= budget:
            cheaper, low = policy, middle
        else:
            dearer, high = policy, middle
    below, above = cost_of(cheaper), cost_of(dearer)
    return Mixture(cheaper, dearer, (budget - below) / (above - below))


def fit_quality(
    paths: Paths,
    costs: npt.ArrayLike,
    within: float = 0.01,
    kappa: float = 0.0,
    *,
    quoted: npt.ArrayLike | None = None,
) -> Policy:
    """The cheapest policy that keeps the largest stage's quality within `within` on these paths.

    Lambda is taken from `LAMBDAS`; quoted as in `fit`. Raises CascadeError where none keeps it.
    """
    floor = paths.mean(paths.good[:, -1]) - within
    kept: list[tuple[float, float, Policy]] = []
    for lam in LAMBDAS:
        policy = stopping.fit(paths, costs, lam, kappa, quoted=quoted)
        outcome = policy.run(paths, costs, quoted)
        if paths.mean(outcome.good) >= floor:
            kept.append((paths.mean(outcome.cost), lam, policy))
    if not kept:
        raise CascadeError(
            f"no lambda up to {LAMBDAS[-1]:g} keeps the quality above {floor:.4f}.",
            fix="serve the largest stage, or check that the beliefs are calibrated.",
        )
    return min(kept, key=lambda found: found[:2])[2]
