"""The conversation with a peer: JSON objects, one a line, on standard input and output.

    we say     {"model": DIR, "weights": "bf16", "threads": 2, "vocab_size": V, "length": 576}
    it says    {"version": "1.2"}                                    when the model is loaded
    we ask     {"do": "measure", "rows": 1, "prompt": 64, "new": 64, "seed": 3}
    it says    {"prefill_s": 0.01, "decode_s": 0.2}
    we ask     {"do": "batch", "requests": [[64, 32], [8, 4]], "seed": 3}
    it says    {"seconds": 1.5}
    we ask     {"do": "load", "seed": 3}
    it says    {"seconds": 0.4}
    we ask     {"do": "train", "rows": 8, "length": 256, "seed": 3, "compiled": false}
    it says    {"seconds": 0.9}
    we ask     {"do": "hooked", "rows": 1, "prompt": 64, "new": 2, "seed": 3, "hook": HOOK}
    it says    {"prefill_s": 0.01, "decode_s": 0.2, "ids": [[17, 5]]}
    we ask     {"do": "logits", "prompt": 64, "seed": 3, "hook": HOOK}
    it says    {"logits": [0.1, -2.5, ...]}

HOOK is an intervention, such as {"steer": {...}}; {"record": LAYER}, which keeps that layer's
attention pattern and need not tell any ids; or null. Logits are those behind the first prompt.
`length` is the longest sequence, prompt and answer together. The end of its input is the end of a
peer; what goes wrong with it stands on its standard error when it dies.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

FIRST_PROMPT = 8
"""Tokens of the prompt behind which the first token is awaited when loading is timed."""

LEARNING_RATE = 1e-4
"""Of the timed training steps; so low that the model stays as it is."""


class Timing(NamedTuple):
    """Seconds of reading the prompts up to the first token of each, and of all further tokens."""

    prefill_s: float
    decode_s: float


class Answer(NamedTuple):
    """The seconds of a Timing, and the greedy tokens behind each prompt."""

    prefill_s: float
    decode_s: float
    ids: list[list[int]]


class Setup(NamedTuple):
    """What a peer is told at its start."""

    model: str
    weights: str
    threads: int
    vocab_size: int
    length: int


def random_ids(seed: int, count: int, vocab_size: int) -> list[int]:
    """Token ids, none of them 0: the same for the same numbers in every environment."""
    source = random.Random(seed)
    return [source.randrange(1, vocab_size) for _ in range(count)]


def random_prompts(seed: int, lengths: Sequence[int], vocab_size: int) -> list[list[int]]:
    """A prompt of each length, all of them different."""
    return [random_ids(seed * 1009 + row, length, vocab_size) for row, length in enumerate(lengths)]


class Player:
    """A peer with its model loaded; a peer overrides what it can do."""

    version = ""

    def measure(self, rows: int, prompt: int, new: int, seed: int) -> Timing:
        """Seconds of reading `rows` prompts, and of the `new - 1` tokens behind the first."""
        raise NotImplementedError

    def batch(self, requests: Sequence[Sequence[int]], seed: int) -> float:
        """Seconds until the last of the requests, (prompt, new tokens) each, is answered."""
        raise NotImplementedError

    def load(self, seed: int) -> float:
        """Seconds from the files to the first token of a short prompt."""
        raise NotImplementedError

    def train(self, rows: int, length: int, seed: int, compiled: bool) -> float:
        """Seconds of a training step over `rows` of so many tokens, products in bfloat16."""
        raise NotImplementedError

    def hooked(
        self, rows: int, prompt: int, new: int, seed: int, hook: Mapping[str, Any] | None
    ) -> Answer:
        """What `rows` prompts are answered under a hook, and the seconds that it takes."""
        raise NotImplementedError

    def logits(self, prompt: int, seed: int, hook: Mapping[str, Any]) -> list[float]:
        """The logits from which the first token of an answer comes, under an intervention."""
        raise NotImplementedError

    def answer(self, do: str, **asked: Any) -> dict[str, Any]:
        """What is said to a question."""
        if do == "hooked":
            return self.hooked(**asked)._asdict()
        if do == "logits":
            return {"logits": self.logits(**asked)}
        if do == "measure":
            return self.measure(**asked)._asdict()
        if do == "batch":
            return {"seconds": self.batch(**asked)}
        if do == "train":
            return {"seconds": self.train(**asked)}
        assert do == "load", f"{do!r} is no question"
        return {"seconds": self.load(**asked)}


def converse(start: Callable[[Setup], Player]) -> None:
    """Answers questions until there are no more. What libraries print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(plain: dict[str, Any]) -> None:
        channel.write(json.dumps(plain) + "\n")
        channel.flush()

    player = start(Setup(**json.loads(sys.stdin.readline())))
    say({"version": player.version})
    for line in sys.stdin:
        say(player.answer(**json.loads(line)))
