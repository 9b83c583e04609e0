"""Promises of the engine: what goes wrong stays where it is.

A fault or a NaN ends one request, and its neighbours get the bits that they get without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch

from stepwell.errors import LogitsError
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.executor import NativeExecutor, Output, TileExecutor, TorchExecutor
from stepwell.generate.request import FinishedEvent, Request
from stepwell.generate.sequence import Sequence as Row
from stepwell.model import native
from stepwell.model.cache import KVCache
from stepwell.model.cache_view import CacheView
from tests.support.promises import NEW, POISON, Answer, answers, finish, read, request, strict

LENGTHS = [1, 3, 70, 130, 64, 33, 129, 12]  # of the prompts of a batch of 8
VICTIMS = [3, 0, 5, 2, 7, 4, 1, 6]  # who is hit in each step: all but the last but one are not over

pytestmark = pytest.mark.usefixtures("both_executors", "short_chunks")

Run = Callable[..., Output]

BATCHES = {
    "sampled": [request(length, temperature=0.8, logprobs=2) for length in LENGTHS],
    "greedy": [request(length, temperature=0) for length in LENGTHS],
}


@cache
def undisturbed(kernels: bool, batch: str) -> list[Answer]:
    return answers(strict(), BATCHES[batch])


@contextmanager
def executors_that(change: Callable[[Run], Run]) -> Iterator[None]:
    """While this lasts, what each executor does is changed."""
    with ExitStack() as stack:
        for kind in (NativeExecutor, TileExecutor, TorchExecutor):
            stack.enter_context(patch.object(kind, "run", change(kind.run)))
        yield


Fault = Callable[[Row], Callable[[Run], Run]]


def check_that_only_one_fails(fault: Fault, batch: str, when: int) -> FinishedEvent:
    """The end of the request that a fault hits in one step; checks all that the others are owed."""
    asked, place = BATCHES[batch], VICTIMS[when]
    expected = undisturbed(native.load() is not None, batch)
    engine = strict()
    handles = [engine.submit(each) for each in asked]
    victim = handles[place].sequences[0]
    for step in range(len(VICTIMS)):
        with ExitStack() as stack:
            if step == when:
                stack.enter_context(executors_that(fault(victim)))
            engine.step()
    found = [read(handle) for handle in handles]
    lost, end = found.pop(place)
    assert [answer for answer, _ in found] == [*expected[:place], *expected[place + 1 :]]
    assert {end.reason for _, end in found} == {"length"}
    assert lost == expected[place][: len(lost)]
    assert (engine.num_free_rows, engine._cache.blocks.num_held) == (8, 0)
    assert answers(engine, [asked[place]]) == [expected[place]]  # nothing bad was left in the cache
    return end


# A fault at every step


def raising_before(victim: Row) -> Callable[[Run], Run]:
    return lambda run: _raising(run, victim, ran=False)


def raising_after(victim: Row) -> Callable[[Run], Run]:
    return lambda run: _raising(run, victim, ran=True)


def _raising(run: Run, victim: Row, *, ran: bool) -> Run:
    def fail(self: Any, chunks: Any) -> Output:
        hit = victim.row in [chunk.row for chunk in chunks]
        output = run(self, chunks) if ran or not hit else None
        if hit or output is None:
            raise RuntimeError("planted")
        return output

    return fail


def ends_of(fault: Fault, batch: str) -> list[FinishedEvent]:
    """The ends of the requests that are hit, one in each step that there is."""
    return [check_that_only_one_fails(fault, batch, when) for when in range(len(VICTIMS))]


@pytest.mark.parametrize("fault", [raising_before, raising_after])
def test_a_fault_at_any_step_ends_one_request_and_moves_no_bit_of_the_others(fault: Fault) -> None:
    ends = ends_of(fault, "sampled")
    assert [end.reason for end in ends] == ["error"] * 6 + ["length", "error"]
    assert [str(end.error) for end in ends] == ["planted"] * 6 + ["None", "planted"]


def forget_to_isolate(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_or_none(self: InferenceEngine, batch: list[Row]) -> None:
        try:
            self._forward(batch)
        except Exception as error:
            self._finish(dict.fromkeys(batch, "error"), dict.fromkeys(batch, error))

    monkeypatch.setattr(InferenceEngine, "_advance", all_or_none)


def forget_to_roll_back(monkeypatch: pytest.MonkeyPatch) -> None:
    truncate = KVCache.truncate

    def only_to_release(self: KVCache, row: int, length: int) -> None:
        if length == 0:
            truncate(self, row, length)

    monkeypatch.setattr(KVCache, "truncate", only_to_release)


@pytest.mark.parametrize("sabotage", [forget_to_isolate, forget_to_roll_back])
def test_an_engine_without_isolation_breaks_the_promise(
    sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    with pytest.raises(AssertionError):
        check_that_only_one_fails(raising_after, "sampled", when=5)


# Logits that are not numbers


def poisoned(victim: Row) -> Callable[[Run], Run]:
    """NaN in what comes out for one row."""
    return lambda run: _poisoning(run, lambda row: row == victim.row)


def spreading(victim: Row) -> Callable[[Run], Run]:
    """The same from an executor in which rows are not apart."""
    return lambda run: _poisoning(run, lambda row: victim.row >= 0)


def _poisoning(run: Run, is_hit: Callable[[int], bool]) -> Run:
    def poison(self: Any, chunks: Any) -> Output:
        output = run(self, chunks)
        rows = [chunk.row for chunk in chunks for _ in range(chunk.wanted)]
        hit = [index for index, row in enumerate(rows) if is_hit(row)]
        logits = output.logits.clone()
        logits[hit] = torch.nan
        likeliest = output.likeliest and [
            None if index in hit else token for index, token in enumerate(output.likeliest)
        ]
        return output._replace(logits=logits, likeliest=likeliest)

    return poison


@pytest.mark.parametrize("batch", BATCHES)
def test_nan_in_a_rows_logits_at_any_step_ends_that_request_only(batch: str) -> None:
    ends = ends_of(poisoned, batch)
    hit = [isinstance(end.error, LogitsError) for end in ends]
    # The first is in the midst of its prompt, where no logits are wanted.
    assert hit == [False, True, True, True, True, True, False, True]
    assert [end.reason == "error" for end in ends] == hit


def test_an_executor_that_spreads_nan_breaks_the_promise() -> None:
    with pytest.raises(AssertionError):
        check_that_only_one_fails(spreading, "sampled", when=4)


@pytest.mark.parametrize("length", [5, 130])
def test_nan_from_the_weights_reaches_neither_neighbours_nor_successors(length: int) -> None:
    check_that_sick_keys_reach_nobody(length)


def test_a_cache_that_shows_what_rows_left_behind_breaks_the_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "load", lambda: None)  # the kernels read no further than a row is
    monkeypatch.setattr(CacheView, "_clear", lambda self, gathered, beyond: None)
    with pytest.raises(AssertionError):
        check_that_sick_keys_reach_nobody(130)


def check_that_sick_keys_reach_nobody(length: int) -> None:
    """A request's keys and values become NaN in its answer, at each place, and in its prompt."""
    asked = [request(size, logprobs=2, banned_tokens=[POISON]) for size in LENGTHS[:5]]
    expected = answers(strict(sick=True), asked)
    engine = strict(blocks=10, sick=True)
    for place in range(NEW - 1):
        forced = request(length, forced_tokens=[1] * place + [POISON])
        handles = [engine.submit(each) for each in (*asked, forced)]
        finish(engine, handles)
        *found, (lost, end) = [read(handle) for handle in handles]
        assert [answer for answer, _ in found] == expected
        assert [event.token_id for event in lost] == [1] * place + [POISON]
        assert isinstance(end.error, LogitsError)
    prompt = request(length).prompt_ids
    [failed] = engine.submit(Request((*prompt[:-1], POISON, *prompt[:2])))
    assert isinstance(failed, FinishedEvent)
    assert isinstance(failed.error, LogitsError)
    assert answers(engine, asked) == expected
