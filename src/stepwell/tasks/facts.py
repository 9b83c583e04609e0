"""Facts to be learnt by heart: `zpqk>abc`, some of them met far more often than others."""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
import pydantic
from numpy.typing import NDArray

from stepwell.tasks.base import Task
from stepwell.tasks.example import Batch, Example

LETTERS = string.ascii_lowercase


class Facts(Task):
    """Keys of four random letters and values of three; no key comes twice.

    The fact of rank r (from 0) is drawn with a probability proportional to 1 / (r + offset). Every
    split draws from the same facts: what was not taught cannot be known. Depth is the number of
    binary digits of the rank, so that each depth holds twice as many facts as the one before.
    """

    alphabet = LETTERS + ">"
    ends: ClassVar[bool] = False
    memorised: ClassVar[bool] = True

    facts: int = pydantic.Field(default=2048, ge=1, le=100_000, description="how many there are")
    offset: float = pydantic.Field(
        default=8.0, gt=0, allow_inf_nan=False, description="the larger, the more even the draws"
    )

    @property
    def context_length(self) -> int:
        """A key, the sign between, a value."""
        return 8

    @property
    def max_answer_tokens(self) -> int:
        """3: the length of every value, so that no end is needed."""
        return 3

    def example(self, index: int) -> Example:
        """A fact drawn by its weight."""
        return self._ranked[int(self._ranks([index])[0])]

    def all(self) -> list[Example]:
        """Every fact once, by rank, weighted with the probability that it is drawn."""
        return list(self._ranked)

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """The same as one example after the other, gathered from a table."""
        import torch

        self.check_split(split)
        ranks = torch.from_numpy(self._ranks(indices))
        table = self._table
        return Batch(table.ids[ranks], table.labels[ranks], table.depths[ranks])

    def _ranks(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """The rank drawn at each index."""
        return np.searchsorted(self._cumulative, self.uniform(indices), side="right")

    @cached_property
    def _cumulative(self) -> NDArray[np.float64]:
        """Probability that a rank or one before it is drawn; 1 at the end."""
        weights = 1.0 / (np.arange(self.facts, dtype=np.float64) + self.offset)
        sums: NDArray[np.float64] = np.cumsum(weights)
        shares: NDArray[np.float64] = sums / sums[-1]
        return shares

    @cached_property
    def _ranked(self) -> list[Example]:
        rng = self.rng("facts")
        keys = rng.sample(range(26**4), self.facts)
        weights = np.diff(self._cumulative, prepend=0.0)
        return [
            Example.completion(
                self._word(key) + ">",
                "".join(rng.choices(LETTERS, k=3)),
                depth=rank.bit_length(),
                weight=float(weights[rank]),
            )
            for rank, key in enumerate(keys)
        ]

    @cached_property
    def _table(self) -> Batch:
        """All facts by rank as one batch."""
        return Batch.of([self.encode(example) for example in self._ranked])

    def _word(self, number: int) -> str:
        """Four letters: `number` in base 26, the last digit first."""
        return "".join(LETTERS[number // 26**place % 26] for place in range(4))
