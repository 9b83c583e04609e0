"""Choosing lambda by a budget or by quality, on small random populations."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stepwell.cascade.rule.paths import Paths
from stepwell.cascade.rule.stopping import fit
from stepwell.cascade.rule.tuning import LAMBDAS, Mixture, fit_budget, fit_quality
from stepwell.errors import CascadeError, DataError, FormatError, ShapeError

COSTS = [0.1, 0.3, 1.0]


def population(num_prompts: int = 300, seed: int = 0) -> Paths:
    """Prompts whose small stages are believed in rightly, and whose largest is nearly always good.

    Before a stage is run its mean is all that is known of it, then its chance.
    """
    rng = np.random.default_rng(seed)
    chances = np.column_stack([rng.random((num_prompts, 2)), np.full(num_prompts, 0.98)])
    good = (rng.random(chances.shape) < chances).astype(float)
    base = np.broadcast_to(chances.mean(axis=0), chances.shape)
    seen = np.arange(3) < np.arange(4)[:, None]
    return Paths(np.where(seen, chances[:, None], base[:, None]), good)


def mean_cost(mixture: Mixture, paths: Paths) -> float:
    """The expected cost over prompts and over the lots drawn."""
    share = mixture.share
    dear, cheap = (policy.run(paths).cost for policy in (mixture.dearer, mixture.cheaper))
    return paths.mean(share * dear + (1 - share) * cheap)


def test_a_budget_is_spent_exactly_by_mixing_the_two_policies_beside_it() -> None:
    paths = population()
    for budget in (0.15, 0.3, 0.55):
        mixture = fit_budget(paths, COSTS, budget)
        assert mean_cost(mixture, paths) == pytest.approx(budget, abs=1e-9)
        below = paths.mean(mixture.cheaper.run(paths).cost)
        above = paths.mean(mixture.dearer.run(paths).cost)
        assert below <= budget < above
        assert above - below < 0.05
        # Neither of the two alone would do: one breaks the budget, the other leaves some of it.
        assert 0.0 <= mixture.share < 1.0


def test_a_budget_beyond_use_is_not_spent_and_one_too_small_is_refused() -> None:
    paths = population()
    mixture = fit_budget(paths, COSTS, 10.0)
    assert mixture.cheaper == mixture.dearer
    with pytest.raises(CascadeError, match=r"cheapest policy costs 0\.1"):
        fit_budget(paths, COSTS, 0.05)


def test_the_lot_alone_decides_which_policy_serves_a_prompt() -> None:
    paths = population()
    mixture = fit_budget(paths, COSTS, 0.3)
    lots = np.random.default_rng(1).random(len(paths))
    outcome = mixture.run(paths, lots)
    for row in range(60):
        seen: list[int] = []
        decision = mixture.decide(0, paths.beliefs[row, 0], u=lots[row])
        while not decision.stop:
            seen.append(decision.stage)
            beliefs = paths.beliefs[row, seen[-1]]
            decision = mixture.decide(seen[-1], beliefs, u=lots[row], seen=seen)
        assert outcome.stage_returned[row] == decision.stage
        assert (np.flatnonzero(outcome.stages_run[row]) + 1).tolist() == seen
    np.testing.assert_array_equal(
        mixture.run(paths, np.zeros(300)).cost, mixture.dearer.run(paths).cost
    )
    with pytest.raises(ShapeError, match="u is"):
        mixture.run(paths, lots[:5])


def test_quality_is_kept_by_the_cheapest_lambda_that_keeps_it() -> None:
    paths = population(seed=2)
    floor = paths.mean(paths.good[:, 2]) - 0.1
    policy = fit_quality(paths, COSTS, within=0.1)
    outcome = policy.run(paths)
    assert paths.mean(outcome.good) >= floor
    assert paths.mean(outcome.cost) < 0.9
    for lam in LAMBDAS:
        other = fit(paths, COSTS, lam).run(paths)
        if paths.mean(other.good) >= floor:
            assert paths.mean(outcome.cost) <= paths.mean(other.cost)


def test_quality_out_of_reach_is_an_error() -> None:
    """Beliefs that are wrong about which stage is good mislead every lambda."""
    paths = population(seed=3)
    misled = Paths(1.0 - paths.beliefs, paths.good)
    with pytest.raises(CascadeError, match="no lambda"):
        fit_quality(misled, COSTS)


def test_a_mixture_survives_json_and_a_newer_one_is_refused() -> None:
    mixture = fit_budget(population(), COSTS, 0.3)
    plain = json.loads(json.dumps(mixture.to_plain(), allow_nan=False))
    assert Mixture.from_plain(plain) == mixture
    with pytest.raises(FormatError):
        Mixture.from_plain({**plain, "format_version": 2})
    with pytest.raises(DataError):
        Mixture.from_plain(mixture.cheaper.to_plain())
