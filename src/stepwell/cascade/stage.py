"""A stage: anything that answers prompts and says how likely each of its tokens was.

Owns the protocol, and what passes between a stage and the cascade: what is asked, what is said, and
the draft that a later stage verifies. The kinds are in stages/: our own engine, transformers, an
OpenAI-compatible server. Stages are numbered from 1, smallest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from stepwell.generate.batch import Progress
from stepwell.generate.request import Completion

Mode = Literal["anew", "verified"]
Token = int | str
"""A token by its id, or by its text where a server tells no ids."""
TopLogprobs = tuple[tuple[Token, float], ...]


class Observe(NamedTuple):
    """What a stage is to tell beside its answer.

    top_logprobs: so many of the likeliest tokens at each place. prompt_entropy: how unsure it was
    of the prompt itself.
    """

    top_logprobs: int = 0
    prompt_entropy: bool = False

    def at(self, number: int) -> Observe:
        """What the stage of this number is to tell: of the prompt, only the first one is asked."""
        return self if number == 1 else self._replace(prompt_entropy=False)


class Draft(NamedTuple):
    """An earlier stage's finished answer. `vocabulary` says what its ids mean, "" if unknown."""

    text: str
    token_ids: tuple[int, ...]
    vocabulary: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a stage said to one prompt.

    completion: the answer, with the natural log-probability of every token; its usage counts the
    drafted tokens that stayed. mode: whether it came from verifying a draft. top_logprobs: the
    likeliest tokens at each place of the answer, likeliest first. prompt_entropy: mean entropy in
    nats of what was expected at the prompt's last 32 tokens; NaN where it is not told.
    """

    completion: Completion
    mode: Mode = "anew"
    top_logprobs: tuple[TopLogprobs, ...] = ()
    prompt_entropy: float = math.nan


class Stage(Protocol):
    """What the cascade asks of a stage. Its verbs may raise anything: the cascade goes on."""

    name: str

    @property
    def fingerprint(self) -> str:
        """The identity of what samples: stages that differ in it have noise of their own."""

    @property
    def vocabulary(self) -> str:
        """What its token ids mean: stages equal in it can exchange ids. "" where it is unknown."""

    def generate(
        self,
        prompts: Sequence[str],
        *,
        observe: Observe = Observe(),  # noqa: B008  # it is a tuple
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Reply]:
        """One reply to each prompt, in order, with the log-probability of every token.

        One that could not be finished has the finish_reason "error", or "timeout" where deadline_s
        seconds went by. Keyword arguments are fields of SamplingParams.
        """

    def verify(
        self,
        prompts: Sequence[str],
        drafts: Sequence[Draft],
        *,
        observe: Observe = Observe(),  # noqa: B008
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Reply]:
        """The same replies as `generate`, found by verifying a draft for each prompt.

        A stage that cannot verify such drafts generates anew; the reply's mode says which it was.
        """

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> list[tuple[float, ...]]:
        """The natural log-probability of each token of an answer to a prompt, by this stage.

        Raises StageError where a stage cannot say.
        """

    def flops(self, completion: Completion) -> float:
        """Floating-point operations that an answer took, its prompt included."""

    def forget(self) -> None:
        """Drop what is cached of prompts, so that each costs what a new one does, where it can."""

    def close(self) -> None:
        """Let go of what the stage holds; a server that it started is stopped."""
