"""What a predictor reads in each state: inputs, and which of them the stages run have told.

Inputs are a constant, a flag for each of the K stages that is 1 once it ran, and the features as
`Seen.flat` has them, standardised. In a state (bit n-1 for stage n) what no stage told is 0. Owns
this layout, and which states share a head and teach it; what is learned is predictor.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stepwell.cascade.beliefs.features import FeatureSet, Seen
from stepwell.cascade.rule.paths import BoolArray, FloatArray, IntArray

FARTHEST = 4.0  # standard deviations from the mean at which a feature is cut off
MOST_OWN_HEADS = 4  # stages, up to which every state has a head of its own
STATES_A_HEAD = 3  # that a prompt teaches a head which several states share


@dataclass(frozen=True)
class Layout:
    """Where inputs lie for K stages: 1 + K + D of them, of which D are features."""

    features: FeatureSet
    num_stages: int

    @cached_property
    def masks(self) -> BoolArray:
        """Which inputs each state tells, [2^K, 1 + K + D]."""
        states = np.arange(1 << self.num_stages)
        run = states[:, None] >> np.arange(self.num_stages) & 1 == 1
        known = [self.features.known(int(state), self.num_stages) for state in states]
        return np.concatenate([np.ones((len(states), 1), np.bool_), run, np.stack(known)], axis=1)

    @property
    def num_features(self) -> int:
        """D."""
        return int(self.masks.shape[1]) - 1 - self.num_stages

    @property
    def num_heads(self) -> int:
        """How many different values `head_of` has."""
        return self.head_of((1 << self.num_stages) - 1) + 1

    def head_of(self, state: int) -> int:
        """The head of a state: its own for few stages, else that of all with its last stage."""
        return state if self.num_stages <= MOST_OWN_HEADS else state.bit_length()

    def used(self, head: int) -> IntArray:
        """The inputs that a head's regressions read: the constant, then all that vary, [C]."""
        own = [state for state in range(len(self.masks)) if self.head_of(state) == head]
        masks = self.masks[own]
        flags = np.arange(masks.shape[1]) - 1 < self.num_stages
        flags[0] = False
        return np.flatnonzero(masks.any(axis=0) & ~(flags & masks.all(axis=0)))

    def lessons(self, num_prompts: int, random: np.random.Generator) -> tuple[IntArray, IntArray]:
        """The states [N, C] that each prompt is learned from in, and the heads [C] they teach.

        Every state where each has its own head; else, for each last stage, the one in which all
        before it ran and some drawn at random.
        """
        if self.num_stages <= MOST_OWN_HEADS:
            every = np.arange(1 << self.num_stages)
            return np.tile(every, (num_prompts, 1)), every
        states, heads = [], []
        for last in range(self.num_stages + 1):
            top = 1 << last >> 1
            for draw in range(min(max(top, 1), STATES_A_HEAD)):
                below = random.integers(max(top, 1), size=num_prompts)
                states.append(top | (below if draw else np.full(num_prompts, max(top - 1, 0))))
                heads.append(last)
        return np.stack(states, axis=1), np.array(heads)


@dataclass(frozen=True, eq=False)
class Standards:
    """Mean and standard deviation of each feature where it is known, [D]; 0 and 1 if never."""

    centre: FloatArray
    scale: FloatArray

    @classmethod
    def of(cls, seen: Seen, counts: FloatArray) -> Standards:
        """Those of prompts that weigh [N]."""
        flat = seen.flat()
        known = np.isfinite(flat)
        share = known * counts[:, None]
        total = np.maximum(share.sum(axis=0), 1e-300)
        values = np.where(known, flat, 0.0)
        centre = (share * values).sum(axis=0) / total
        spread = np.sqrt((share * (values - centre) ** 2).sum(axis=0) / total)
        return cls(centre, np.where(spread > 1e-12, spread, 1.0))

    def apply(self, flat: FloatArray) -> FloatArray:
        """Features [..., D] in deviations from their means, cut off; the unknown are average."""
        inputs = np.minimum(np.maximum((flat - self.centre) / self.scale, -FARTHEST), FARTHEST)
        inputs[np.isnan(inputs)] = 0.0
        return inputs

    def take(self, columns: IntArray) -> Standards:
        """Those of some of the features."""
        return Standards(self.centre[columns], self.scale[columns])
