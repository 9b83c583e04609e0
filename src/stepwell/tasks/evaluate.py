"""Variable evaluation: `1+3>a;2+4>b;a+3>c;`, with every value modulo 10 as a label in place."""

from __future__ import annotations

import random
import string
from typing import Self

import pydantic

from stepwell.tasks.arithmetic import APPLY
from stepwell.tasks.chains import ChainTask


class VariableEvaluation(ChainTask):
    """What is the value of this name? Depth d takes d lookups and d operations.

    The right operand is a digit; of products it is 1, 3, 7 or 9, which have an inverse modulo 10.
    So each of the ten values is as likely as the others at every depth: guessing is right 1/10.
    """

    alphabet = string.digits + string.ascii_letters + ">;+-*"

    statements: int = pydantic.Field(default=20, ge=1, le=4096, description="statements in a text")
    operations: str = pydantic.Field(
        default="+", pattern=r"^[+*-]+$", description="drawn from, for example +-*"
    )

    @pydantic.model_validator(mode="after")
    def _room_for_chains(self) -> Self:
        if self.statements < self.chains:
            raise ValueError(f"statements={self.statements} must be at least chains={self.chains}")
        return self

    @property
    def num_statements(self) -> int:
        """As many as `statements`."""
        return self.statements

    @property
    def context_length(self) -> int:
        """Six characters a statement."""
        return 6 * self.statements

    def start(self, rng: random.Random, _chain: int, /) -> tuple[str, int]:
        """Two digits and an operation."""
        digit = rng.randrange(10)
        return self.step(rng, str(digit), digit)

    def step(self, rng: random.Random, name: str, value: int, /) -> tuple[str, int]:
        """The name, an operation and a digit."""
        operation = rng.choice(self.operations)
        digit = int(rng.choice("1379" if operation == "*" else string.digits))
        return f"{name}{operation}{digit}", APPLY[operation](value, digit) % 10
