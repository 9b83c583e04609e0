"""Dealing prompts out to disjoint splits by what they say, and remembering which were used.

A prompt's split depends on its text and on the shares alone, so the same prompt never lies in two
splits, repeats stay together, and prompts that come later move no earlier one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from stepwell.cascade.rule.paths import IntArray
from stepwell.errors import ConfigError, DataError

MARK = 16  # hexadecimal digits that a prompt is remembered by


def splits(keys: Sequence[str], shares: Mapping[str, float]) -> dict[str, IntArray]:
    """The rows of each split, ascending, from the prompts' texts.

    A split gets about its share of the different texts, of all shares together. Where several
    prompts say the same in other words, give what they have in common as the key of each. Raises
    ConfigError where shares are not positive.
    """
    if not shares or not all(math.isfinite(share) and share > 0 for share in shares.values()):
        raise ConfigError(f"shares are {dict(shares)}, expected positive numbers by split.")
    ends = np.cumsum(list(shares.values()))
    places = np.array([int(_digest(key), 16) for key in keys], dtype=np.float64) / 16.0**64
    chosen = np.minimum(np.searchsorted(ends / ends[-1], places, side="right"), len(ends) - 1)
    return {name: np.flatnonzero(chosen == index) for index, name in enumerate(shares)}


@dataclass(frozen=True)
class UsedPrompts:
    """Different prompts that were used for something, each by a hash: `marks` are in order."""

    marks: tuple[str, ...]

    def __post_init__(self) -> None:
        if any(len(mark) != MARK for mark in self.marks):
            raise DataError(f"a mark of a used prompt does not have {MARK} digits.")

    @classmethod
    def of(cls, prompts: Iterable[str]) -> Self:
        """Those of some prompts; a prompt given twice is one."""
        return cls(tuple(sorted({_digest(prompt)[:MARK] for prompt in prompts})))

    @property
    def digest(self) -> str:
        """SHA-256 of the whole set, in hexadecimal: equal for the same prompts in any order."""
        return hashlib.sha256("".join(self.marks).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.marks)

    def __contains__(self, prompt: str) -> bool:
        return _digest(prompt)[:MARK] in self._marks

    @cached_property
    def _marks(self) -> frozenset[str]:
        return frozenset(self.marks)

    def shared(self, other: UsedPrompts) -> int:
        """How many prompts are in both sets."""
        return len(set(self.marks) & set(other.marks))


def _digest(text: str) -> str:
    return hashlib.sha256(b"cascade prompt\0" + text.encode("utf-8", "surrogatepass")).hexdigest()
