"""Running statistics of what passes hook points: mean, variance and norm, a head at a time.

Batches are merged by the formula of Chan et al. 1983 in float64, so that the number of prompts
costs no memory and no digits.
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass

import torch
from torch import Tensor

from stepwell.errors import HookError
from stepwell.generate.record import record
from stepwell.generate.tape import Key, Record
from stepwell.model.hooks import PATTERN
from stepwell.model.interventions import Intervention
from stepwell.model.transformer import Transformer

BATCH = 16


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of `count` positions: mean and variance of a channel, [H, D] or [C]; mean norm, [H] or [].

    float64. The variance is that of the population.
    """

    count: int
    mean: Tensor
    variance: Tensor
    norm: Tensor

    @classmethod
    def of(cls, values_N: Tensor) -> Statistics:
        """Those of values [N, ...] over the first axis."""
        values = values_N.double()
        norm = values.norm(dim=-1).mean(0)
        return cls(len(values), values.mean(0), values.var(0, correction=0), norm)

    def merged(self, other: Statistics) -> Statistics:
        """Those of both samples together."""
        if not other.count or not self.count:
            return self if self.count else other
        count = self.count + other.count
        share, apart = other.count / count, other.mean - self.mean
        within = (1 - share) * self.variance + share * other.variance
        return Statistics(
            count,
            self.mean + share * apart,
            within + share * (1 - share) * apart.square(),
            (1 - share) * self.norm + share * other.norm,
        )


def statistics(
    model: Transformer,
    prompts: Series[Series[int]],
    spec: Record,
    interventions: Series[Intervention] = (),
) -> dict[Key, Statistics]:
    """Statistics of every point and layer of a recording of these prompts, padding left out.

    Raises HookError for the pattern, whose width grows with the text, and what `record` raises.
    """
    if PATTERN in spec.points:
        raise HookError(
            f"{PATTERN} has no mean: its width grows with the text.",
            fix="ask for other points, or record it.",
        )
    found: dict[Key, Statistics] = {}
    for start in range(0, len(prompts), BATCH):
        seen = record(model, prompts[start : start + BATCH], spec, interventions)
        for key in seen:
            rows = [row.values[key] for row in seen.rows if row.positions]
            if rows:
                new = Statistics.of(torch.cat(rows))
                found[key] = found[key].merged(new) if key in found else new
    return found
