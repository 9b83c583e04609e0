"""Arithmetic: `12+7+30=49`, answers computed and not learnt by heart."""

from __future__ import annotations

import functools
import operator
import string
from collections.abc import Callable, Mapping

import pydantic

from stepwell.tasks.base import Task
from stepwell.tasks.example import Example

APPLY: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}


class Arithmetic(Task):
    """Sums, differences or products of some numbers, one operation an example, from left to right.

    Each number's length and the number of terms are drawn evenly up to `digits` and `terms`. Depth
    is the number of digits in the question.
    """

    alphabet = string.digits + "+-*="

    digits: int = pydantic.Field(default=3, ge=1, le=18, description="longest number")
    terms: int = pydantic.Field(default=2, ge=2, le=16, description="most numbers in a question")
    operations: str = pydantic.Field(
        default="+", pattern=r"^[+*-]+$", description="drawn from, for example +-*"
    )

    @property
    def context_length(self) -> int:
        """The longest question and its answer."""
        return self.terms * (self.digits + 1) + self.max_answer_tokens

    @property
    def max_answer_tokens(self) -> int:
        """The longest answer, its sign and the end."""
        largest = 10**self.digits - 1
        values = [functools.reduce(APPLY[sign], [largest] * self.terms) for sign in "+*"]
        longest = values["*" in self.operations]
        return len(str(longest)) + ("-" in self.operations) + 1

    def example(self, index: int) -> Example:
        """A question drawn evenly by length, not by value: short numbers are not rare."""
        rng = self.rng(index)
        operation = rng.choice(self.operations)
        lengths = [rng.randint(1, self.digits) for _ in range(rng.randint(2, self.terms))]
        numbers = [rng.randrange(10 ** (n - 1) if n > 1 else 0, 10**n) for n in lengths]
        value = functools.reduce(APPLY[operation], numbers)
        question = operation.join(map(str, numbers)) + "="
        return Example.completion(question, str(value), depth=sum(lengths))
