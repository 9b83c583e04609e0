"""Text in, text out: a model, its tokenizer and its sampling defaults behind three verbs.

generate          one answer
generate_batch    every answer to every prompt, in the order they came
generate_stream   pieces of text as they become final
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Series
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch

from stepwell.errors import ConfigError, PromptError, suggest
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.record import Chosen, Recording, record
from stepwell.generate.request import (
    Completion,
    Event,
    FinishedEvent,
    Request,
    SamplingParams,
    TokenEvent,
)
from stepwell.generate.sequence import Handle
from stepwell.generate.transcript import Transcript
from stepwell.model.forward import AttentionImplementation
from stepwell.model.hooks import Intervention
from stepwell.model.json_keys import read_json
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

    strict: an answer has the same bits in every company (see InferenceEngine).
    defaults: sampling parameters where a call gives none. One answer is given where a call does not
    ask for more, except by `generate_batch`, which follows the defaults in this too.
    eos_ids: tokens that end an answer, beside the tokenizer's own; the model's by default.
    long_prompt: what becomes of a prompt that does not fit the context: "error", or "slide", which
    keeps its end, so that max_new_tokens fit behind it, but at least half a context of it.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        defaults: SamplingParams | None = None,
        eos_ids: Iterable[int] | None = None,
        strict: bool = False,
        max_rows: int = 32,
        kv_cache_bytes: int | None = None,
        long_prompt: LongPrompt = "error",
    ) -> None:
        _check(model, tokenizer, long_prompt)
        self.model, self.tokenizer = model, tokenizer
        self.defaults = defaults or SamplingParams()
        self.long_prompt = long_prompt
        self.engine = InferenceEngine(
            model,
            strict=strict,
            max_rows=max_rows,
            kv_cache_bytes=kv_cache_bytes,
            eos_ids=[
                *(model.config.eos_ids if eos_ids is None else eos_ids),
                *_ids_of(tokenizer, "eos"),
            ],
            newline_ids=_newline_ids(tokenizer),
            think_ids=_ids_of(tokenizer, "think_start", "think_end"),
        )

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        device: str = "auto",
        mmap: bool = True,
        attention: AttentionImplementation = "auto",
        **options: Any,
    ) -> TextGenerator:
        """The model, tokenizer and sampling defaults of a model directory or Hub id.

        What generation_config.json says goes before config.json. `options` are those of the class.
        """
        directory = locate(source)
        path = directory / "generation_config.json"
        declared = read_json(path) if path.is_file() else {}
        model = load_model(directory, dtype=dtype, device=device, mmap=mmap)
        model.attention_implementation = attention
        own = {
            "defaults": SamplingParams.from_generation_config(declared, where=str(path)),
            "eos_ids": _eos_ids(declared, path),
        }
        return cls(model, Tokenizer.load(directory), **{**own, **options})

    def generate(
        self,
        prompt: str,
        *,
        interventions: Series[Intervention] = (),
        echo: bool = False,
        **sampling: Any,
    ) -> Completion:
        """One answer to one prompt; with `echo` its text begins with the prompt.

        Raises what ended it early, such as a LogitsError for logits that are not finite.
        """
        params = self._params(sampling, single=True)
        if params.n != 1:
            raise ConfigError(
                f"generate gives one answer, n is {params.n}.", fix="use generate_batch."
            )
        [[answer]] = self._run([prompt], params, interventions, echo)
        if answer.error is not None:
            raise answer.error
        return answer.finished

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

        An answer that fails ends with finish_reason "error" and has the `error`; the others go on.
        """
        answers = self._run(prompts, self._params(sampling), interventions, echo, progress)
        return [[choice.finished for choice in choices] for choices in answers]

    def generate_stream(
        self,
        prompt: str,
        *,
        interventions: Series[Intervention] = (),
        echo: bool = False,
        **sampling: Any,
    ) -> Iterator[Piece]:
        """Pieces of text as they become final; those of a choice make up its completion's text.

        Raises at once what a request may raise, and begins with the first piece that is asked for.
        Leaving the loop early cancels the request. A choice that fails ends with finish_reason
        "error" and has the `error` in its completion.
        """
        params = self._params(sampling, single=True)
        [request] = self._requests([prompt], params, interventions)
        self.engine.check(request)
        return self._stream(request, prompt if echo else "")

    def tokens(self, text: str) -> list[str]:
        """The text's tokens as a person would read them."""
        [ids] = self._encode([text])
        return [self.tokenizer.token(token) for token in ids]

    def record(
        self,
        prompts: str | Series[str],
        *,
        points: Series[str] = ("attention.pattern",),
        layers: Chosen = "all",
        heads: Chosen = "all",
        positions: Chosen | Literal["last"] = "all",
        interventions: Series[Intervention] = (),
    ) -> Recording:
        """What passes chosen hook points in one forward over the prompts: `seen[point, layer]`."""
        return record(
            self.model,
            self._encode([prompts] if isinstance(prompts, str) else prompts),
            points=points,
            layers=layers,
            heads=heads,
            positions=positions,
            interventions=interventions,
        )

    def _params(self, sampling: dict[str, Any], *, single: bool = False) -> SamplingParams:
        """The defaults, changed as a call asks; `single`: one answer unless it asks for several."""
        asks_for_several = not sampling.keys().isdisjoint(("n", "num_return_sequences"))
        number = {"n": 1} if single and not asks_for_several else {}
        return self.defaults.changed(**number, **sampling)

    def _encode(self, texts: Series[str]) -> list[list[int]]:
        """The ids of each text, with the tokens that the tokenizer puts around one.

        Raises PromptError where a text has no tokens and no beginning-of-sequence token stands in.
        """
        begin = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        encoded = [ids or begin for ids in self.tokenizer.encode_batch(texts, special=True)]
        if not all(encoded):
            raise PromptError(
                "A prompt is empty and the tokenizer has no beginning-of-sequence token.",
                fix="give prompts of at least one character.",
            )
        return encoded

    def _requests(
        self, prompts: Series[str], params: SamplingParams, interventions: Series[Intervention]
    ) -> list[Request]:
        """One request for each prompt, as `long_prompt` says."""
        return [
            Request(self._fitted(ids, params), params, tuple(interventions))
            for ids in self._encode(prompts)
        ]

    def _fitted(self, ids: list[int], params: SamplingParams) -> tuple[int, ...]:
        context = self.model.config.context_length
        if self.long_prompt == "error" or len(ids) < context:
            return tuple(ids)
        return tuple(ids[-max(context - params.max_new_tokens, context // 2) :])

    def _stream(self, request: Request, prefix: str) -> Iterator[Piece]:
        handle = self.engine.submit(request)
        transcripts = self._transcripts(handle, prefix, stream=True)
        try:
            if prefix:
                yield from (Piece(prefix, choice) for choice in range(len(transcripts)))
            for event in handle:
                transcript = transcripts[event.choice]
                text = _feed(handle, transcript, event)
                if text or transcript.completion is not None:
                    yield Piece(text, event.choice, transcript.completion)
        finally:
            handle.cancel()

    def _run(
        self,
        prompts: Series[str],
        params: SamplingParams,
        interventions: Series[Intervention],
        echo: bool,
        progress: Progress | None = None,
    ) -> list[list[Transcript]]:
        """The answers to each prompt. Nothing of them is left in the engine, whatever happens."""
        if isinstance(prompts, str):
            raise PromptError("A batch is a list of prompts, not one text.", fix="use [prompt].")
        open_answers: dict[Handle, list[Transcript]] = {}
        try:
            requests = self._requests(prompts, params, interventions)
            for number, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
                handle = self._submit(request, f"Prompt {number}: " if len(prompts) > 1 else "")
                prefix = prompt if echo else ""
                open_answers[handle] = self._transcripts(handle, prefix, stream=False)
            answers = list(open_answers.values())
            self._drive(open_answers, progress)
        finally:
            for handle in open_answers:
                handle.cancel()
        return answers

    def _submit(self, request: Request, where: str) -> Handle:
        """Queue a request. Raises as the engine does, a PromptError with `where` before it."""
        try:
            return self.engine.submit(request)
        except PromptError as error:
            raise PromptError(where + error.problem, fix=error.fix) from None

    def _transcripts(self, handle: Handle, prefix: str, *, stream: bool) -> list[Transcript]:
        request = handle.request
        return [
            Transcript(
                self.tokenizer,
                request.prompt_ids,
                stop_ids=handle.stop_ids,
                stops=request.sampling.stop,
                stream=stream,
                prefix=prefix,
            )
            for _ in handle.sequences
        ]

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
    text = transcript.push(event)
    if transcript.reached_stop:
        handle.cancel(event.choice)
    return text


def _check(model: Transformer, tokenizer: Tokenizer, long_prompt: str) -> None:
    """Raises ConfigError where the tokenizer has more ids than the model, or for a wrong option."""
    known, needed = model.config.vocab_size, tokenizer.vocab_size
    if known < needed:
        raise ConfigError(
            f"The tokenizer has {needed} tokens, the model {known}.",
            fix="load the tokenizer that the model was trained with.",
        )
    choices = get_args(LongPrompt)
    if long_prompt not in choices:
        raise ConfigError(f"long_prompt is {long_prompt!r}. {suggest(long_prompt, choices)}")


def _ids_of(tokenizer: Tokenizer, *roles: str) -> list[int]:
    """The ids of the tokens with these roles, none where one of them is not declared."""
    ids = [token for token in map(tokenizer.role, roles) if token is not None]
    return ids if len(ids) == len(roles) else []


def _newline_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens that are nothing but newlines, however the vocabulary spells them."""
    vocabulary = range(tokenizer.vocab_size)
    return [token for token in vocabulary if set(tokenizer.decode([token])) == {"\n"}]


def _eos_ids(declared: dict[str, Any], path: Path) -> list[int] | None:
    """The tokens that a generation_config.json ends answers with, None where it names none."""
    value = declared.get("eos_token_id")
    if value is None:
        return None
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) for token in ids):
        raise ConfigError(f"{path}: eos_token_id is {value!r}, expected a token id or several.")
    return ids
