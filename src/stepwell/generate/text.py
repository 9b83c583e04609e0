"""Text in, text out: a model, its tokenizer and its sampling defaults behind three verbs.

generate          one answer
generate_batch    every answer to every prompt, in the order they came
generate_stream   pieces of text as they become final
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Series
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from stepwell.device import WeightFormat
from stepwell.errors import ConfigError, PromptError, suggest
from stepwell.generate.answer_key import AnswerSource
from stepwell.generate.batch import Batch, Kept, Progress, Submit, feed, transcripts_of
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.record import Recording
from stepwell.generate.record import record as record_prompts
from stepwell.generate.request import Completion, Request, SamplingParams
from stepwell.generate.response_cache import ResponseCache
from stepwell.generate.sequence import Handle
from stepwell.generate.speculative import DraftRule, DraftSource
from stepwell.generate.statistics import Statistics, statistics
from stepwell.generate.tape import Record
from stepwell.model.fingerprint import model_fingerprint
from stepwell.model.forward import AttentionImplementation
from stepwell.model.interventions import Intervention, parse_interventions
from stepwell.model.json_keys import read_json
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model, locate
from stepwell.native.library import load as load_kernels
from stepwell.storage.verified import Verify
from stepwell.text.tokenizer import Tokenizer

LongPrompt = Literal["error", "slide"]


@dataclass(frozen=True)
class Piece:
    """Text that is final now. The last piece of a choice carries the whole completion."""

    text: str
    choice: int = 0
    completion: Completion | None = None


class TextGenerator:
    """Generates text from one model. Keyword arguments of its verbs are fields of SamplingParams.

    interventions, of its verbs: changes of the forward pass, the same for all prompts of a call;
    as values or as their JSON.
    record: what to keep of each answer's row, given back as its `recording`.
    draft: a smaller model with the same tokenizer, a FinishedDraft or "lookup", which proposes
    tokens that the model verifies, for the same answer in less time (see InferenceEngine.submit).
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
        max_rows: int = 64,
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

    @property
    def num_at_once(self) -> int:
        """Answers that are generated at the same time; the others wait."""
        return self.engine.max_rows

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        device: str = "auto",
        weights: WeightFormat | None = None,
        mmap: bool | None = None,
        verify: Verify = "once",
        attention: AttentionImplementation = "auto",
        **options: Any,
    ) -> TextGenerator:
        """The model, tokenizer and sampling defaults of a model directory or Hub id.

        What generation_config.json says goes before config.json. dtype, device, weights, mmap
        and verify are those of `load_model`; `options` are those of the class.
        """
        directory = locate(source)
        path = directory / "generation_config.json"
        declared = read_json(path) if path.is_file() else {}
        model = load_model(
            directory, dtype=dtype, device=device, weights=weights, mmap=mmap, verify=verify
        )
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
        record: Record | None = None,
        draft: DraftSource | None = None,
        draft_rule: DraftRule = "equality",
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
        submit = partial(self.engine.submit, draft=draft, draft_rule=draft_rule)
        batch = Batch(self.engine, self.tokenizer, submit)
        requests = self._requests([prompt], params, interventions, record)
        [[answer]] = batch.answer(requests, [prompt if echo else ""])
        for error in batch.errors:
            raise error
        return answer

    def generate_batch(
        self,
        prompts: Series[str],
        *,
        interventions: Series[Intervention] = (),
        record: Record | None = None,
        draft: DraftSource | Series[DraftSource | None] | None = None,
        draft_rule: DraftRule = "equality",
        echo: bool = False,
        cache: ResponseCache | None = None,
        progress: Progress | None = None,
        deadline_s: float | None = None,
        **sampling: Any,
    ) -> list[list[Completion]]:
        """The n answers to each prompt, prompts in the order given.

        draft: one for all prompts, or a list with one for each.
        cache: where answers are kept as they finish, and those that are there are not made again.
        deadline_s: seconds after which what is not finished ends, with finish_reason "timeout".
        An answer that fails ends with finish_reason "error" and has the `error`; the others go on.
        """
        if cache is not None and record is not None:
            raise ConfigError(
                "Answers from a cache come without recordings.",
                fix="leave `cache` or `record` out.",
            )
        if isinstance(prompts, str):
            raise PromptError("A batch is a list of prompts, not one text.", fix="use [prompt].")
        params = self._params(sampling)
        requests = self._requests(prompts, params, interventions, record, deadline_s)
        drafts = _one_each(draft, requests)

        def submit(request: Request) -> Handle:
            own = drafts[request.request_id]
            return self.engine.submit(request, draft=own, draft_rule=draft_rule)

        kept = None if cache is None else Kept(cache, self._source(draft, draft_rule))
        batch = Batch(self.engine, self.tokenizer, submit, kept=kept, progress=progress)
        return batch.answer(requests, [prompt if echo else "" for prompt in prompts])

    def generate_stream(
        self,
        prompt: str,
        *,
        interventions: Series[Intervention] = (),
        record: Record | None = None,
        draft: DraftSource | None = None,
        draft_rule: DraftRule = "equality",
        echo: bool = False,
        **sampling: Any,
    ) -> Iterator[Piece]:
        """Pieces of text as they become final; those of a choice make up its completion's text.

        Raises at once what a request may raise, and begins with the first piece that is asked for.
        Leaving the loop early cancels the request. A choice that fails ends with finish_reason
        "error" and has the `error` in its completion.
        """
        params = self._params(sampling, single=True)
        [request] = self._requests([prompt], params, interventions, record)
        self.engine.check(request, draft=draft, draft_rule=draft_rule)
        submit = partial(self.engine.submit, draft=draft, draft_rule=draft_rule)
        return self._stream(submit, request, prompt if echo else "")

    def tokens(self, text: str) -> list[str]:
        """The text's tokens as a person would read them."""
        [ids] = self.encode([text])
        return [self.tokenizer.token(token) for token in ids]

    def record(
        self,
        prompts: str | Series[str],
        *,
        points: Series[str] = ("attention.pattern",),
        layers: Any = "all",
        heads: Any = "all",
        positions: Any = "all",
        interventions: Series[Intervention] = (),
    ) -> Recording:
        """What passes chosen hook points in one forward over the prompts: `seen[point, layer]`.

        points, layers, heads and positions are fields of a Record.
        """
        spec = Record(points=points, layers=layers, heads=heads, positions=positions)
        ids = self.encode([prompts] if isinstance(prompts, str) else prompts)
        return record_prompts(self.model, ids, spec, interventions)

    def statistics(
        self,
        prompts: Series[str],
        *,
        points: Series[str] = ("attention.heads",),
        layers: Any = "all",
        heads: Any = "all",
        positions: Any = "all",
        interventions: Series[Intervention] = (),
    ) -> dict[tuple[str, int], Statistics]:
        """Mean, variance and norm of what passes hook points, over all positions of many prompts.

        Nothing is held but the sums; the other arguments are those of `record`.
        """
        spec = Record(points=points, layers=layers, heads=heads, positions=positions)
        return statistics(self.model, self.encode(prompts), spec, interventions)

    def _params(self, sampling: dict[str, Any], *, single: bool = False) -> SamplingParams:
        """The defaults, changed as a call asks; `single`: one answer unless it asks for several."""
        asks_for_several = not sampling.keys().isdisjoint(("n", "num_return_sequences"))
        number = {"n": 1} if single and not asks_for_several else {}
        return self.defaults.changed(**number, **sampling)

    def encode(self, texts: Series[str]) -> list[list[int]]:
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
        self,
        prompts: Series[str],
        params: SamplingParams,
        interventions: Series[Intervention],
        record: Record | None,
        deadline_s: float | None = None,
    ) -> list[Request]:
        """One request for each prompt, as `long_prompt` says."""
        changes, limit = parse_interventions(interventions), deadline_s
        return [
            Request(self._fitted(ids, params), params, changes, record=record, deadline_s=limit)
            for ids in self.encode(prompts)
        ]

    def _fitted(self, ids: list[int], params: SamplingParams) -> tuple[int, ...]:
        context = self.model.config.context_length
        if self.long_prompt == "error" or len(ids) < context:
            return tuple(ids)
        return tuple(ids[-max(context - params.max_new_tokens, context // 2) :])

    def _stream(self, submit: Submit, request: Request, prefix: str) -> Iterator[Piece]:
        handle = submit(request)
        transcripts = transcripts_of(handle, self.tokenizer, prefix, stream=True)
        try:
            if prefix:
                yield from (Piece(prefix, choice) for choice in transcripts)
            for event in handle:
                transcript = transcripts[event.choice]
                text = feed(handle, transcript, event)
                if text or transcript.completion is not None:
                    yield Piece(text, event.choice, transcript.completion)
        finally:
            handle.cancel()

    def _source(
        self, draft: DraftSource | Series[DraftSource | None] | None, draft_rule: DraftRule
    ) -> AnswerSource:
        """What answers here, as the key of a kept answer names it; weights are hashed anew."""
        kernels = load_kernels() if self.engine.strict else None
        by_rejection = draft is not None and draft_rule == "rejection"
        return AnswerSource(
            model=model_fingerprint(self.model),
            tokenizer=self.tokenizer.fingerprint,
            dtype=str(self.model.dtype),
            device=" ".join((self.model.device.type, kernels.build_id if kernels else "")),
            attention=self.model.attention_implementation,
            eos_ids=self.engine.eos_ids,
            newline_ids=self.engine.newline_ids,
            think_ids=self.engine.think_ids,
            strict=self.engine.strict,
            draft=_named(draft) if by_rejection else "",
        )


def _one_each(
    draft: DraftSource | Series[DraftSource | None] | None, requests: Series[Request]
) -> dict[str, DraftSource | None]:
    """The draft of each request, by its id. Raises ConfigError unless there is one for each."""
    drafts = draft if isinstance(draft, list | tuple) else [draft] * len(requests)
    if len(drafts) != len(requests):
        raise ConfigError(
            f"There are {len(requests)} prompts and {len(drafts)} drafts.",
            fix="give one draft for all prompts, or a list with one for each (None: without).",
        )
    ids = [request.request_id for request in requests]
    return dict(zip(ids, drafts, strict=True))


def _named(draft: DraftSource | Series[DraftSource | None] | None) -> str:
    """Who drafted, in a word that differs where drafts do."""
    if isinstance(draft, list | tuple):
        return " ".join(map(_named, draft))
    return model_fingerprint(draft) if isinstance(draft, Transformer) else str(draft)


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
