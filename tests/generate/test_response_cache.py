"""The response cache: a key for each answer, nothing lost and nothing wrong."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.errors import ConfigError, DataError, FormatError, StepwellError
from stepwell.generate import response_cache
from stepwell.generate.request import Completion, Request, SamplingParams, Usage
from stepwell.generate.response_cache import AnswerKey, AnswerSource, ResponseCache
from stepwell.model.hooks import Intervention, Replace, ZeroHeads

SOURCE = AnswerSource("model", "tokenizer", "float32", "cpu", "auto", frozenset({2}), (3,), (4, 5))


def key(number: int, **changes: Any) -> AnswerKey:
    return AnswerKey(replace(SOURCE, **changes), Request((1, number)))


def answer(number: int, length: int = 20) -> Completion:
    """An answer that says whose it is in every part."""
    tokens = tuple(range(number, number + length))
    logprobs = tuple(-1 / (3 + token) for token in tokens)
    return Completion(f"{number} " * length, tokens, "length", Usage(2, length), logprobs)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite"


@pytest.fixture
def cache(path: Path) -> Iterator[ResponseCache]:
    with ResponseCache(path) as cache:
        yield cache


def change(path: Path, statement: str, *values: Any) -> None:
    """Change the file behind the cache's back."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()


def plant(path: Path, key: AnswerKey, payload: bytes) -> None:
    """Put a payload with the checksum that belongs to it."""
    row = (key.digest, payload, response_cache._checksum(key.digest, payload), 0)
    change(path, "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", *row)


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
    assert kept == {field.name for field in fields(Completion)} - {"error"}


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


# Keys: what shapes the answer is in them

PARAMS: dict[str, list[Any]] = {
    "temperature": [0.0, 0.5, 0.5000000000000001],
    "top_k": [0, 1, 50],
    "top_p": [1.0, 0.9],
    "min_p": [0.0, 0.1],
    "repetition_penalty": [1.0, 1.1],
    "repetition_window": [0, 8],
    "presence_penalty": [0.0, -0.5],
    "frequency_penalty": [0.0, 0.5],
    "no_repeat_ngram_size": [0, 3],
    "banned_tokens": [(), (7,), (7, 8)],
    "forced_tokens": [(), (7,), (8,)],
    "max_new_tokens": [8, 9],
    "min_new_tokens": [0, 1],
    "seed": [0, 1, -1, 2**63 - 1],
    "ignore_eos": [False, True],
    "stop": [(), (".",), (". ",), (".", " ")],
    "newline_run_limit": [0, 1],
    "think_budget": [0, 5],
    "do_sample": [None, False, True],
    "logprobs": [None, 0, 5],
}
SOURCES: dict[str, list[Any]] = {
    "model": ["a", "b"],
    "tokenizer": ["a", "b"],
    "dtype": ["float32", "bfloat16"],
    "device": ["cpu", "cuda"],
    "attention": ["auto", "eager"],
    "eos_ids": [frozenset(), frozenset({1}), frozenset({1, 2})],
    "newline_ids": [None, (), (3,)],
    "think_ids": [(), (4, 5), (5, 4)],
    "weights": ["plain", "int8", "int4"],
    "strict": [False, True],
    "adapter": [None, "a", "b"],
    "draft": ["", "lookup"],
}
OTHERS: dict[str, list[Any]] = {
    "prompt_ids": [(1,), (1, 2), (12,), (2, 1)],
    "interventions": [
        (),
        (ZeroHeads({0: [1]}),),
        (ZeroHeads({1: [0]}),),
        (ZeroHeads({0: [1]}, positions=(2,)),),
        (ZeroHeads({0: [1]}), ZeroHeads({1: [0]})),
        (ZeroHeads({1: [0]}), ZeroHeads({0: [1]})),
        (Replace(point="mlp.output", layer=0, value=0.0),),
        (Replace(point="mlp.output", layer=0, value=0.5),),
        (Replace(point="mlp.output", layer=1, value=0.5),),
    ],
    "choice": [0, 1, 1023],
    "prefix": ["", "a", " a"],
    "cache_salt": ["", "a"],
}
ALL = {**PARAMS, **SOURCES, **OTHERS}
Values = dict[str, Any]


def made(values: Values) -> AnswerKey:
    """The key of an answer, from the values of all fields by name."""
    sampling = SamplingParams(**{name: values[name] for name in PARAMS}, n=values.get("n", 1))
    salt = {"cache_salt": values["cache_salt"], "deadline_s": values.get("deadline_s")}
    request = Request(values["prompt_ids"], sampling, values["interventions"], **salt)
    source = AnswerSource(**{name: values[name] for name in SOURCES})
    return AnswerKey(source, request, values["choice"], values["prefix"])


def clashes(count: int, digest: Callable[[Values], bytes]) -> Counter[str]:
    """How many of so many pairs that differ in one field share a key, by field."""
    rng, names = random.Random(0), sorted(ALL)
    found: Counter[str] = Counter()
    for turn in range(count):
        values = {name: rng.choice(choices) for name, choices in ALL.items()}
        name = names[turn % len(names)]
        other = rng.choice([value for value in ALL[name] if value != values[name]])
        found[name] += digest(values) == digest({**values, name: other})
    return +found


def test_no_field_that_shapes_an_answer_is_missing_here() -> None:
    assert set(PARAMS) == SamplingParams.model_fields.keys() - {"n"}
    assert set(SOURCES) == {field.name for field in fields(AnswerSource)}
    others = {field.name for kind in (AnswerKey, Request) for field in fields(kind)}
    assert set(OTHERS) == others - {
        *("source", "request", "sampling", "request_id", "deadline_s", "choices")
    }


def test_requests_that_differ_in_one_field_never_share_a_key() -> None:
    assert not clashes(5000, lambda values: made(values).digest)


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_key_without_a_field_would_be_found_out(name: str) -> None:
    """The control: the law fails for a key that leaves out any one field, at this field."""
    without = {name: ALL[name][0]}
    found = clashes(2 * len(ALL), lambda values: made({**values, **without}).digest)
    assert set(found) == {name}


def test_what_does_not_shape_the_answer_is_not_in_its_key() -> None:
    values = {name: choices[-1] for name, choices in ALL.items()}
    assert made(values).request.request_id != made(values).request.request_id
    assert made(values).digest == made({**values, "n": 4, "deadline_s": 9.0}).digest


def test_interventions_of_two_kinds_with_the_same_fields_have_two_keys() -> None:
    class Halve(ZeroHeads):
        """Another change of the same heads."""

    kinds: list[Intervention] = [ZeroHeads({0: [1]}), Halve({0: [1]})]
    keys = [AnswerKey(SOURCE, Request((1,), interventions=(kind,))) for kind in kinds]
    assert keys[0].digest != keys[1].digest


def test_a_key_is_the_same_in_every_process() -> None:
    script = "print(key(7).digest.hex(), end='')"
    scope: dict[str, Any] = {}
    exec(PRELUDE, scope)
    for _ in range(2):  # with another seed of Python's hashes each time
        with run(script) as other:
            assert other.communicate(timeout=60) == (scope["key"](7).digest.hex(), "")


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


# Damage: an error or a miss, never a wrong answer


@pytest.mark.parametrize(
    "damage",
    [
        "payload = replace(payload, '1', '2')",
        "payload = CAST(payload AS TEXT)",
        "payload = NULL",
        "payload = 7",
        "payload = x''",
        "checksum = NULL",
        "checksum = zeroblob(32)",
    ],
)
def test_a_damaged_entry_is_a_miss_that_is_counted_and_replaced(
    cache: ResponseCache, path: Path, damage: str
) -> None:
    cache.put_many((key(number), answer(number)) for number in range(3))
    change(path, f"UPDATE answers SET {damage} WHERE key = ?", key(1).digest)
    assert cache.get_many([key(0), key(1), key(2)]) == [answer(0), None, answer(2)]
    assert cache.statistics == response_cache.CacheStatistics(hits=2, misses=1, corrupt=1)
    cache.put_many([(key(1), answer(1))])
    assert cache.get_many([key(1)]) == [answer(1)]


def test_an_entry_under_the_key_of_another_is_a_miss(cache: ResponseCache, path: Path) -> None:
    cache.put_many([(key(0), answer(0))])
    change(path, "UPDATE answers SET key = ?", key(1).digest)
    assert cache.get_many([key(0), key(1)]) == [None, None]
    assert cache.statistics.corrupt == 1


def outcome(path: Path, count: int) -> str:
    """What a cache makes of a file: a typed error, or its answers, each right or missing.

    Then puts them all again, which either fails in the same way or makes them all right.
    """
    keys, answers = zip(*((key(n), answer(n, LENGTHS[n % 3])) for n in range(count)), strict=True)
    try:
        with ResponseCache(path) as cache:
            found = cache.get_many(keys)
            if any(is_ not in (None, was) for is_, was in zip(found, answers, strict=True)):
                return "wrong"
            cache.put_many(zip(keys, answers, strict=True))
            again = cache.get_many(keys)
    except (DataError, FormatError):
        return "error"
    if any(is_ != was for is_, was in zip(again, answers, strict=True) if is_ is not None):
        return "wrong"
    return "miss" if None in found else "right"


LENGTHS = (3, 20, 400)  # of tokens: the longest fill several pages
COUNT = 9


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A closed file of answers, short and long."""
    path = tmp_path_factory.mktemp("sound") / "answers.sqlite"
    with ResponseCache(path) as cache:
        cache.put_many((key(n), answer(n, LENGTHS[n % 3])) for n in range(COUNT))
    return path.read_bytes()


def flipped(content: bytes, count: int) -> Iterator[bytes]:
    """Copies with one bit flipped each: in turn in the head, cells and body of every page."""
    rng = random.Random(1)
    pages = len(content) // 4096
    for turn in range(count):
        start = rng.choice((0, 0, 8, 100, 2000, 3900)) + rng.randrange(100)
        at = turn % pages * 4096 + start
        copy = bytearray(content)
        copy[at] ^= 1 << rng.randrange(8)
        yield bytes(copy)


def outcomes(path: Path, contents: Iterator[bytes]) -> Counter[str]:
    found: Counter[str] = Counter()
    for content in contents:
        for name in ("", "-wal", "-shm"):
            path.with_name(path.name + name).unlink(missing_ok=True)
        path.write_bytes(content)
        found[outcome(path, COUNT)] += 1
    return found


@pytest.mark.parametrize("count", [60, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_flipped_bit_never_gives_a_wrong_answer(path: Path, sound: bytes, count: int) -> None:
    found = outcomes(path, flipped(sound, count))
    assert not found["wrong"]
    assert found.keys() == {"right", "miss", "error"}


def test_without_its_checksum_a_flipped_bit_would(
    path: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the law fails for a cache that trusts what it reads."""
    monkeypatch.setattr(response_cache, "_checksum", lambda digest, payload: b"")
    with ResponseCache(path) as cache:
        cache.put_many((key(n), answer(n, LENGTHS[n % 3])) for n in range(COUNT))
    assert outcomes(path, flipped(path.read_bytes(), 40))["wrong"]


def test_a_file_cut_short_never_gives_a_wrong_answer(path: Path, sound: bytes) -> None:
    found = outcomes(path, (sound[:size] for size in range(0, len(sound), 6007)))
    assert not found["wrong"]
    assert found["error"]


def test_a_damaged_log_never_gives_a_wrong_answer(tmp_path: Path, path: Path) -> None:
    rng = random.Random(2)
    with ResponseCache(path) as cache:
        for number in range(COUNT):
            cache.put_many([(key(number), answer(number, LENGTHS[number % 3]))])
        log = path.with_name(path.name + "-wal").read_bytes()
        twin = tmp_path / "twin.sqlite"
        found: Counter[str] = Counter()
        for turn in range(30):
            damaged = bytearray(log)
            damaged[rng.randrange(len(log))] ^= 1 << rng.randrange(8)
            shutil.copy(path, twin)
            size = rng.randrange(len(log)) if turn % 2 else len(log)
            twin.with_name(twin.name + "-wal").write_bytes(damaged[:size])
            found[outcome(twin, COUNT)] += 1
    assert not found["wrong"]
    assert found["miss"]


def foreign(path: Path) -> None:
    change(path, "CREATE TABLE holidays (day TEXT)")


def newer(path: Path) -> None:
    ResponseCache(path).close()
    change(path, "PRAGMA user_version = 2")


def misspelt(path: Path) -> None:
    """The name of a table is no longer UTF-8, so that SQLite's own message is not either."""
    ResponseCache(path).close()
    content = path.read_bytes().replace(b"CREATE TABLE answers", b"CREATE TABLE answer\xf3", 1)
    path.write_bytes(content)


def trapped(path: Path) -> None:
    ResponseCache(path).close()
    change(path, "CREATE TRIGGER trap AFTER INSERT ON answers BEGIN DELETE FROM answers; END")


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (foreign, DataError, "is a database, but no response cache"),
        (newer, FormatError, "format_version 2, this reads up to 1"),
        (misspelt, DataError, "no response cache, or a damaged one"),
        (trapped, DataError, "tables are not as they were made"),
        (lambda path: path.write_text("no database\n" * 100), DataError, "no response cache"),
        (lambda path: path.write_bytes(pickle.dumps([1, 2])), DataError, "no response cache"),
        (lambda path: path.mkdir(), DataError, "unable to open"),
    ],
)
def test_a_file_that_is_no_such_cache_is_refused_and_left_alone(
    path: Path, make: Callable[[Path], Any], kind: type[StepwellError], says: str
) -> None:
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(kind, match=says) as caught:
        ResponseCache(path)
    assert str(path) in caught.value.problem
    assert caught.value.fix
    assert (path.read_bytes() if path.is_file() else None) == before
    assert not list(path.parent.glob("*-wal"))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*cannot be used"):
        ResponseCache(tmp_path / "nowhere" / "answers.sqlite")


# Data is not code


class Bomb:
    """What it does when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_in_an_entry_is_a_miss_and_runs_nothing(
    cache: ResponseCache, path: Path, tmp_path: Path
) -> None:
    payload = pickle.dumps(Bomb(tmp_path / "ran"))
    plant(path, key(0), payload)
    assert cache.get_many([key(0)]) == [None]
    assert cache.statistics.corrupt == 1
    assert not (tmp_path / "ran").exists()
    pickle.loads(payload)  # the control
    assert (tmp_path / "ran").exists()


GOOD = {name: value for name, value in asdict(answer(1, 2)).items() if name != "error"}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"text":' * 5000,
        b"9" * 100_000,
        json.dumps({**GOOD, "text": 7}).encode(),
        json.dumps({**GOOD, "text": {"__class__": "os.system"}}).encode(),
        json.dumps({**GOOD, "token_ids": ["1"]}).encode(),
        json.dumps({**GOOD, "token_ids": [1.5]}).encode(),
        json.dumps({**GOOD, "logprobs": [True]}).encode(),
        json.dumps({**GOOD, "finish_reason": "done"}).encode(),
        json.dumps({**GOOD, "finish_reason": "error"}).encode(),
        json.dumps({**GOOD, "usage": [1, 2]}).encode(),
        json.dumps({**GOOD, "error": None}).encode(),
        json.dumps({name: GOOD[name] for name in GOOD.keys() - {"usage"}}).encode(),
        json.dumps(GOOD).encode()[:-1],
        b'{"text": "\xff"}',
    ],
    ids=range(17),
)
def test_hostile_json_is_a_miss(cache: ResponseCache, path: Path, payload: bytes) -> None:
    plant(path, key(0), json.dumps(GOOD).encode())
    plant(path, key(1), payload)
    assert cache.get_many([key(0), key(1)]) == [answer(1, 2), None]


# Threads and processes


def test_each_thread_has_its_own_connection_until_it_ends(cache: ResponseCache) -> None:
    wrong: list[Any] = []

    def work(first: int) -> None:
        for number in range(first, first + 20):
            cache.put_many([(key(number), answer(number))])
            if cache.get_many([key(number)]) != [answer(number)]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(20 * first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cache) == 120
    last = threading.Thread(target=len, args=(cache,))
    last.start()
    last.join()
    assert set(cache._connections) == {threading.current_thread(), last}


def test_a_locked_file_is_waited_for_and_then_named(
    cache: ResponseCache, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.close()
    monkeypatch.setattr(response_cache, "BUSY_S", 0.2)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DataError, match="other processes held it"):
        cache.put_many([(key(0), answer(0))])
    monkeypatch.setattr(response_cache, "BUSY_S", 30.0)
    cache.close()
    release = threading.Timer(0.2, lambda: other.execute("ROLLBACK"))
    release.start()
    cache.put_many([(key(0), answer(0))])
    release.join()
    other.close()
    assert cache.get_many([key(0)]) == [answer(0)]


PRELUDE = """
import os, random, sys, time
from stepwell.generate.request import Completion, Request, Usage
from stepwell.generate.response_cache import AnswerKey, AnswerSource, ResponseCache

source = AnswerSource("m", "t", "float32", "cpu", "auto", frozenset({1, 8, 64}), None, ())

def key(number):
    return AnswerKey(source, Request((1, number)))

def answer(number, writer, turn):
    text = f"{number} {writer} {turn},"
    return Completion(text * 40, (number, writer, turn) * 20, "stop", Usage(2, 60), (-1 / 3,) * 60)
"""

FORK = """
if "careless" in sys.argv:
    from stepwell.generate import response_cache
    response_cache._watch_forks = lambda: None
cache = ResponseCache(sys.argv[1])
cache.put_many([(key(0), answer(0, 0, 0))])
pid = os.fork()
if pid == 0:
    cache.put_many([(key(1), answer(1, 1, 0))])
    time.sleep(0.4)  # meanwhile the parent closes the file, and opens it again
    cache.put_many([(key(2), answer(2, 1, 1))])
    os._exit(0)
time.sleep(0.2)
cache.close()
cache.put_many([(key(3), answer(3, 0, 1))])
os.waitpid(pid, 0)
cache.close()
print(sum(found is not None for found in cache.get_many([key(n) for n in range(4)])))
"""


def run(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", PRELUDE + script, *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_child_and_its_parent_lose_nothing_of_each_other(path: Path) -> None:
    with run(FORK, str(path)) as parent:
        assert parent.communicate(timeout=60) == ("4\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_child_that_inherits_a_connection_would_lose_answers(path: Path) -> None:
    """The control: the law fails where connections are not closed before a fork."""
    with run(FORK, str(path), "careless") as parent:
        assert parent.communicate(timeout=60)[0] != "4\n"


WORK = """
path, log, writer, target, habit = sys.argv[1:]
writer, target = int(writer), int(target)
notes = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND)
turn = os.pread(notes, 2**26, 0).count(b"\\n")
rng = random.Random(f"{writer} {turn}")
cache, late = ResponseCache(path), []
while turn < target:
    number = rng.randrange(40)
    if rng.random() < 0.5:
        late.append((key(number), answer(number, writer, turn)))
        if habit == "commit" or len(late) > 50:
            cache.put_many(late)
            late = []
        note = f"put {number} {turn}\\n"
    else:
        [found] = cache.get_many([key(number)])
        if found is not None and found != answer(number, *found.token_ids[1:3]):
            sys.exit(f"torn: {found}")
        note = "get\\n"
    os.write(notes, note.encode())
    turn += 1
if cache.statistics.corrupt:
    sys.exit(f"{cache.statistics}")
"""


def survived(folder: Path, writers: int, target: int, kills: int, habit: str) -> list[str]:
    """What was lost or torn while writers were killed, each in a random moment, and restarted."""
    path, rng = folder / "answers.sqlite", random.Random(3)
    logs, killed = [folder / f"log-{writer}" for writer in range(writers)], 0

    def start(writer: int) -> subprocess.Popen[str]:
        return run(WORK, str(path), str(logs[writer]), str(writer), str(target), habit)

    running = {writer: start(writer) for writer in range(writers)}
    for _ in range(kills):
        victim = rng.choice(sorted(running))
        wanted = turns(logs[victim]) + rng.randrange(1, max(2, target // (2 * kills)))
        while turns(logs[victim]) < wanted and running[victim].poll() is None:
            time.sleep(0.0005)
        running[victim].send_signal(signal.SIGKILL)
        running[victim].communicate()
        killed += running[victim].returncode == -signal.SIGKILL
        running[victim] = start(victim)
    faults = [each.communicate(timeout=3000)[1] for each in running.values()]
    assert killed >= kills / 2, "the writers were done before they could be killed"
    return [fault for fault in faults if fault] + lost(folder, path, logs)


def turns(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def lost(folder: Path, path: Path, logs: list[Path]) -> list[str]:
    """The numbers whose entry is gone, or older than one that its writer knew to be kept."""
    scope: dict[str, Any] = {}
    exec(PRELUDE, scope)
    puts: dict[int, dict[int, int]] = {}  # by number and writer, the last turn that was kept
    for writer, log in enumerate(logs):
        for line in log.read_text().splitlines():
            if line.startswith("put"):
                number, turn = map(int, line.split()[1:])
                puts.setdefault(number, {})[writer] = turn
    with ResponseCache(path) as cache:
        found = cache.get_many([scope["key"](number) for number in puts])
    faults = []
    for (number, kept), completion in zip(puts.items(), found, strict=True):
        if completion is None:
            faults.append(f"{number} is gone")
        elif completion != scope["answer"](number, *completion.token_ids[1:3]):
            faults.append(f"{number} is torn")
        elif kept.get(completion.token_ids[1], -1) > completion.token_ids[2]:
            faults.append(f"{number} is stale")
    return faults


@pytest.mark.parametrize(
    ("writers", "target", "kills"),
    [(3, 300, 3), pytest.param(8, 10_000, 20, marks=pytest.mark.slow)],
)
def test_no_kill_loses_or_tears_what_was_put(
    tmp_path: Path, writers: int, target: int, kills: int
) -> None:
    assert survived(tmp_path, writers, target, kills, "commit") == []


def test_answers_put_late_would_be_lost(tmp_path: Path) -> None:
    """The control: the law fails where an answer is only said to be kept."""
    assert survived(tmp_path, 1, 60, 2, "late")
