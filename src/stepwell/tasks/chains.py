"""What variable renaming and variable evaluation share: values that move from name to name.

A text is a row of statements `source>name;`. The first `chains` statements start one chain each;
every later one draws a chain, each as likely as the others, and moves its value from the name that
holds it now to a new one. Names are the first `names` letters, drawn without replacement: none
comes twice while there are no more statements than names. Then names whose value has moved on come
back: the latest statement that binds a name counts, and one that holds a value is never
overwritten.
"""

from __future__ import annotations

import random
import string
from abc import abstractmethod
from collections.abc import Collection, Iterator
from typing import ClassVar

import pydantic

from stepwell.tasks.base import Task
from stepwell.tasks.example import Example, Target


class ChainTask(Task):
    """Statements that pass values on; at each name, in place, the value it receives is the label.

    Depth counts the statements that a value has gone through, 1 for the one that starts its chain.
    """

    ends: ClassVar[bool] = False

    chains: int = pydantic.Field(default=4, ge=1, le=10, description="values followed at once")
    names: int = pydantic.Field(default=52, ge=11, le=52, description="letters in use as names")

    @property
    @abstractmethod
    def num_statements(self) -> int:
        """How many statements a text has."""

    @abstractmethod
    def start(self, rng: random.Random, chain: int, /) -> tuple[str, int]:
        """The source that starts chain number `chain` (from 0), and its value as a digit."""

    @abstractmethod
    def step(self, rng: random.Random, name: str, value: int, /) -> tuple[str, int]:
        """A source made of the name that holds `value`, and the value of that source as a digit."""

    @property
    def max_answer_tokens(self) -> int:
        """1: a value is one digit."""
        return 1

    def example(self, index: int) -> Example:
        """`chains` starts, then steps of chains drawn at random."""
        rng = self.rng(index)
        holders: list[str] = []
        values, depths = [0] * self.chains, [0] * self.chains
        names = self._fresh_names(rng, holders)
        parts: list[str] = []
        targets: list[Target] = []
        position = 0
        for statement in range(self.num_statements):
            if statement < self.chains:
                chain = statement
                source, values[chain] = self.start(rng, chain)
                holders.append(next(names))
            else:
                chain = int(rng.random() * self.chains)
                source, values[chain] = self.step(rng, holders[chain], values[chain])
                holders[chain] = next(names)
            depths[chain] += 1
            parts.append(f"{source}>{holders[chain]};")
            position += len(parts[-1])
            targets.append(Target(position - 2, str(values[chain]), depths[chain], True))
        return Example("".join(parts), tuple(targets))

    def _fresh_names(self, rng: random.Random, holders: Collection[str]) -> Iterator[str]:
        """Letters in random order, without end; none that is in `holders` when they are drawn."""
        while True:
            letters = string.ascii_letters[: self.names]
            free = [letter for letter in letters if letter not in holders]
            yield from rng.sample(free, min(self.num_statements, len(free)))
