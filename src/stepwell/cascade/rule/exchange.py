"""The price of a failure in the ladder's own terms.

Owns the rate of exchange between cost and failures that lambda is relative to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy.typing as npt

from stepwell.cascade.rule.paths import Paths, incremental_costs
from stepwell.errors import CascadeError

ONE_SIDED_95 = 1.6448536269514722  # the 95% point of the standard normal


@dataclass(frozen=True)
class Exchange:
    """The ladder's rate of exchange: what always-largest costs more for each failure it avoids."""

    price: float  # P0
    measured: bool  # False: the two could not be told apart, so P0 is C_K, the largest's cost
    extra_cost: float  # C_K - C_1
    failures_avoided: float  # F_1 - F_K
    lower_bound: float  # of F_1 - F_K, one-sided 95%

    @classmethod
    def measure(cls, paths: Paths, costs: npt.ArrayLike) -> Self:
        """The rate on calibration paths.

        The bound is Wald's with half an observation added to each cell of the paired table
        (Agresti and Min 2005), so that a handful of prompts cannot claim certainty.
        Raises CascadeError where there are no paths.
        """
        if not len(paths):
            raise CascadeError(
                "a price relative to the ladder needs calibration paths, got none.",
                fix="collect paths, or give the price of a failure itself (price=...).",
            )
        direct = incremental_costs(costs, len(paths), paths.num_stages)[:, 0]
        largest = paths.mean(direct[:, -1])
        extra = largest - paths.mean(direct[:, 0])
        gain = paths.good[:, -1] - paths.good[:, 0]
        avoided = paths.mean(gain)
        count = paths.effective_count + 2
        centre = avoided * (count - 2) / count
        square = (paths.mean(gain**2) * (count - 2) + 1) / count
        lower = centre - ONE_SIDED_95 * math.sqrt((square - centre**2) / count)
        measured = lower > 0 and extra > 0
        return cls(extra / avoided if measured else largest, measured, extra, avoided, lower)
