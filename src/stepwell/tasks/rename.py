"""Variable renaming: `1>a;2>b;a>c;b>d;d>e;`, with the value of every name as a label in place."""

from __future__ import annotations

import random
import string
from typing import Self

import pydantic

from stepwell.tasks.chains import ChainTask


class VariableRenaming(ChainTask):
    """Which value has reached this name? Depth d takes d lookups; guessing is right 1/chains.

    The values are 1 to `chains`, ten being written 0.
    """

    alphabet = string.digits + string.ascii_letters + ">;"

    renames: int = pydantic.Field(
        default=150, ge=1, le=4096, description="statements, those that start the chains included"
    )

    @pydantic.model_validator(mode="after")
    def _room_for_chains(self) -> Self:
        if self.renames < self.chains:
            raise ValueError(f"renames={self.renames} must be at least chains={self.chains}")
        return self

    @property
    def num_statements(self) -> int:
        """As many as `renames`."""
        return self.renames

    @property
    def context_length(self) -> int:
        """Four characters a statement."""
        return 4 * self.renames

    def start(self, _rng: random.Random, chain: int, /) -> tuple[str, int]:
        """The chain's own value."""
        value = (chain + 1) % 10
        return str(value), value

    def step(self, _rng: random.Random, name: str, value: int, /) -> tuple[str, int]:
        """The name itself: its value goes on unchanged."""
        return name, value
