"""Who runs: sequences wait in order of arrival, and the oldest never give way to younger ones.

Owns the queue, the rows and the room in the cache. A sequence that starts takes a row, with blocks
of its prompt that are known already. Where blocks run out, the youngest that runs is preempted: it
gives up what it holds and waits at its old place, to compute again what it had. Its noise has
addresses, so it goes on as if nothing had happened. What is only kept for later goes before that.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from stepwell.errors import CacheFullError
from stepwell.generate.sequence import Sequence
from stepwell.model.blocks import BLOCK, blocks_for
from stepwell.model.cache import KVCache


class Scheduler:
    """The sequences of an engine: those that wait, and those that run, in order of arrival.

    left: told of each sequence that gives up its row, for good or until it is started again.
    spare: lets go of something that nobody runs; whether there was any.
    """

    def __init__(
        self,
        cache: KVCache,
        left: Callable[[Sequence], object] = lambda _: None,
        spare: Callable[[], bool] = lambda: False,
    ) -> None:
        self._cache, self._left, self._spare = cache, left, spare
        self._waiting: list[tuple[int, Sequence]] = []  # a heap; ended ones stay until they are met
        self._running: dict[Sequence, None] = {}
        self._arrivals = 0
        self.num_preempted = 0

    @property
    def running(self) -> list[Sequence]:
        """The sequences that hold a row, in the order in which they were started."""
        return list(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence behind all others."""
        sequence.arrival = self._arrivals
        self._arrivals += 1
        heapq.heappush(self._waiting, (sequence.arrival, sequence))

    def admit(self) -> None:
        """Start waiting sequences, the oldest first, while there are rows and blocks for them.

        A choice whose prompt another choice is putting into the cache lets others pass.
        """
        passed = []
        promised = sum(blocks_for(len(other.pending)) for other in self._running)
        while self._waiting and self._cache.num_free:
            entry = heapq.heappop(self._waiting)
            sequence = entry[1]
            if sequence.finish_reason is not None:
                continue
            sibling = _sibling(sequence)
            if sibling is not None and not self._holds_prompt(sibling):
                passed.append(entry)
            elif not self._start(sequence, sibling, promised):
                passed.append(entry)
                break
            else:
                promised += blocks_for(len(sequence.pending))
        for entry in passed:
            heapq.heappush(self._waiting, entry)

    def fit(self, batch: list[Sequence], counts: list[int]) -> list[Sequence]:
        """Those of a batch whose next `counts` tokens have room, after preempting where needed."""
        wanted = dict(zip(batch, counts, strict=True))
        wanted = {each: count for each, count in wanted.items() if each.row >= 0}
        while not self._cache.has_room([each.row for each in wanted], list(wanted.values())):
            if self._spare():
                continue
            youngest = max(self._running, key=lambda sequence: sequence.arrival)
            wanted.pop(youngest, None)
            self._preempt(youngest)
        return list(wanted)

    def end(self, sequences: list[Sequence]) -> None:
        """Free what sequences hold that are over."""
        held = [sequence for sequence in sequences if sequence.row >= 0]
        self._cache.release(*(sequence.row for sequence in held))
        for sequence in held:
            self._leave(sequence)

    def _holds_prompt(self, sequence: Sequence) -> bool:
        """Whether its whole prompt is in the cache: not yet, where it was preempted and is back."""
        return self._cache.length(sequence.row) >= len(sequence.request.prompt_ids)

    def _start(self, sequence: Sequence, sibling: Sequence | None, promised: int) -> bool:
        """Whether the sequence could be given a row, and blocks enough to begin with.

        promised: the blocks that those who run have yet to fill.
        """
        if sibling is not None and not sequence.generated:
            return self._start_from(sibling, sequence)
        most = min(len(sequence.pending) - 1, sequence.handle.shares_from)
        keys = sequence.handle.block_keys[: most // BLOCK]
        row = self._cache.allocate()
        known = self._cache.adopt(row, keys)
        needed = blocks_for(len(sequence.pending) - known)
        while self._running and promised + needed > self._cache.blocks.num_available:
            if not self._spare():
                self._cache.release(row)
                return False
        sequence.pending = sequence.pending[known:]
        self._run(sequence, row, known)
        return True

    def _start_from(self, sibling: Sequence, sequence: Sequence) -> bool:
        """`_start` with the prompt of another choice of the same request."""
        try:
            row = self._cache.fork(sibling.row)
        except CacheFullError:
            return False
        prompt = sequence.request.prompt_ids
        self._cache.truncate(row, len(prompt) - 1)
        sequence.pending = prompt[-1:]
        self._run(sequence, row, sibling.num_cached)
        return True

    def _run(self, sequence: Sequence, row: int, num_cached: int | None) -> None:
        sequence.row = row
        if sequence.num_cached is None:
            sequence.num_cached = num_cached
        self._running[sequence] = None

    def _leave(self, sequence: Sequence) -> None:
        sequence.row = -1
        self._running.pop(sequence)
        self._left(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's row; it waits for another, with all its tokens to compute."""
        self._cache.release(sequence.row)
        self._leave(sequence)
        sequence.pending = sequence.since(0)
        self.num_preempted += 1
        heapq.heappush(self._waiting, (sequence.arrival, sequence))


def _sibling(sequence: Sequence) -> Sequence | None:
    """Another choice of the same request that holds a row, if the prompt is worth sharing."""
    if len(sequence.request.prompt_ids) == 1 or sequence.hooks.tape is not None:
        return None
    return next((other for other in sequence.handle.sequences if other.row >= 0), None)
