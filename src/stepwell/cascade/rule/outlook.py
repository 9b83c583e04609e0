"""What a state promises before any data is asked: the loss of stopping and the best fixed plans.

A state is the set of stages that were run, as bits of an integer (bit n-1 for stage n; its highest
stage is the last one run), together with the beliefs held after it. Recall is among those stages.
Owns the open-loop arithmetic; the correction learned from paths is in dynamic_programme.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepwell.cascade.rule.paths import FloatArray


@dataclass(frozen=True, eq=False)
class Outlook:
    """One state as N prompts see it: k is the last stage run, action a runs stage k + 1 + a."""

    state: int
    beliefs: FloatArray  # [N, K], held after stage k
    steps: FloatArray  # [N, K - k], what each action costs at once
    kept: FloatArray  # [N], b_k: the belief in the best answer at hand, 0 where there is none
    stop_loss: FloatArray  # [N], price * (1 - b_k)
    plans: FloatArray  # [N, K - k], the best fixed plan that starts with each action

    @property
    def margin(self) -> FloatArray:
        """What the best fixed plan saves over stopping, [N]."""
        saved: FloatArray = self.stop_loss - self.plans.min(axis=1)
        return saved


def stages_of(state: int) -> list[int]:
    """The stages in a state, ascending."""
    return [stage + 1 for stage in range(state.bit_length()) if state >> stage & 1]


def detours(costs: FloatArray) -> FloatArray:
    """The cheapest way from stage n to a later stage j, [..., n-1, j-1], from costs [..., K, K]."""
    num_stages = costs.shape[-1]
    shortest = np.zeros(costs.shape)
    for start in range(1, num_stages):
        for goal in range(start + 1, num_stages + 1):
            best = costs[..., start, goal - 1]
            for via in range(start + 1, goal):
                onward = shortest[..., start - 1, via - 1] + costs[..., via, goal - 1]
                best = np.minimum(best, onward)
            shortest[..., start - 1, goal - 1] = best
    return shortest


def look_ahead(
    state: int, beliefs: FloatArray, costs: FloatArray, shortest: FloatArray, price: float
) -> Outlook:
    """The outlook of N prompts in a state: beliefs [N, K] held there, costs and detours [N, K, K].

    A fixed plan pays its stages and returns the last one's answer. Returning an earlier one, of
    those it runs or those at hand, would never be worth the stages after: costs are not negative.
    So such a plan is its first stage alone, or that and one later stage reached the cheapest way.
    """
    last = state.bit_length()
    num_stages = beliefs.shape[1]
    seen = [stage - 1 for stage in stages_of(state)]
    kept = beliefs[:, seen].max(axis=1) if seen else np.zeros(len(beliefs))
    steps = costs[:, last, last:] if last < num_stages else np.empty((len(beliefs), 0))
    failure = price * (1.0 - beliefs)
    plans = np.empty(steps.shape)
    for first in range(last, num_stages):
        best = failure[:, first]
        for final in range(first + 1, num_stages):
            best = np.minimum(best, shortest[:, first, final] + failure[:, final])
        plans[:, first - last] = costs[:, last, first] + best
    return Outlook(state, beliefs, steps, kept, price * (1.0 - kept), plans)


def fixed_detours(costs: Sequence[Sequence[float]]) -> list[list[float]]:
    """`detours` for a single prompt, to the same bits, without the price of arrays."""
    shortest = [[0.0] * len(costs) for _ in costs]
    for start in range(len(costs) - 1):
        ways = shortest[start]
        for goal in range(start + 1, len(costs)):
            best = costs[start + 1][goal]
            for via in range(start + 1, goal):
                best = min(best, ways[via] + costs[via + 1][goal])
            ways[goal] = best
    return shortest


def fixed_plans(
    last: int,
    beliefs: Sequence[float],
    costs: Sequence[Sequence[float]],
    shortest: Sequence[Sequence[float]],
    price: float,
) -> list[float]:
    """The plans of `look_ahead` for a single prompt, to the same bits, without arrays."""
    failure = [price * (1.0 - belief) for belief in beliefs]
    plans = []
    for first in range(last, len(beliefs)):
        best = failure[first]
        ways = shortest[first]
        for final in range(first + 1, len(beliefs)):
            total = ways[final] + failure[final]
            if total < best:
                best = total
        plans.append(costs[last][first] + best)
    return plans
