"""A machine that drives an engine with little room through all that can happen to a request.

After every step it counts rows and blocks, looks who gave way to whom, and reads what came; at the
end every request has got one end, and nothing but what it gets when it is alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import Phase, settings, stateful
from hypothesis import strategies as st

from stepwell.errors import CacheError
from stepwell.generate import scheduler as scheduler_module
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.executor import NativeExecutor, TileExecutor, TorchExecutor
from stepwell.generate.request import (
    Event,
    FinishedEvent,
    FinishReason,
    Request,
    SamplingParams,
    TokenEvent,
)
from stepwell.generate.scheduler import Scheduler
from stepwell.generate.sequence import Handle, Sequence
from stepwell.model import native
from stepwell.model.blocks import BLOCK
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer

V, CONTEXT, EOS = 23, 256, 0
CONFIG = ModelConfig(
    vocab_size=V, context_length=CONTEXT, width=16, num_layers=1, num_heads=2, num_kv_heads=1
)
BLOCK_BYTES = 2 * 1 * 1 * 8 * BLOCK * 4  # keys and values, layers, heads, width, tokens, float32
LENGTHS = (1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 7, 3 * BLOCK)
MOST_NEW, FEW, MANY = 50, 4, 10
Asked = tuple[int, int, int]  # which text, how many tokens of it, which seed


@cache
def tiny() -> Transformer:
    model = Transformer(CONFIG)
    model.initialize(0)
    return model.eval()


def engine_of(rows: int, blocks: int | None) -> InferenceEngine:
    num_bytes = None if blocks is None else blocks * BLOCK_BYTES
    options: dict[str, Any] = {"max_rows": rows, "kv_cache_bytes": num_bytes, "eos_ids": [EOS]}
    return InferenceEngine(tiny(), strict=True, **options)


def request_of(asked: Asked, *, timed: bool = False, **params: Any) -> Request:
    text, length, seed = asked
    ids = tuple(1 + (place * (text + 1)) % (V - 1) for place in range(length))
    return Request(ids, SamplingParams(seed=seed, **params), deadline_s=3600 if timed else None)


def tokens_by_choice(events: list[Event], n: int) -> list[list[int]]:
    sampled = [event for event in events if isinstance(event, TokenEvent)]
    return [[each.token_id for each in sampled if each.choice == choice] for choice in range(n)]


@cache
def alone(kernels: bool, asked: Asked) -> list[list[int]]:
    """The longest answers to a request that has an engine, and all the room, to itself."""
    engine = engine_of(rows=1, blocks=None)
    events = list(engine.submit(request_of(asked, n=3, max_new_tokens=MOST_NEW)))
    return tokens_by_choice(events, 3)


@contextmanager
def failing(victim: Sequence) -> Iterator[None]:
    """While this lasts, every forward in which the sequence has a part fails when it is done."""

    def faulty(run: Callable[..., Any]) -> Callable[..., Any]:
        def fail(self: Any, chunks: Any) -> Any:
            output = run(self, chunks)
            if victim.row in [chunk.row for chunk in chunks]:
                raise RuntimeError("planted")
            return output

        return fail

    with ExitStack() as stack:
        for kind in (NativeExecutor, TileExecutor, TorchExecutor):
            stack.enter_context(patch.object(kind, "run", faulty(kind.run)))
        yield


class EngineMachine(stateful.RuleBasedStateMachine):
    """Requests come, go on, are cancelled, run out of time and fail where there is little room."""

    @stateful.initialize(rows=st.integers(2, 5), blocks=st.integers(4, 7))
    def begin(self, rows: int, blocks: int) -> None:
        self.engine = engine_of(rows, blocks)
        self.cache, self.scheduler = self.engine._cache, self.engine._scheduler
        self.asked: dict[Handle, Asked] = {}
        self.events: dict[Handle, list[Event]] = {}
        self.may_fail: set[Sequence] = set()

    def open(self) -> list[Sequence]:
        """The sequences that have not ended, in order of arrival."""
        every = itertools.chain.from_iterable(handle.sequences for handle in self.events)
        return [each for each in every if each.finish_reason is None]

    @stateful.precondition(lambda self: len(self.open()) < MANY)
    @stateful.rule(
        asked=st.tuples(st.integers(0, 1), st.sampled_from(LENGTHS), st.integers(0, 1)),
        n=st.integers(1, 3),
        most=st.integers(1, MOST_NEW),
        timed=st.booleans(),
    )
    def submit(self, asked: Asked, n: int, most: int, timed: bool) -> None:
        request = request_of(asked, n=n, max_new_tokens=most, timed=timed)
        if asked[1] + min(most, CONTEXT - asked[1]) - 1 > self.cache.blocks.total * BLOCK:
            with pytest.raises(CacheError, match="the cache holds"):
                self.engine.submit(request)
            return
        handle = self.engine.submit(request)
        self.asked[handle], self.events[handle] = asked, []

    @stateful.precondition(lambda self: self.open())
    @stateful.rule(count=st.integers(1, 20))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.advance()

    @stateful.precondition(lambda self: self.scheduler.running and len(self.open()) > FEW)
    @stateful.rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from(self.scheduler.running))
        self.may_fail.add(victim)
        with failing(victim):
            self.advance()

    @stateful.precondition(lambda self: len(self.open()) > FEW)
    @stateful.rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.open()))
        sequence.handle.cancel(data.draw(st.sampled_from([None, sequence.choice])))
        assert (sequence.finish_reason, sequence.row) == ("cancelled", -1)

    @stateful.precondition(lambda self: len(self.open()) > FEW)
    @stateful.rule(data=st.data())
    def let_a_deadline_pass(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.open())).handle
        if handle.deadline is None:
            return
        handle.deadline = 0.0
        self.advance()
        assert handle.is_finished

    def advance(self) -> None:
        """A step of the engine, and what holds of every one."""
        before = {each: self.cache.length(each.row) for each in self.scheduler.running}
        oldest = next(iter(self.open()), None)
        self.engine.step()
        preempted = [each for each in before if each.row < 0 and each.finish_reason is None]
        for gone in preempted:
            assert all(each.arrival < gone.arrival for each in self.scheduler.running)
        if oldest is not None and oldest in before and oldest.finish_reason is None:
            assert self.cache.length(oldest.row) > before[oldest]
        self.read_events()
        self.every_row_and_block_is_accounted_for()

    def read_events(self) -> None:
        for handle, events in self.events.items():
            for event in handle.drain():
                ended = [e.choice for e in events if isinstance(e, FinishedEvent)]
                assert event.choice not in ended, "more comes after the end"
                events.append(event)

    @stateful.invariant()
    def every_row_and_block_is_accounted_for(self) -> None:
        running, blocks = self.scheduler.running, self.cache.blocks
        assert blocks.num_free + blocks.num_cached + blocks.num_held == blocks.total
        held = itertools.chain.from_iterable(self.cache.table(each.row) for each in running)
        assert blocks.num_held == len(set(held))
        assert self.engine.max_rows - self.cache.num_free == len({each.row for each in running})
        assert set(running) == {each for each in self.open() if each.row >= 0}
        for each in running:
            assert self.cache.length(each.row) + len(each.pending) == each.position

    def teardown(self) -> None:
        """All that is left is answered, in no more steps than there are tokens to come."""
        if not hasattr(self, "engine"):
            return
        most = sum(each.handle.room for each in self.open())
        while self.open() and most:
            self.advance()
            most -= 1
        assert not self.open()
        self.read_events()
        assert self.engine.num_free_rows == self.engine.max_rows
        assert self.cache.blocks.num_held == 0
        for handle in self.events:
            self.check_answers(handle)

    def check_answers(self, handle: Handle) -> None:
        """Each choice has one end, and what came before it is what it gets in any company."""
        n = len(handle.sequences)
        expected = alone(native.load() is not None, self.asked[handle])
        found = tokens_by_choice(self.events[handle], n)
        ends = [event for event in self.events[handle] if isinstance(event, FinishedEvent)]
        assert sorted(end.choice for end in ends) == list(range(n))
        for end in ends:
            tokens, sequence = found[end.choice], handle.sequences[end.choice]
            assert tokens == expected[end.choice][: len(tokens)]
            assert end.usage.completion_tokens == len(tokens)
            assert end.reason != "error" or sequence in self.may_fail
            assert _ends_rightly(end.reason, tokens, handle.room)


def _ends_rightly(reason: FinishReason, tokens: list[int], room: int) -> bool:
    if reason == "stop":
        return tokens[-1] == EOS
    return EOS not in tokens and (reason != "length" or len(tokens) == room)


MACHINE = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # to shrink takes minutes: add Phase.shrink to look at a failure
)


@pytest.mark.usefixtures("both_executors")
def test_whatever_happens_nothing_is_lost_and_nothing_answered_twice() -> None:
    stateful.run_state_machine_as_test(EngineMachine, settings=MACHINE)


@pytest.mark.slow
@pytest.mark.usefixtures("both_executors")
def test_in_10_000_steps_nothing_is_lost_and_nothing_answered_twice() -> None:
    long = settings(MACHINE, max_examples=100, stateful_step_count=100)
    stateful.run_state_machine_as_test(EngineMachine, settings=long)


def forget_to_release(monkeypatch: pytest.MonkeyPatch) -> None:
    preempt = Scheduler._preempt

    def forgetful(self: Scheduler, sequence: Sequence) -> None:
        with patch.object(self._cache, "release"):
            preempt(self, sequence)

    monkeypatch.setattr(Scheduler, "_preempt", forgetful)


def preempt_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "max", min, raising=False)


def forget_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    preempt = Scheduler._preempt

    def forgetful(self: Scheduler, sequence: Sequence) -> None:
        preempt(self, sequence)
        sequence.pending = sequence.request.prompt_ids

    monkeypatch.setattr(Scheduler, "_preempt", forgetful)


def report_an_end_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    finished = Handle.finished

    def twice(self: Handle, sequence: Sequence, *why: Any) -> None:
        finished(self, sequence, *why)
        self._events.append(self._events[-1])

    monkeypatch.setattr(Handle, "finished", twice)


@pytest.mark.parametrize(
    "sabotage", [forget_to_release, preempt_the_oldest, forget_the_answer, report_an_end_twice]
)
def test_the_machine_finds_a_broken_scheduler(
    sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    with pytest.raises(AssertionError):
        stateful.run_state_machine_as_test(EngineMachine, settings=MACHINE)
