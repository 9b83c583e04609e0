"""Our side of the contest: an engine asked through its events, and a trainer of the same shape."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from stepwell.errors import PromptError
from stepwell.evals.bench.hook import Hook
from stepwell.evals.bench.peers.conversation import (
    FIRST_PROMPT,
    Answer,
    Timing,
    random_ids,
    random_prompts,
)
from stepwell.evals.bench.plan import Weights
from stepwell.evals.bench.training import TimedTrainer
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.request import Event, FinishedEvent, Request, SamplingParams, TokenEvent
from stepwell.generate.tape import Record
from stepwell.model.hooks import LOGITS_LAYER
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model


class Ours:
    """This package, with a model of its own on the CPU. A `Contestant`."""

    name = "stepwell"

    def __init__(self, directory: Path, weights: Weights) -> None:
        self.directory, self.weights = directory, weights
        self.model = loaded(directory, weights)
        self._engine = InferenceEngine(self.model)
        self._trainer: TimedTrainer | None = None

    def measure(self, rows: int, prompt: int, new: int, seed: int) -> Timing:
        """Seconds of reading `rows` prompts, and of the `new - 1` tokens behind the first."""
        return Timing(*self.hooked(rows, prompt, new, seed, Hook())[:2])

    def hooked(self, rows: int, prompt: int, new: int, seed: int, hook: Hook) -> Answer:
        """What `rows` prompts are answered under a hook, and the seconds that it takes."""
        self.check_length(prompt + new)
        prompts = random_prompts(seed, [prompt] * rows, self.model.config.vocab_size)
        return answered(self._engine, requests_of(prompts, [new] * rows, hook))

    def logits(self, prompt: int, seed: int, hook: Hook) -> list[float]:
        """The logits from which the first token of an answer comes, under an intervention."""
        self.check_length(prompt + 1)
        prompts = random_prompts(seed, [prompt], self.model.config.vocab_size)
        [request] = requests_of(prompts, [1], hook)
        kept = Record(points=("logits",), positions="last")
        *_, end = self._engine.submit(replace(request, record=kept))
        ids_of([end])
        assert isinstance(end, FinishedEvent)
        assert end.recording is not None
        logits: list[float] = end.recording.values["logits", LOGITS_LAYER][-1].tolist()
        return logits

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
        first_token(loaded(self.directory, self.weights), ids)
        return time.perf_counter() - begun


def loaded(directory: Path, weights: Weights) -> Transformer:
    """The model with its weights in such a format."""
    if weights == "fp32":
        return load_model(directory, dtype="float32")
    return load_model(directory, weights=weights)


def first_token(model: Transformer, ids: Sequence[int]) -> None:
    """Generates one token with a new engine."""
    timed(InferenceEngine(model), [ids], [1])


def timed(engine: InferenceEngine, prompts: Sequence[Sequence[int]], new: Sequence[int]) -> Timing:
    """Seconds until every prompt has its first token, and from then on until all are answered."""
    return Timing(*answered(engine, requests_of(prompts, new, Hook()))[:2])


def requests_of(prompts: Sequence[Sequence[int]], new: Sequence[int], hook: Hook) -> list[Request]:
    """A request for each prompt, for exactly so many greedy tokens.

    No prompt is found in the prefix cache, though it may have been read before.
    """
    salt = secrets.token_hex(8)
    return [
        Request(
            prompt_ids=tuple(ids),
            sampling=SamplingParams(temperature=0.0, max_new_tokens=count, ignore_eos=True),
            interventions=hook.interventions,
            record=hook.record,
            cache_salt=f"{salt}-{index}",
        )
        for index, (ids, count) in enumerate(zip(prompts, new, strict=True))
    ]


def answered(engine: InferenceEngine, requests: Sequence[Request]) -> Answer:
    """The answers, and the seconds to the first token of each and from then on to the last.

    Raises what ended one early.
    """
    begun = time.perf_counter()
    handles = [engine.submit(request) for request in requests]
    events = [iter(handle) for handle in handles]
    first = [ids_of([next(each)]) for each in events]
    read = time.perf_counter()
    rest = [ids_of(each) for each in events]
    ended = time.perf_counter()
    ids = [[*one, *others] for one, others in zip(first, rest, strict=True)]
    return Answer(read - begun, ended - read, ids)


def ids_of(events: Iterable[Event]) -> list[int]:
    """The ids that events tell of. Raises the error that one ended with."""
    ids = []
    for event in events:
        if isinstance(event, TokenEvent):
            ids.append(event.token_id)
        elif event.error is not None:
            raise event.error
    return ids
