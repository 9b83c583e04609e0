"""Our side of the contest: an engine asked through its events, and a trainer of the same shape."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from stepwell.errors import PromptError
from stepwell.evals.bench.peers.conversation import (
    FIRST_PROMPT,
    Timing,
    random_ids,
    random_prompts,
)
from stepwell.evals.bench.plan import Weights
from stepwell.evals.bench.training import TimedTrainer
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.request import Event, FinishedEvent, Request, SamplingParams
from stepwell.model.interventions import Intervention
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model


class Ours:
    """This package, with a model of its own on the CPU. A `Contestant`."""

    name = "stepwell"

    def __init__(self, directory: Path, weights: Weights) -> None:
        self.directory, self.weights = directory, weights
        self.model = load_model(directory, weights=weights)
        self._engine = InferenceEngine(self.model)
        self._trainer: TimedTrainer | None = None

    def measure(
        self,
        rows: int,
        prompt: int,
        new: int,
        seed: int,
        interventions: Sequence[Intervention] = (),
    ) -> Timing:
        """Seconds of reading `rows` prompts, and of the `new - 1` tokens behind the first."""
        self.check_length(prompt + new)
        prompts = random_prompts(seed, [prompt] * rows, self.model.config.vocab_size)
        return timed(self._engine, prompts, [new] * rows, interventions)

    def check_length(self, tokens: int) -> None:
        """Raises PromptError where a sequence of so many tokens does not fit the context."""
        context_length = self.model.config.context_length
        if tokens > context_length:
            raise PromptError(f"{tokens} tokens do not fit the context of {context_length}.")

    def batch(self, requests: tuple[tuple[int, int], ...], seed: int) -> float:
        """Seconds until the last of the requests, (prompt, new tokens) each, is answered."""
        lengths, new = zip(*requests, strict=True)
        prompts = random_prompts(seed, lengths, self.model.config.vocab_size)
        return sum(timed(self._engine, prompts, new))

    def train(self, rows: int, length: int, seed: int, *, compiled: bool) -> float:
        """Seconds of a training step over `rows` of so many tokens, products in bfloat16."""
        if self._trainer is None or self._trainer.config.compile != compiled:
            self._trainer = None  # lets go of the one before
            self._trainer = TimedTrainer(self.model.config, compiled=compiled)
        return self._trainer.step_s(rows, length, seed)

    def load(self, seed: int) -> float:
        """Seconds from the files to the first token of a short prompt."""
        ids = random_ids(seed, FIRST_PROMPT, self.model.config.vocab_size)
        begun = time.perf_counter()
        first_token(load_model(self.directory, weights=self.weights), ids)
        return time.perf_counter() - begun


def first_token(model: Transformer, ids: Sequence[int]) -> None:
    """Generates one token with a new engine."""
    timed(InferenceEngine(model), [ids], [1])


def timed(
    engine: InferenceEngine,
    prompts: Sequence[Sequence[int]],
    new: Sequence[int],
    interventions: Sequence[Intervention] = (),
) -> Timing:
    """Seconds until every prompt has its first token, and from then on until all are answered.

    Each answer has so many tokens; raises what ended one early. No prompt is found in the prefix
    cache, though it may have been read before.
    """
    salt = secrets.token_hex(8)
    requests = [
        Request(
            prompt_ids=tuple(ids),
            sampling=SamplingParams(temperature=0.0, max_new_tokens=count, ignore_eos=True),
            interventions=tuple(interventions),
            cache_salt=f"{salt}-{index}",
        )
        for index, (ids, count) in enumerate(zip(prompts, new, strict=True))
    ]
    begun = time.perf_counter()
    handles = [engine.submit(request) for request in requests]
    events = [iter(handle) for handle in handles]
    for each in events:
        check(next(each))
    read = time.perf_counter()
    for each in events:
        for event in each:
            check(event)
    return Timing(read - begun, time.perf_counter() - read)


def check(event: Event) -> None:
    """Raises what ended an answer early."""
    if isinstance(event, FinishedEvent) and event.error is not None:
        raise event.error
