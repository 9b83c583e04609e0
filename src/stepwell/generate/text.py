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
from typing import Any, Literal, Protocol

import torch

from stepwell.config import read_json
from stepwell.errors import ConfigError, LogitsError, PromptError
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

    defaults: sampling parameters where a call gives none. One answer is given where a call does not
    ask for more, except by `generate_batch`, which follows the defaults in this too.
    eos_ids: tokens that end an answer; those that the model and the tokenizer name by default.
    long_prompt: what happens to a prompt that leaves an answer of max_new_tokens no room. "error"
    refuses it only where there is no room at all, and else the answer is shorter. "slide" keeps the
    prompt's end, and of a prompt that is too long at least half a context.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        defaults: SamplingParams | None = None,
        eos_ids: Iterable[int] | None = None,
        max_rows: int = 32,
        kv_cache_bytes: int | None = None,
        long_prompt: LongPrompt = "error",
    ) -> None:
        _check_fit(model, tokenizer, long_prompt)
        self.model, self.tokenizer = model, tokenizer
        self.defaults = defaults or SamplingParams()
        self.long_prompt = long_prompt
        start, end = tokenizer.role("think_start"), tokenizer.role("think_end")
        vocabulary = range(tokenizer.vocab_size)
        self.engine = InferenceEngine(
            model,
            max_rows=max_rows,
            kv_cache_bytes=kv_cache_bytes,
            eos_ids=_eos_ids(model.config.eos_ids, tokenizer) if eos_ids is None else eos_ids,
            newline_ids=[token for token in vocabulary if set(tokenizer.decode([token])) == {"\n"}],
            think_ids=None if start is None or end is None else (start, end),
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
        options.setdefault("defaults", SamplingParams.from_generation_config(declared, where=str(path)))
        model = load_model(directory, dtype=dtype, device=device, mmap=mmap)
        model.attention_implementation = attention
        tokenizer = Tokenizer.load(directory)
        eos = declared.get("eos_token_id")
        if eos is not None:
            options.setdefault("eos_ids", _eos_ids([eos] if isinstance(eos, int) else eos, tokenizer))
        return cls(model, tokenizer, **options)

    def generate(
        self,
        prompt: str,
        *,
        interventions: Series[Intervention] = (),
        echo: bool = False,
        **sampling: Any,
    ) -> Completion:
        """One answer to one prompt; with `echo` its text begins with the prompt.

        Raises LogitsError where the model's logits are not finite.
        """
        params = self._params({"n": 1}, sampling)
        if params.n != 1:
            raise ConfigError(f"generate gives one answer, n is {params.n}.", fix="use generate_batch.")
        [[done]] = self._run([prompt], params, interventions, echo)
        if done.finish_reason == "error":
            raise LogitsError(
                f"No token can follow the first {len(done.token_ids)} of the answer: the model put "
                "out NaN or infinity, or the sampling parameters rule out every token.",
                fix="check weights and interventions; loosen banned_tokens or no_repeat_ngram_size.",
                rows=(0,),
            )
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
        return self._run(prompts, self._params({}, sampling), interventions, echo, progress)

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
        Leaving the loop early cancels the request. A choice whose logits were not finite ends with
        finish_reason "error".
        """
        params = self._params({"n": 1}, sampling)
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

    def _params(self, preset: dict[str, Any], sampling: dict[str, Any]) -> SamplingParams:
        """The defaults, changed by `preset` where `sampling` does not say otherwise."""
        if "num_return_sequences" in sampling:
            preset = {}
        return self.defaults.changed(**{**preset, **sampling})

    def _encode(self, texts: Series[str]) -> list[list[int]]:
        """The ids of each text, with the tokens that the tokenizer puts around one.

        Raises PromptError where a text has no tokens and no beginning-of-sequence token stands in.
        """
        bos = self.tokenizer.bos_id
        encoded = self.tokenizer.encode_batch(texts, special=True)
        if bos is None and not all(encoded):
            raise PromptError(
                "The prompt is empty and the tokenizer has no beginning-of-sequence token.",
                fix="give a prompt of at least one character.",
            )
        return [ids or [bos] for ids in encoded if bos is not None or ids]

    def _requests(
        self, prompts: Series[str], params: SamplingParams, interventions: Series[Intervention]
    ) -> list[Request]:
        """One request for each prompt."""
        context = self.model.config.context_length
        room = max(context - params.max_new_tokens, context // 2, 1)
        kept = slice(-room, None) if self.long_prompt == "slide" else slice(None)
        return [
            Request(tuple(ids[kept]), params, tuple(interventions)) for ids in self._encode(prompts)
        ]

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
