"""A request on its way: one sequence for each of its choices, and the handle that the caller has.

Owns the state of what is being generated. The engine moves it; nothing here computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from collections.abc import Sequence as Series
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from stepwell.generate.noise import Purpose
from stepwell.generate.prefix import block_keys, root_key
from stepwell.generate.record import recorded
from stepwell.generate.request import Event, FinishedEvent, FinishReason, Request, TokenEvent, Usage
from stepwell.generate.row_hooks import NO_HOOKS, RowHooks
from stepwell.generate.sampling import History
from stepwell.model.interventions import Intervention

if TYPE_CHECKING:
    from stepwell.generate.drafters import Drafter
    from stepwell.generate.finished_draft import FinishedDraft


class Place(Protocol):
    """Where a token can be sampled: a sequence, or a sequence some tokens ahead."""

    @property
    def handle(self) -> Handle:
        """Of the request."""

    @property
    def request(self) -> Request:
        """What is asked for."""

    @property
    def choice(self) -> int:
        """Which of the request's answers."""

    @property
    def position(self) -> int:
        """Position of the token to be sampled, counted from the start of the prompt."""

    @property
    def purpose(self) -> Purpose:
        """What the token's noise is drawn for."""

    def history(self) -> History:
        """The tokens before it."""


class Sequence:
    """One choice of a request. `pending` are tokens that are known but not yet in the cache.

    At first those are the prompt; after that, the token sampled last. A sequence is sampled from
    when its pending tokens have all gone through the model. `row` is its cache row while it runs,
    else -1; `arrival` its place in the queue; `num_cached` how many tokens of the prompt it found
    in the cache when it first ran: what it finds of its own after giving way does not count.
    `hooks` is what is read and changed in its row, `executors` the names of those that computed it.
    `accepted` of its tokens were drafted, and `rejected` more that it did not take.
    """

    __slots__ = (
        "_buffer",
        "accepted",
        "arrival",
        "choice",
        "executors",
        "finish_reason",
        "generated",
        "handle",
        "hooks",
        "num_cached",
        "pending",
        "rejected",
        "request",
        "row",
    )
    purpose = Purpose.SAMPLE

    def __init__(self, handle: Handle, choice: int, hooks: RowHooks = NO_HOOKS) -> None:
        self.handle = handle
        self.request = handle.request
        self.choice = choice
        self.pending: Series[int] = handle.request.prompt_ids
        self.generated: list[int] = []
        self._buffer: Tensor | None = None  # the tokens so far, where sampling looks back
        self.row = self.arrival = -1
        self.num_cached: int | None = None
        self.finish_reason: FinishReason | None = None
        self.hooks = hooks
        self.executors: set[str] = set()
        self.accepted = self.rejected = 0

    @property
    def position(self) -> int:
        """Position of the next token to be sampled, counted from the start of the prompt."""
        return len(self.request.prompt_ids) + len(self.generated)

    @property
    def num_read(self) -> int:
        """Tokens that have gone through the model where the choice is over: all but the last."""
        return self.position - 1 if self.generated else len(self.request.prompt_ids)

    def take(self, event: TokenEvent) -> FinishReason | None:
        """Append a sampled token and report it; returns why the sequence ends with it, or None."""
        if self._buffer is not None:
            self._buffer[self.position] = event.token_id
        self.generated.append(event.token_id)
        self.pending = (event.token_id,)
        self.handle.emit(event)
        if event.token_id in self.handle.stop_ids:
            return "stop"
        return "length" if len(self.generated) >= self.handle.room else None

    def since(self, position: int) -> Series[int]:
        """The tokens from a position on, the prompt's and the answer's."""
        prompt_ids = self.request.prompt_ids
        if position >= len(prompt_ids):
            return self.generated[position - len(prompt_ids) :]
        return (*prompt_ids[position:], *self.generated)

    def history(self, drafted: Series[int] = ()) -> History:
        """The tokens so far and drafted ones behind them, in a buffer that the next call shares."""
        num_prompt = len(self.request.prompt_ids)
        if self._buffer is None:
            self._buffer = torch.empty(num_prompt + self.handle.room, dtype=torch.int64)
            self._buffer[: self.position] = torch.tensor(self.since(0))
        end = self.position + len(drafted)
        if drafted:
            self._buffer[self.position : end] = torch.tensor(drafted)
        return History(self._buffer[:end], num_prompt)


class Ahead:
    """A sequence as it will stand if it goes on with `drafted`.

    Several of one sequence can be sampled together if the longest draft begins with all others.
    """

    __slots__ = ("_sequence", "choice", "drafted", "handle", "position", "purpose", "request")

    def __init__(
        self, sequence: Sequence, drafted: Series[int], purpose: Purpose = Purpose.SAMPLE
    ) -> None:
        self._sequence, self.drafted, self.purpose = sequence, drafted, purpose
        self.handle, self.request, self.choice = sequence.handle, sequence.request, sequence.choice
        self.position = sequence.position + len(drafted)

    def history(self) -> History:
        """The sequence's tokens, then the drafted ones."""
        return self._sequence.history(self.drafted)


class Handle:
    """What `submit` returns: iterate over it for the request's events, or cancel it.

    Iterating drives the whole engine, so the other requests advance with this one.
    interventions: those of the request that change something. new_hooks: makes what is read and
    changed in the row of one choice. room: the most tokens each choice
    may get. stop_ids: token ids that end a choice. deadline: when choices that have not ended yet
    are ended, by `time.monotonic`. drafter: who drafts for it, from `finished_draft` where it came
    with one; by_rejection: whether by the rejection rule.
    """

    def __init__(
        self,
        request: Request,
        *,
        interventions: tuple[Intervention, ...] = (),
        new_hooks: Callable[[], RowHooks] = lambda: NO_HOOKS,
        room: int,
        stop_ids: frozenset[int],
        drive: Callable[[], object],
        finish: Callable[[dict[Sequence, FinishReason]], None],
        deadline: float | None = None,
        drafter: Drafter | None = None,
        finished_draft: FinishedDraft | None = None,
        by_rejection: bool = False,
    ) -> None:
        self.drafter, self.by_rejection = drafter, by_rejection
        self.finished_draft = finished_draft
        self.request, self.room, self.stop_ids = request, room, stop_ids
        self.deadline, self.interventions = deadline, interventions
        asked = range(request.sampling.n) if request.choices is None else request.choices
        self.sequences = [Sequence(self, choice, new_hooks()) for choice in asked]
        self.sampling_key = request.sampling.processing
        self.takes_likeliest = request.sampling.takes_likeliest
        self._num_open = len(self.sequences)
        self._events: deque[Event] = deque()
        self._drive, self._finish = drive, finish

    @property
    def shares_from(self) -> int:
        """The first position that must be computed, though it may be in the cache: it is kept."""
        prompt, tape = self.request.prompt_ids, self.sequences[0].hooks.tape
        if tape is None:
            return len(prompt)
        kept = (at for at, token in enumerate(prompt) if tape.covers(at, token))
        return next(kept, len(prompt))

    @cached_property
    def forward_key(self) -> tuple[Hashable, ...]:
        """What decides a block's content beside the text: where it matters, the prompt's length."""
        names = tuple((type(each).__name__, each.fingerprint) for each in self.interventions)
        by_prompt = any(edit.needs_prompt for each in self.interventions for edit in each.edits)
        return (*names, len(self.request.prompt_ids)) if by_prompt else names

    @cached_property
    def block_keys(self) -> tuple[bytes, ...]:
        """What the prompt's full blocks are found under in the prefix cache."""
        return self.keys_of(self.request.prompt_ids)

    def keys_of(self, ids: Series[int]) -> tuple[bytes, ...]:
        """What the full blocks of a text are found under, where it is computed as this one is."""
        return block_keys(root_key(self.request.cache_salt, self.forward_key), ids)

    @property
    def is_finished(self) -> bool:
        """Whether every choice has ended; events may still wait to be read."""
        return not self._num_open

    def __iter__(self) -> Iterator[Event]:
        while self._events or not self.is_finished:
            yield from self.drain()
            if not self.is_finished:
                self._drive()

    def drain(self) -> Iterator[Event]:
        """The events that wait, and those that come while they are read; drives nothing."""
        while self._events:
            yield self._events.popleft()

    def cancel(self, choice: int | None = None) -> None:
        """End one choice, or all of them, and free what they hold. Ended ones stay as they are."""
        asked = [each for each in self.sequences if choice in (None, each.choice)]
        self._finish({each: "cancelled" for each in asked if each.finish_reason is None})

    def emit(self, event: TokenEvent) -> None:
        """Queue a token for the caller."""
        self._events.append(event)

    def finished(
        self, sequence: Sequence, reason: FinishReason, error: Exception | None = None
    ) -> None:
        """Record why a choice ended and queue that for the caller."""
        sequence.finish_reason = reason
        self._num_open -= 1
        usage = Usage(
            prompt_tokens=len(self.request.prompt_ids),
            completion_tokens=len(sequence.generated),
            cached_tokens=sequence.num_cached or 0,
            accepted_tokens=sequence.accepted,
            rejected_tokens=sequence.rejected,
        )
        executors, tape = tuple(sorted(sequence.executors)), sequence.hooks.tape
        seen = None if tape is None else recorded(tape, sequence.num_read)
        self._events.append(FinishedEvent(sequence.choice, reason, usage, error, executors, seen))
