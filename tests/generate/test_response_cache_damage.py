"""Damaged, foreign and hostile cache files: an error or a miss, never a wrong answer."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.answers import answer, key

from stepwell.errors import DataError, FormatError, StepwellError
from stepwell.generate import response_cache
from stepwell.generate.answer_key import AnswerKey
from stepwell.generate.response_cache import ResponseCache


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


GOOD = {name: value for name, value in answer(1, 2).plain().items() if name != "error"}


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
