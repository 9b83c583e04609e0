"""Text in, text out: a model, its tokenizer and its sampling defaults behind three verbs.

generate          one answer
generate_batch    every answer to every prompt, in the order they came
generate_stream   pieces of text as they become final
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence as Series
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from stepwell.config import read_json
from stepwell.errors import ConfigError, PromptError
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.record import Recording, record
from stepwell.generate.request import (
    Completion,
    Event,
    FinishedEvent,
    Request,
    SamplingParams,
    TokenEvent,
)
from stepwell.generate.sampling import LogitsError
from stepwell.generate.sequence import Handle
from stepwell.generate.transcript import Transcript
from stepwell.model.hooks import Intervention
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model, locate
from stepwell.text.tokenizer import Tokenizer

LongPrompt = Literal["error", "slide"]


class Progress(Protocol):
    """Told how many tokens a batch has produced, and how many of its answers are finished."""

    def update(self, finished: int, tokens: int) -> None:
        """Called after every step of the engine."""


@dataclass(frozen=True)
class Piece:
    """Text that is final now. The last piece of a choice carries the whole completion."""

    text: str
    choice: int = 0
    completion: Completion | None = None


class TextGenerator:
    """Generates text from one model. Keyword arguments of its verbs are fields of SamplingParams.

    defaults: sampling parameters where a call gives none (a model directory's generation_config.json).
    long_prompt: what happens to a prompt that leaves the answer no room: "error", or "slide", which
    keeps its end.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        defaults: SamplingParams | None = None,
        eos_ids: Series[int] | None = None,
        max_rows: int = 32,
        kv_cache_bytes: int | None = None,
        long_prompt: LongPrompt = "error",
    ) -> None:
        if model.config.vocab_size < tokenizer.vocab_size:
            raise ConfigError(
                f"The tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}.",
                fix="load the tokenizer that the model was trained with.",
            )
        self.model, self.tokenizer = model, tokenizer
        self.defaults = defaults or SamplingParams()
        self.long_prompt = long_prompt
        newlines = [
            token for token in range(tokenizer.vocab_size) if tokenizer.token(token) == "\n"
        ]
        self.engine = InferenceEngine(
            model,
            max_rows=max_rows,
            kv_cache_bytes=kv_cache_bytes,
            eos_ids=eos_ids,
            newline_ids=newlines,
        )

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        device: str = "auto",
        mmap: bool = True,
        **options: Any,
    ) -> TextGenerator:
        """The model, tokenizer and sampling defaults of a model directory or Hub id."""
        directory = locate(source)
        model = load_model(directory, dtype=dtype, device=device, mmap=mmap)
        declared = _generation_config(directory)
        eos = declared.get("eos_token_id")
        return cls(
            model,
            Tokenizer.load(directory),
            defaults=SamplingParams.from_generation_config(
                declared, where=str(directory / "generation_config.json")
            ),
            eos_ids=None if eos is None else ([eos] if isinstance(eos, int) else eos),
            **options,
        )

    def generate(
        self,
        prompt: str,
        *,
        interventions: Series[Intervention] = (),
        echo: bool = False,
        **sampling: Any,
    ) -> Completion:
        """One answer to one prompt; with `echo` its text begins with the prompt."""
        params = self._params(sampling)
        if params.n != 1:
            raise ConfigError(
                f"generate gives one answer, n is {params.n}.", fix="use generate_batch."
            )
        [[done]] = self._run([prompt], params, interventions, echo)
        if done.finish_reason == "error":
            raise LogitsError((0,))
        return done

    def generate_batch(
        self,
        prompts: Series[str],
        *,
        interventions: Series[Intervention] = (),
        echo: bool = False,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[list[Completion]]:
        """The n answers to each prompt, prompts in the order given.

        An answer whose logits were not finite ends with finish_reason "error"; the others go on.
        """
        return self._run(prompts, self._params(sampling), interventions, echo, progress)

    def generate_stream(
        self,
        prompt: str,
        *,
        interventions: Series[Intervention] = (),
        **sampling: Any,
    ) -> Iterator[Piece]:
        """Pieces of text as they become final. Leaving the loop early cancels the request."""
        params = self._params(sampling)
        handle = self._submit(prompt, params, interventions)
        return self._stream(handle)

    def tokens(self, text: str) -> list[str]:
        """The text's tokens as a person would read them."""
        return [self.tokenizer.token(token) for token in self._encode(text)]

    def record(
        self,
        prompts: str | Series[str],
        *,
        points: Series[str] = ("attention.pattern",),
        layers: Series[int] | Literal["all"] = "all",
        heads: Series[int] | Literal["all"] = "all",
        positions: Series[int] | Literal["all", "last"] = "all",
        interventions: Series[Intervention] = (),
    ) -> Recording:
        """What passes chosen hook points in one forward over the prompts: `seen[point, layer]`."""
        texts = [prompts] if isinstance(prompts, str) else prompts
        return record(
            self.model,
            [self._encode(text) for text in texts],
            points=points,
            layers=layers,
            heads=heads,
            positions=positions,
            interventions=interventions,
        )

    def _params(self, sampling: dict[str, Any]) -> SamplingParams:
        return self.defaults.changed(**sampling) if sampling else self.defaults

    def _encode(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, special=True)
        if ids:
            return ids
        if self.tokenizer.bos_id is None:
            raise PromptError(
                "The prompt is empty and the tokenizer has no beginning-of-sequence token.",
                fix="give a prompt of at least one character.",
            )
        return [self.tokenizer.bos_id]

    def _submit(
        self, prompt: str, params: SamplingParams, interventions: Series[Intervention]
    ) -> Handle:
        ids = self._encode(prompt)
        if self.long_prompt == "slide":
            context = self.model.config.context_length
            ids = ids[-max(1, context - params.max_new_tokens) :]
        return self.engine.submit(Request(tuple(ids), params, tuple(interventions)))

    def _transcripts(self, handle: Handle, *, stream: bool, prefix: str = "") -> list[Transcript]:
        stops = handle.request.sampling.stop
        return [
            Transcript(
                self.tokenizer,
                stop_ids=handle.stop_ids,
                stops=stops,
                stream=stream,
                prefix=prefix,
            )
            for _ in handle.sequences
        ]

    def _stream(self, handle: Handle) -> Iterator[Piece]:
        transcripts = self._transcripts(handle, stream=True)
        try:
            for event in handle:
                transcript = transcripts[event.choice]
                piece = _feed(handle, transcript, event)
                if piece or transcript.completion is not None:
                    yield Piece(piece, event.choice, transcript.completion)
        finally:
            handle.cancel()

    def _run(
        self,
        prompts: Series[str],
        params: SamplingParams,
        interventions: Series[Intervention],
        echo: bool,
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        open_answers: dict[Handle, list[Transcript]] = {}
        try:
            for prompt in prompts:
                handle = self._submit(prompt, params, interventions)
                prefix = prompt if echo else ""
                open_answers[handle] = self._transcripts(handle, stream=False, prefix=prefix)
            answers = list(open_answers.values())
            self._drive(open_answers, progress)
        finally:
            for handle in open_answers:
                handle.cancel()
        return [[choice.finished for choice in choices] for choices in answers]

    def _drive(
        self, open_answers: dict[Handle, list[Transcript]], progress: Progress | None
    ) -> None:
        """Step the engine until all these requests are finished, removing each one that is."""
        finished = tokens = 0
        while open_answers:
            for handle in self.engine.step():
                if handle not in open_answers:
                    continue
                for event in handle.drain():
                    _feed(handle, open_answers[handle][event.choice], event)
                    finished += isinstance(event, FinishedEvent)
                    tokens += isinstance(event, TokenEvent)
                if handle.is_finished:
                    del open_answers[handle]
            if progress is not None:
                progress.update(finished, tokens)


def _feed(handle: Handle, transcript: Transcript, event: Event) -> str:
    """Give an event to its transcript; ends the choice where a stop string is complete."""
    if isinstance(event, FinishedEvent):
        return transcript.finish(event)
    piece = transcript.push(event)
    if transcript.reached_stop:
        handle.cancel(event.choice)
    return piece


def _generation_config(directory: Path) -> dict[str, Any]:
    """What generation_config.json declares; nothing where there is none."""
    path = directory / "generation_config.json"
    return read_json(path) if path.is_file() else {}
