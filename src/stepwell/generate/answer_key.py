"""The key of an answer: all that shapes it, and nothing else.

Two answers have the same key only where they would be the same tokens and text: what answers (the
model, its tokenizer, how it computes) and what is asked.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Final

from stepwell.config import fingerprint
from stepwell.generate.request import Request

FORMAT_VERSION: Final = 1  # of all that is hashed: another one makes every kept answer unknown


@dataclass(frozen=True)
class AnswerSource:
    """What answers, the same for all requests to one generator.

    model, tokenizer and adapter are fingerprints. weights: plain, or a quantization. device: its
    kind, as another rounds otherwise. draft: who drafted, where that moves tokens (by rejection).
    """

    model: str
    tokenizer: str
    dtype: str
    device: str
    attention: str
    eos_ids: frozenset[int]
    newline_ids: tuple[int, ...] | None
    think_ids: tuple[int, ...]
    weights: str = "plain"
    strict: bool = False
    adapter: str | None = None
    draft: str = ""

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all fields."""
        return fingerprint({**asdict(self), "eos_ids": sorted(self.eos_ids)})


@dataclass(frozen=True)
class AnswerKey:
    """All that shapes one answer; not how many others were asked for with it.

    choice: which of the request's answers. prefix: what is put before its text.
    """

    source: AnswerSource
    request: Request
    choice: int = 0
    prefix: str = ""

    @functools.cached_property
    def digest(self) -> bytes:
        """The key in the file, 32 bytes."""
        request, source = self.request, self.source.fingerprint
        sampling = {**request.sampling.plain(), "n": None}
        hooks = [(str(type(each)), each.plain()) for each in request.interventions]
        asked = [request.prompt_ids, sampling, hooks, request.cache_salt]
        # Answers with likeliest tokens were once kept without them.
        version = [FORMAT_VERSION, "top_logprobs"] if request.sampling.logprobs else FORMAT_VERSION
        return bytes.fromhex(fingerprint([version, source, asked, self.choice, self.prefix]))
