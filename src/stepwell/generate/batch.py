"""The answers to many prompts on their way: driven until all are there, and kept as they finish.

Owns what belongs to one call: which choices are open, what was found in a response cache, and what
goes wrong. Nothing of it is left in the engine, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Series
from dataclasses import dataclass, replace
from typing import Protocol

from stepwell.errors import PromptError
from stepwell.generate.answer_key import AnswerKey, AnswerSource
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.request import Completion, Event, FinishedEvent, Request, TokenEvent
from stepwell.generate.response_cache import ResponseCache
from stepwell.generate.sequence import Handle
from stepwell.generate.transcript import Transcript
from stepwell.text.tokenizer import Tokenizer

Submit = Callable[[Request], Handle]


class Progress(Protocol):
    """Told how many tokens a batch has produced, and how many of its answers are finished."""

    def update(self, finished: int, tokens: int) -> None:
        """Called after every step of the engine."""


@dataclass(frozen=True)
class Kept:
    """A cache of answers, and what answers here."""

    cache: ResponseCache
    source: AnswerSource


@dataclass(frozen=True)
class _Open:
    """A request that is being answered: its place in the batch, and a transcript a choice."""

    number: int
    prefix: str
    transcripts: dict[int, Transcript]


class Batch:
    """Requests that are answered together. `errors` are those of answers that failed."""

    def __init__(
        self,
        engine: InferenceEngine,
        tokenizer: Tokenizer,
        submit: Submit,
        *,
        kept: Kept | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.errors: list[Exception] = []
        self._engine, self._tokenizer, self._submit = engine, tokenizer, submit
        self._kept, self._progress = kept, progress
        self._open: dict[Handle, _Open] = {}
        self._finished = self._tokens = 0

    def answer(self, requests: Series[Request], prefixes: Series[str]) -> list[list[Completion]]:
        """The n answers to each request, in order; a prefix is put before the text of each."""
        answers = self._recall(requests, prefixes)
        self._finished = sum(len(found) for found in answers)
        try:
            for number, (request, prefix) in enumerate(zip(requests, prefixes, strict=True)):
                missing = set(range(request.sampling.n)) - answers[number].keys()
                if missing:
                    asked = request
                    if answers[number]:
                        asked = replace(request, choices=tuple(sorted(missing)))
                    handle = self._submitted(asked, number if len(requests) > 1 else None)
                    transcripts = transcripts_of(handle, self._tokenizer, prefix, stream=False)
                    self._open[handle] = _Open(number, prefix, transcripts)
            while self._open:
                self._step(answers)
        finally:
            for handle in self._open:
                handle.cancel()
        return [[found[choice] for choice in sorted(found)] for found in answers]

    def _recall(
        self, requests: Series[Request], prefixes: Series[str]
    ) -> list[dict[int, Completion]]:
        """The answers to each request that the cache has, by choice."""
        if self._kept is None:
            return [{} for _ in requests]
        source = self._kept.source
        keys = [
            [AnswerKey(source, request, choice, prefix) for choice in range(request.sampling.n)]
            for request, prefix in zip(requests, prefixes, strict=True)
        ]
        found = iter(self._kept.cache.get_many([key for choices in keys for key in choices]))
        return [
            {key.choice: answer for key in choices if (answer := next(found)) is not None}
            for choices in keys
        ]

    def _submitted(self, request: Request, number: int | None) -> Handle:
        """The handle of a request. Raises as the engine does; a PromptError names the prompt."""
        try:
            return self._submit(request)
        except PromptError as error:
            where = "" if number is None else f"Prompt {number}: "
            raise PromptError(where + error.problem, fix=error.fix) from None

    def _step(self, answers: list[dict[int, Completion]]) -> None:
        """Take a step of the engine, and what it brings to these requests."""
        done: list[tuple[AnswerKey, Completion]] = []
        for handle in self._engine.step():
            mine = self._open.get(handle)
            if mine is None:
                continue
            for event in handle.drain():
                transcript = mine.transcripts[event.choice]
                feed(handle, transcript, event)
                self._tokens += isinstance(event, TokenEvent)
                if isinstance(event, FinishedEvent):
                    answers[mine.number][event.choice] = transcript.finished
                    done += self._keys(handle, mine, event.choice)
                    self._note(transcript)
            if handle.is_finished:
                del self._open[handle]
        if self._kept is not None:
            self._kept.cache.put_many(done)
        if self._progress is not None:
            self._progress.update(self._finished, self._tokens)

    def _keys(self, handle: Handle, mine: _Open, choice: int) -> list[tuple[AnswerKey, Completion]]:
        """What there is to keep of a finished answer."""
        if self._kept is None:
            return []
        key = AnswerKey(self._kept.source, handle.request, choice, mine.prefix)
        return [(key, mine.transcripts[choice].finished)]

    def _note(self, transcript: Transcript) -> None:
        self._finished += 1
        if transcript.error is not None:
            self.errors.append(transcript.error)


def transcripts_of(
    handle: Handle,
    tokenizer: Tokenizer,
    prefix: str,
    *,
    stream: bool,
    skip_special: bool = True,
) -> dict[int, Transcript]:
    """A transcript for each choice of a request."""
    request = handle.request
    return {
        sequence.choice: Transcript(
            tokenizer,
            request.prompt_ids,
            stop_ids=handle.stop_ids,
            stops=request.sampling.stop,
            stream=stream,
            prefix=prefix,
            skip_special=skip_special,
        )
        for sequence in handle.sequences
    }


def feed(handle: Handle, transcript: Transcript, event: Event) -> str:
    """Give an event to its transcript; ends the choice where a stop string is complete."""
    if isinstance(event, FinishedEvent):
        return transcript.finish(event)
    text = transcript.push(event)
    if transcript.reached_stop:
        handle.cancel(event.choice)
    return text
