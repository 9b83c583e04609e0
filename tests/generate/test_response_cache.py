"""The response cache: a key for each answer, nothing lost and nothing wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.answers import answer, key

from stepwell.errors import ConfigError
from stepwell.generate import response_cache
from stepwell.generate.answer_key import AnswerKey
from stepwell.generate.request import Completion, Usage
from stepwell.generate.response_cache import ResponseCache

# What comes back


@st.composite
def completions(draw: Callable[[Any], Any]) -> Completion:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), max_size=8))
    logprob = st.floats(max_value=0.0, allow_nan=False)
    return Completion(
        text=draw(st.text()),
        token_ids=tuple(ids),
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        usage=Usage(draw(st.integers(1, 2**40)), len(ids), draw(st.integers(0, 9))),
        logprobs=tuple(draw(st.lists(logprob, max_size=8))),
    )


@settings(deadline=None, derandomize=True, max_examples=50)
@given(completion=completions())
def test_an_answer_comes_back_with_every_bit(
    tmp_path_factory: pytest.TempPathFactory, completion: Completion
) -> None:
    path = tmp_path_factory.getbasetemp() / "every-bit.sqlite"
    with ResponseCache(path) as cache:
        cache.put_many([(key(0), completion)])
    with ResponseCache(path) as cache:
        [found] = cache.get_many([key(0)])
    assert repr(found) == repr(completion)


def test_no_field_of_an_answer_is_left_behind() -> None:
    kept = set(response_cache._Payload.model_fields)
    assert kept == {field.name for field in fields(Completion)} - {"error", "recording"}


def test_answers_come_in_the_order_of_the_keys_and_are_counted(cache: ResponseCache) -> None:
    cache.put_many((key(number), answer(number)) for number in range(4))
    found = cache.get_many([key(3), key(9), key(0), key(3)])
    assert found == [answer(3), None, answer(0), answer(3)]
    assert cache.statistics == response_cache.CacheStatistics(hits=3, misses=1)
    assert len(cache) == 4


def test_a_later_answer_replaces_the_one_under_its_key(cache: ResponseCache) -> None:
    cache.put_many([(key(0), answer(1)), (key(0), answer(2))])
    assert cache.get_many([key(0)]) == [answer(2)]
    assert len(cache) == 1


@pytest.mark.parametrize("reason", ["cancelled", "timeout", "error"])
def test_an_answer_that_did_not_finish_is_never_kept(cache: ResponseCache, reason: Any) -> None:
    cache.put_many([(key(0), replace(answer(0), finish_reason=reason)), (key(1), answer(1))])
    assert cache.get_many([key(0), key(1)]) == [None, answer(1)]


def test_cleared_is_empty_and_closed_opens_again(cache: ResponseCache) -> None:
    cache.put_many([(key(0), answer(0))])
    cache.close()
    assert cache.get_many([key(0)]) == [answer(0)]
    cache.clear()
    assert cache.get_many([key(0)]) == [None]
    assert len(cache) == 0


def test_a_put_that_fails_keeps_nothing_of_it(cache: ResponseCache) -> None:
    def answers() -> Iterator[tuple[AnswerKey, Completion]]:
        yield key(0), answer(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.put_many(answers())
    assert len(cache) == 0


# Room


class Clock:
    """A clock that stands still until it is moved."""

    now = 1e9

    def __call__(self) -> float:
        return self.now


def filled(cache: ResponseCache, count: int = 100, length: int = 300) -> list[AnswerKey]:
    keys = [key(number) for number in range(count)]
    cache.put_many((key, answer(number, length)) for number, key in enumerate(keys))
    return keys


def test_a_full_cache_drops_what_was_not_used_for_longest(path: Path) -> None:
    clock = Clock()
    with ResponseCache(path, max_bytes=2**20, clock=clock) as cache:
        keys = filled(cache, count=80)
        assert cache.statistics.evicted == 0
        clock.now += 7200
        assert None not in cache.get_many(keys[:10])
        new = [key(number) for number in range(1000, 1060)]
        for number, each in enumerate(new, start=1000):
            cache.put_many([(each, answer(number, 300))])
            assert cache.num_bytes <= cache.max_bytes
        kept = [found is not None for found in cache.get_many([*keys, *new])]
        evicted = cache.statistics.evicted
        assert cache.num_bytes > 0.8 * cache.max_bytes
    assert 0 < evicted == kept.count(False)
    assert kept == [True] * 10 + [False] * evicted + [True] * (130 - evicted)


def test_room_that_was_made_is_used_again(path: Path) -> None:
    with ResponseCache(path, max_bytes=2**20) as cache:
        for turn in range(4):
            filled(cache, count=50 + turn, length=400)
            cache.put_many((key(turn * 1000 + n), answer(n, 400)) for n in range(50))
        assert cache.num_bytes <= 2**20
    assert path.stat().st_size < 2**21


def test_reading_writes_nothing_within_the_hour(path: Path) -> None:
    clock = Clock()
    with ResponseCache(path, clock=clock) as cache:
        keys = filled(cache, count=3)
        log = path.with_name(path.name + "-wal")
        before = log.read_bytes()
        clock.now += 3599
        cache.get_many(keys)
        assert log.read_bytes() == before
        clock.now += 1
        cache.get_many(keys)
        assert log.read_bytes() != before


def test_an_answer_larger_than_the_cache_is_not_kept(path: Path) -> None:
    with ResponseCache(path, max_bytes=2**20) as cache:
        cache.put_many([(key(0), answer(0, 100_000))])
        assert (len(cache), cache.statistics.evicted) == (0, 1)
        assert cache.num_bytes <= 2**20


def test_a_limit_too_small_to_be_useful_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="1048576 or more"):
        ResponseCache(path, max_bytes=1000)
    assert not path.exists()
