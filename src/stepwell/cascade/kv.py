"""Keys and values of prompts that may go on: whose, at which stage, and for how long.

A prompt that stopped early may be asked again, deeper or in the next turn of a conversation. Then
what a stage has read of it need not be read again. Owns which prompts are kept, under one budget of
bytes for all stages; the tensors stay in each stage's engine, which may take back what it needs. To
be evicted loses nothing: the stage reads the prompt again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from stepwell.cascade.rule.paths import FloatArray
from stepwell.cascade.stage import Stage
from stepwell.generate.pins import Pin
from stepwell.generate.request import Completion
from stepwell.model.blocks import BLOCK


@runtime_checkable
class Keeper(Protocol):
    """A stage whose keys and values can be kept: one that runs here."""

    def num_cached(self, prompt: str) -> int:
        """How many of a prompt's tokens need not be read again."""

    def pin(self, prompt: str, completion: Completion) -> Pin:
        """Keep those of a prompt and its answer."""

    def unpin(self, pin: Pin) -> None:
        """Let them go."""


@dataclass(frozen=True)
class KVStatistics:
    """What is kept now, and what became of it so far.

    prompt_tokens were asked of the stages; cached_tokens of them were found. evicted: prompts that
    had to make room for others, returned: those whose room a running row took.
    """

    kept: int = 0
    kept_bytes: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    evicted: int = 0
    returned: int = 0


class KVManager:
    """What is kept of prompts, at the stages (numbered from 1) that can keep anything."""

    def __init__(self, stages: Sequence[Stage], budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._num_stages = len(stages)
        numbered = enumerate(stages, start=1)
        self._keepers = {number: each for number, each in numbered if isinstance(each, Keeper)}
        self._pins: OrderedDict[tuple[int, str], Pin] = OrderedDict()  # used longest ago first
        self._prompt_tokens = self._cached_tokens = self._evicted = self._returned = 0

    @property
    def statistics(self) -> KVStatistics:
        """The counts, and what is kept at this moment."""
        self._let_go_of_returned()
        return KVStatistics(
            kept=len(self._pins),
            kept_bytes=sum(pin.num_bytes for pin in self._pins.values()),
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            evicted=self._evicted,
            returned=self._returned,
        )

    def keep(self, number: int, prompt: str, completion: Completion) -> None:
        """Keep what a stage has read of a prompt, in place of what it had read of it before."""
        keeper = self._keepers.get(number)
        usage = completion.usage
        self._prompt_tokens += usage.prompt_tokens
        self._cached_tokens += usage.cached_tokens
        if keeper is None or usage.total_tokens <= BLOCK:
            return
        before = self._pins.pop((number, prompt), None)
        pin = keeper.pin(prompt, completion)
        if before is not None:
            keeper.unpin(before)
        if pin.num_tokens:
            self._pins[number, prompt] = pin
        self._make_room()

    def cached(self, prompts: Sequence[str]) -> FloatArray | None:
        """Tokens of each prompt that each stage has at hand, [N, K]; None where it is none."""
        if not self._pins:
            return None
        found = np.zeros((len(prompts), self._num_stages))
        for number, keeper in self._keepers.items():
            found[:, number - 1] = [keeper.num_cached(prompt) for prompt in prompts]
        return found if found.any() else None

    def clear(self) -> None:
        """Let everything go."""
        while self._pins:
            self._drop_oldest()

    def _make_room(self) -> None:
        self._let_go_of_returned()
        while sum(pin.num_bytes for pin in self._pins.values()) > self.budget_bytes:
            self._drop_oldest()
            self._evicted += 1

    def _drop_oldest(self) -> None:
        (number, _), pin = self._pins.popitem(last=False)
        self._keepers[number].unpin(pin)

    def _let_go_of_returned(self) -> None:
        """Forget the pins whose blocks an engine has taken for rows that run."""
        gone = [key for key, pin in self._pins.items() if not pin.num_tokens]
        for key in gone:
            del self._pins[key]
        self._returned += len(gone)
