"""Answers that grow token by token outside our engine, by the rules of its sampling.

Owns a row's tokens and end, and how all rows' next tokens are chosen from logits, with the noise
that the engine would draw. Runs no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from stepwell.errors import LogitsError, StepwellError
from stepwell.generate.noise import Address
from stepwell.generate.request import (
    Completion,
    FinishedEvent,
    FinishReason,
    SamplingParams,
    TokenEvent,
    Usage,
)
from stepwell.generate.sampling import History, log_softmax, process
from stepwell.generate.transcript import Transcript
from stepwell.generate.verify import NO_TOKEN, verify_by_equality
from stepwell.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Ends:
    """Tokens with a meaning: those that end an answer, newlines, the start and end of a thought."""

    eos: frozenset[int]
    newline: tuple[int, ...]
    think: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, eos_ids: Sequence[int]) -> Ends:
        """Those of a tokenizer, and the model's own that end an answer."""
        eos = {*eos_ids, *([] if tokenizer.eos_id is None else [tokenizer.eos_id])}
        think = [tokenizer.role(role) for role in ("think_start", "think_end")]
        known = tuple(token for token in think if token is not None)
        vocabulary = range(tokenizer.vocab_size)
        newline = (token for token in vocabulary if set(tokenizer.decode([token])) == {"\n"})
        return cls(frozenset(eos), tuple(newline), known if len(known) == len(think) else ())


class Row:
    """One answer on its way. draft: tokens to be verified; prompt_entropy: NaN until it is told."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        ends: Ends,
        room: int,
        draft: Sequence[int] = (),
    ) -> None:
        self.prompt_ids, self.room = tuple(prompt_ids), room
        self.new: list[int] = []
        self.draft, self.num_accepted = tuple(draft[:room]), 0
        self.prompt_entropy = math.nan
        self.stop_ids = frozenset() if params.ignore_eos else ends.eos
        self._transcript = Transcript(
            tokenizer, prompt_ids, stop_ids=self.stop_ids, stops=params.stop, stream=False
        )

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt, and the answer so far."""
        return (*self.prompt_ids, *self.new)

    @property
    def is_open(self) -> bool:
        """Whether more is to come."""
        return self._transcript.completion is None

    @property
    def completion(self) -> Completion:
        """The answer, once it has ended."""
        return self._transcript.finished

    def take(self, events: Sequence[TokenEvent], num_accepted: int) -> None:
        """Append tokens, the first of which were drafted, up to the one that ends the answer."""
        for count, event in enumerate(events):
            self.new.append(event.token_id)
            self.num_accepted += count < num_accepted
            self._transcript.push(event)
            if event.token_id in self.stop_ids or self._transcript.reached_stop:
                return self.end("stop")
            if len(self.new) >= self.room:
                return self.end("length")
        return None

    def end(self, reason: FinishReason, error: StepwellError | None = None) -> None:
        """No more comes."""
        rejected = len(self.draft) - self.num_accepted
        usage = Usage(len(self.prompt_ids), len(self.new), 0, self.num_accepted, rejected)
        self._transcript.finish(FinishedEvent(0, reason, usage, error))


@dataclass(frozen=True)
class Chooser:
    """How tokens are chosen: parameters, the lane of the noise, and how many likeliest are told."""

    params: SamplingParams
    ends: Ends
    lane: int
    num_likeliest: int

    def choose(
        self, rows: Sequence[Row], logits_NV: Tensor, drafts: Sequence[Sequence[int]] = ()
    ) -> None:
        """Let each row take what stays of its draft, if it has one, and a token of the model's own.

        logits: row after row one for every drafted token and one for the token after the last. A
        row whose logits allow no token ends with an error.
        """
        drafts = drafts or [()] * len(rows)
        histories = [
            History.of(row.prompt_ids, (*row.new, *draft[:count]))
            for row, draft in zip(rows, drafts, strict=True)
            for count in range(len(draft) + 1)
        ]
        processed_NV = process(
            logits_NV,
            self.params,
            histories,
            eos_ids=tuple(rows[0].stop_ids),
            newline_ids=self.ends.newline,
            think_ids=self.ends.think,
        )
        firsts = [Address(self.params.seed, self.lane, position=len(row.ids)) for row in rows]
        verified = verify_by_equality(processed_NV, drafts, self.params, firsts)
        kept, own = verified.num_accepted.tolist(), verified.next_ids.tolist()
        starts = [0]
        for draft in drafts:
            starts.append(starts[-1] + len(draft) + 1)
        for row, draft, span, count, token in zip(
            rows, drafts, pairwise(starts), kept, own, strict=True
        ):
            ids = [*draft[:count], *([] if token == NO_TOKEN else [token])]
            row.take(self._events(ids, logits_NV[slice(*span)]), count)
            if token == NO_TOKEN and row.is_open:
                row.end("error", LogitsError("No token can be chosen from the model's logits."))

    def _events(self, ids: Sequence[int], logits_KV: Tensor) -> list[TokenEvent]:
        """Tokens with the model's own log-probabilities at their places."""
        raw_KV = log_softmax(logits_KV[: len(ids)])
        own = raw_KV.gather(1, torch.tensor(ids, device=raw_KV.device)[:, None])[:, 0].tolist()
        top: list[tuple[tuple[int, float], ...]] = [()] * len(ids)
        if self.num_likeliest and ids:
            likeliest = raw_KV.topk(min(self.num_likeliest, raw_KV.shape[1]))
            pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
            top = [tuple(zip(*pair, strict=True)) for pair in pairs]
        return [TokenEvent(0, *values) for values in zip(ids, own, top, strict=True)]
