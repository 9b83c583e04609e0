"""What a state promises before any data is asked: the loss of stopping and the best fixed plans.

A state is the set of stages that were run, as bits of an integer (bit n-1 for stage n; its highest
stage is the last one run), together with the beliefs held after it. Recall is among those stages.
Owns the open-loop arithmetic; the correction learned from paths is in dynamic_programme.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepwell.cascade.paths import FloatArray


@dataclass(frozen=True, eq=False)
class Outlook:
    """One state as N prompts see it; k is the last stage run, action a goes on to stage k + 1 + a."""

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

    A fixed plan pays its stages and then the price of the failure that the best belief on it
    leaves. Costs are not negative, so such a plan ends where its belief is highest: the first stage,
    or one later stage reached the cheapest way.
    """
    last = state.bit_length()
    num_stages = beliefs.shape[1]
    seen = [stage - 1 for stage in stages_of(state)]
    kept = beliefs[:, seen].max(axis=1) if seen else np.zeros(len(beliefs))
    steps = costs[:, last, last:] if last < num_stages else np.empty((len(beliefs), 0))
    plans = np.empty(steps.shape)
    for first in range(last + 1, num_stages + 1):
        after = np.maximum(kept, beliefs[:, first - 1])
        best = price * (1.0 - after)
        for final in range(first + 1, num_stages + 1):
            failure = 1.0 - np.maximum(after, beliefs[:, final - 1])
            best = np.minimum(best, shortest[:, first - 1, final - 1] + price * failure)
        plans[:, first - last - 1] = costs[:, last, first - 1] + best
    return Outlook(state, beliefs, steps, kept, price * (1.0 - kept), plans)


def fixed_plans(
    last: int,
    kept: float,
    beliefs: Sequence[float],
    costs: Sequence[Sequence[float]],
    shortest: Sequence[Sequence[float]],
    price: float,
) -> list[float]:
    """`look_ahead`'s plans for a single prompt, to the same bits, without the price of arrays."""
    plans = []
    for first in range(last, len(beliefs)):
        after = max(kept, beliefs[first])
        best = price * (1.0 - after)
        ways = shortest[first]
        for final in range(first + 1, len(beliefs)):
            total = ways[final] + price * (1.0 - max(after, beliefs[final]))
            if total < best:
                best = total
        plans.append(costs[last][first] + best)
    return plans
