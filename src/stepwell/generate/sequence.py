"""A request on its way: one sequence for each of its choices, and the handle that the caller has.

Owns the state of what is being generated. The engine moves it; nothing here computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Series
from functools import cached_property

from torch import Tensor

from stepwell.generate.prefix import block_keys, root_key
from stepwell.generate.request import Event, FinishedEvent, FinishReason, Request, TokenEvent, Usage


class Sequence:
    """One choice of a request. `pending` are tokens that are known but not yet in the cache.

    At first those are the prompt; after that, the token sampled last. A sequence is sampled from
    when its pending tokens have all gone through the model. `row` is its cache row while it runs,
    else -1; `arrival` its place in the queue; `num_cached` how many tokens of the prompt it found
    in the cache. `buffer` is the sampler's: the tokens so far as a tensor, where it looks back.
    """

    __slots__ = (
        "arrival",
        "buffer",
        "choice",
        "finish_reason",
        "generated",
        "handle",
        "num_cached",
        "pending",
        "request",
        "row",
    )

    def __init__(self, handle: Handle, choice: int) -> None:
        self.handle = handle
        self.request = handle.request
        self.choice = choice
        self.pending: Series[int] = handle.request.prompt_ids
        self.generated: list[int] = []
        self.buffer: Tensor | None = None
        self.row = self.arrival = -1
        self.num_cached = 0
        self.finish_reason: FinishReason | None = None

    @property
    def position(self) -> int:
        """Position of the next token to be sampled, counted from the start of the prompt."""
        return len(self.request.prompt_ids) + len(self.generated)

    def take(self, event: TokenEvent) -> FinishReason | None:
        """Append a sampled token and report it; returns why the sequence ends with it, or None."""
        self.generated.append(event.token_id)
        self.pending = (event.token_id,)
        self.handle.emit(event)
        if event.token_id in self.handle.stop_ids:
            return "stop"
        return "length" if len(self.generated) >= self.handle.room else None


class Handle:
    """What `submit` returns: iterate over it for the request's events, or cancel it.

    Iterating drives the whole engine, so the other requests advance with this one.
    room: the most tokens each choice may get. stop_ids: token ids that end a choice.
    deadline: when choices that have not ended yet are ended, by `time.monotonic`.
    """

    def __init__(
        self,
        request: Request,
        *,
        room: int,
        stop_ids: frozenset[int],
        drive: Callable[[], object],
        finish: Callable[[dict[Sequence, FinishReason]], None],
        deadline: float | None = None,
    ) -> None:
        self.request, self.room, self.stop_ids = request, room, stop_ids
        self.deadline = deadline
        self.sequences = [Sequence(self, choice) for choice in range(request.sampling.n)]
        self.forward_key = tuple(
            (type(intervention).__name__, intervention.fingerprint)
            for intervention in request.interventions
        )
        self.sampling_key = request.sampling.processing
        self.takes_likeliest = request.sampling.takes_likeliest
        self._num_open = len(self.sequences)
        self._events: deque[Event] = deque()
        self._drive, self._finish = drive, finish

    @cached_property
    def block_keys(self) -> tuple[bytes, ...]:
        """What the prompt's full blocks are found under in the prefix cache."""
        root = root_key(self.request.cache_salt, self.forward_key)
        return block_keys(root, self.request.prompt_ids)

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
        asked = self.sequences if choice is None else [self.sequences[choice]]
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
        usage = Usage(len(self.request.prompt_ids), len(sequence.generated), sequence.num_cached)
        self._events.append(FinishedEvent(sequence.choice, reason, usage, error))
