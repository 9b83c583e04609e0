"""Promises of the engine where there is little room: no bit moves, and nobody is forgotten.

A cache that holds a quarter of what is wanted changes no answer. Short requests do not starve a
long one.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from stepwell.generate.request import Request
from stepwell.generate.scheduler import Scheduler
from stepwell.generate.sequence import Handle
from stepwell.generate.sequence import Sequence as Row
from stepwell.model.blocks import BLOCK
from tests.support.promises import NEW, answers, request, strict

pytestmark = pytest.mark.usefixtures("both_executors", "short_chunks")


def mixed(count: int) -> list[Request]:
    """Requests of all sizes up to four blocks, some of them with the prompt of another.

    Every third has a short prompt and an answer that grows over several blocks.
    """
    sizes = [
        (1 + number % 60, 140) if number % 3 == 2 else (1 + 37 * number % 190, 1 + number % 24)
        for number in range(count)
    ]
    options = {"temperature": 0.8, "logprobs": 0}
    return [
        request(length, number % 5, max_new_tokens=new, **options)
        for number, (length, new) in enumerate(sizes)
    ]


def a_quarter_of_demand(asked: Sequence[Request], max_rows: int) -> int:
    """A quarter of the blocks that the largest requests fill which can run at once."""
    sizes = [len(each.prompt_ids) + each.sampling.max_new_tokens - 1 for each in asked]
    blocks = sorted((-(-size // BLOCK) for size in sizes), reverse=True)
    return sum(blocks[:max_rows]) // 4


def check_that_a_small_cache_changes_nothing(count: int, max_rows: int) -> None:
    asked = mixed(count)
    engine = strict(max_rows, a_quarter_of_demand(asked, max_rows))
    assert answers(engine, asked) == answers(strict(max_rows), asked)
    blocks = engine._cache.blocks
    assert engine.num_preempted > 0
    assert engine.num_free_rows == max_rows
    assert (blocks.num_held, blocks.num_free + blocks.num_cached) == (0, blocks.total)


def test_a_cache_of_a_quarter_of_demand_moves_no_bit() -> None:
    check_that_a_small_cache_changes_nothing(count=40, max_rows=8)


@pytest.mark.slow
def test_a_cache_of_a_quarter_of_demand_moves_no_bit_of_500_requests() -> None:
    check_that_a_small_cache_changes_nothing(count=500, max_rows=16)


def test_out_of_strict_mode_all_finish_in_a_quarter_of_demand() -> None:
    asked = mixed(40)
    engine = strict(8, a_quarter_of_demand(asked, 8), strict=False)
    found = answers(engine, asked)
    assert [len(answer) for answer in found] == [each.sampling.max_new_tokens for each in asked]


def test_a_preempted_request_that_forgot_its_answer_breaks_the_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preempt = Scheduler._preempt

    def forgetful(self: Scheduler, sequence: Row) -> None:
        preempt(self, sequence)
        sequence.pending = sequence.request.prompt_ids

    monkeypatch.setattr(Scheduler, "_preempt", forgetful)
    with pytest.raises(AssertionError):
        check_that_a_small_cache_changes_nothing(count=40, max_rows=8)


# Everybody's turn comes

AHEAD = 6


def steps_of_a_long_request_in_a_stream_of_short_ones(most: int) -> int:
    """How many steps it takes, at most `most`; two short requests arrive in each."""
    engine = strict(max_rows=3, blocks=4)
    for number in range(AHEAD):
        engine.submit(request(9, number))
    long = engine.submit(request(180, max_new_tokens=30))
    for step in range(most):
        if long.is_finished:
            return step
        for number in range(2):
            engine.submit(request(9, number))
        engine.step()
    return most


def test_a_stream_of_short_requests_does_not_starve_a_long_one() -> None:
    # Those ahead run three at a time; then three chunks of a prompt, the last with a token.
    expected = AHEAD // 3 * NEW + 3 + 30
    assert steps_of_a_long_request_in_a_stream_of_short_ones(2 * expected) <= expected


def test_a_queue_in_order_of_size_would_starve_it(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Scheduler.add

    def by_size(self: Scheduler, sequence: Row) -> None:
        arrivals = self._arrivals
        self._arrivals += 10_000 * len(sequence.request.prompt_ids)
        add(self, sequence)
        self._arrivals = arrivals + 1

    monkeypatch.setattr(Scheduler, "add", by_size)
    assert steps_of_a_long_request_in_a_stream_of_short_ones(150) == 150


@pytest.mark.parametrize("blocks", [4, None])
def test_the_order_of_admission_is_the_order_of_arrival(blocks: int | None) -> None:
    engine = strict(max_rows=3, blocks=blocks)
    handles = [engine.submit(each) for each in mixed(30)]
    met: dict[Handle, None] = {}
    while not all(handle.is_finished for handle in handles):
        met.update(dict.fromkeys(engine.step()))
    assert list(met) == handles
