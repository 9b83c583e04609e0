"""Contestants take turns, so that what slows the machine down for a while slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from stepwell.errors import ConfigError, StepwellError
from stepwell.evals.bench.figures import Figures
from stepwell.evals.bench.hook import Hook
from stepwell.evals.bench.peers.conversation import Answer, Timing
from stepwell.evals.bench.plan import BenchPlan

Turn = Callable[[int], float]
"""One measurement; it is told the number of the round, from which its random ids follow."""


class Contestant(Protocol):
    """Something that runs a model: this package, or a peer."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    def measure(self, rows: int, prompt: int, new: int, seed: int) -> Timing:
        """Seconds of reading `rows` prompts, and of the `new - 1` tokens behind the first."""

    def batch(self, requests: tuple[tuple[int, int], ...], seed: int) -> float:
        """Seconds until the last of the requests, (prompt, new tokens) each, is answered."""

    def load(self, seed: int) -> float:
        """Seconds from the files to the first token of a short prompt."""

    def train(self, rows: int, length: int, seed: int, *, compiled: bool) -> float:
        """Seconds of a training step over `rows` of so many tokens, products in bfloat16."""

    def hooked(self, rows: int, prompt: int, new: int, seed: int, hook: Hook) -> Answer:
        """What `rows` prompts are answered under a hook, and the seconds that it takes."""

    def logits(self, prompt: int, seed: int, hook: Hook) -> list[float]:
        """The logits from which the first token of an answer comes, under an intervention."""


def take_turns(turns: Mapping[str, Turn], plan: BenchPlan) -> dict[str, Figures | str]:
    """Figures of each contestant, or in a sentence why it has none.

    Round 0 warms up and does not count. Who fails takes no further part.
    """
    values: dict[str, list[float]] = {name: [] for name in turns}
    problems: dict[str, str] = {}
    for number in range(plan.repetitions + 1):
        for name, turn in turns.items():
            if name in problems:
                continue
            time.sleep(plan.pause_s)
            try:
                values[name].append(turn(number))
            except StepwellError as error:
                problems[name] = error.problem
    return {name: problems.get(name) or Figures(tuple(values[name][1:])) for name in turns}


def rate(tokens: int, seconds: float) -> float:
    """Tokens a second. Raises ConfigError where so few tokens take no time that can be measured."""
    if seconds <= 0:
        raise ConfigError(
            f"{tokens} tokens took {seconds:.2g} s, which measures nothing.",
            fix="raise --new-tokens, and leave the machine alone meanwhile.",
        )
    return tokens / seconds
