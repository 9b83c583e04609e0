"""Answers kept between runs: a file of completions under keys of all that shapes them.

Owns the file and which of its entries are sound; `answer_key` owns the keys. Knows no engine:
whoever generates asks here first, and puts what is new.

The file is a SQLite database with one table, and data only: what is read runs nothing.

    key       the digest of an AnswerKey
    payload   the completion as JSON, each float with all its digits
    checksum  SHA-256 of key and payload
    used      when the answer was last used, in seconds since 1970, up to an hour behind

Its journal is a write-ahead log, not flushed at each commit: what was put survives the end of the
process, whatever ends it. A power failure may take the last commits, never half of one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import sqlite3
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

import pydantic

from stepwell.errors import ConfigError, DataError, FormatError
from stepwell.generate.answer_key import FORMAT_VERSION, AnswerKey
from stepwell.generate.request import Completion, Usage

APPLICATION_ID: Final = 0x73777263  # in a database's header: tells ours from all others
BUSY_S: Final = 60.0  # that an operation waits for other processes before it fails
USED_RESOLUTION_S: Final = 3600  # uses are noted so seldom that reading hardly ever writes
MIN_BYTES: Final = 2**20

_SCHEMA: Final = (
    "CREATE TABLE answers (key BLOB PRIMARY KEY, payload BLOB, checksum BLOB, used INTEGER)",
    "CREATE INDEX answers_used ON answers (used)",
)
_GET: Final = "SELECT payload, checksum, used <= ? FROM answers WHERE key = ?"
_TOUCH: Final = "UPDATE answers SET used = ? WHERE key = ?"
_PUT: Final = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)"
_BY_AGE: Final = "SELECT rowid, ifnull(length(payload), 0) FROM answers ORDER BY used, rowid"
_ANEW: Final = "give another path, or delete the file if it was one: its answers come anew."
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL)
_DAMAGED: Final = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)
_Result = TypeVar("_Result")


class _Payload(pydantic.BaseModel, extra="forbid", strict=True):
    """What is kept of a completion that has come to its end."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    usage: Usage
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    executors: tuple[str, ...] = ()


@dataclass(frozen=True)
class CacheStatistics:
    """What became of the answers that one ResponseCache was asked for; a corrupt one is a miss."""

    hits: int = 0
    misses: int = 0
    corrupt: int = 0
    evicted: int = 0


class ResponseCache:
    """Completions in a file, which any number of processes and threads may share.

    The file is made where there is none. It grows to about `max_bytes`, then makes room by dropping
    a tenth, the answers unused for longest first. Another process may do so to what this one put.

    Every method raises DataError where the file is damaged, is no response cache, or cannot be read
    or written, and FormatError where a newer version wrote it.
    """

    def __init__(
        self, path: str | Path, *, max_bytes: int = 2**30, clock: Callable[[], float] = time.time
    ) -> None:
        if max_bytes < MIN_BYTES:
            raise ConfigError(f"max_bytes is {max_bytes}, expected {MIN_BYTES} or more.")
        self.path, self.max_bytes, self._clock = Path(path).absolute(), max_bytes, clock
        self._counts: Counter[str] = Counter()
        self._connections: dict[threading.Thread, sqlite3.Connection] = {}
        weakref.finalize(self, _close, self._connections)
        with _TURN:
            _open_caches.add(self)
            _watch_forks()
        self._run(_num_bytes)  # so that a file which cannot be used is told at once

    def __len__(self) -> int:
        count = "SELECT count(*) FROM answers"
        return int(self._run(lambda file: file.execute(count).fetchone()[0]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_bytes(self) -> int:
        """Bytes of the file that are in use; what was evicted or cleared leaves room in it."""
        return self._run(_num_bytes)

    @property
    def statistics(self) -> CacheStatistics:
        """What happened since this was made, other processes' doings left out."""
        return CacheStatistics(**self._counts)

    def get_many(self, keys: Sequence[AnswerKey]) -> list[Completion | None]:
        """The answer under each key, None where there is none or where it is damaged."""
        now = int(self._clock())
        digests = [key.digest for key in keys]
        rows = self._run(lambda file: _select(file, digests, now - USED_RESOLUTION_S))
        pairs = list(zip(digests, rows, strict=True))
        found = [_sound(digest, row) for digest, row in pairs]
        hits = [pair for pair, answer in zip(pairs, found, strict=True) if answer is not None]
        stale = [(now, digest) for digest, row in hits if row[2]]
        if stale:
            self._run(lambda file: _write(file, _TOUCH, stale))
        corrupt = len(rows) - rows.count(None) - len(hits)
        self._count(hits=len(hits), misses=len(found) - len(hits), corrupt=corrupt)
        return found

    def put_many(self, answers: Iterable[tuple[AnswerKey, Completion]]) -> None:
        """Keep answers, all or none; they replace what is there under their keys.

        Answers that were cancelled, ran out of time or ended with an error are left out.
        """
        now = int(self._clock())
        pairs = [pair for pair in answers if pair[1].finish_reason in ("stop", "length")]
        rows = [_row(key.digest, completion, now) for key, completion in pairs]
        if rows:
            self._count(evicted=self._run(lambda file: _write(file, _PUT, rows, self.max_bytes)))

    def clear(self) -> None:
        """Remove every answer. The file keeps its size and fills again."""
        self._run(lambda file: _write(file, "DELETE FROM answers", [()]))

    def close(self) -> None:
        """Close the file. It is opened again when something is asked of this."""
        _close(self._connections)

    def _count(self, **counts: int) -> None:
        with _TURN:
            self._counts.update(counts)

    def _run(self, action: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """What the action returns; it is tried again while other processes stand in its way.

        SQLite itself waits for a lock, but not where a file is just being made or recovered.
        """
        deadline = time.monotonic() + BUSY_S
        with _TURN:
            while True:
                try:
                    return action(self._connection())
                except (sqlite3.Error, UnicodeDecodeError) as error:
                    if _code(error) not in _BUSY or time.monotonic() > deadline:
                        raise _fault(self.path, error) from None
                time.sleep(0.01)

    def _connection(self) -> sqlite3.Connection:
        """This thread's own connection; closes those of threads that have ended."""
        thread = threading.current_thread()
        if thread not in self._connections:
            for ended in [other for other in self._connections if not other.is_alive()]:
                self._connections.pop(ended).close()
            self._connections[thread] = _connect(self.path)
        return self._connections[thread]


_TURN: Final = threading.RLock()
"""Held while a connection of this process is in use, and while the process forks."""
_open_caches: Final[weakref.WeakSet[ResponseCache]] = weakref.WeakSet()


@functools.cache
def _watch_forks() -> None:
    """Have all connections closed before each fork; each side opens its own when next needed.

    A child must not even inherit one. SQLite would take the parent's locks for the child's own, so
    that the parent, on closing, deletes the log to which the child goes on writing.
    """
    if sys.platform != "win32":
        after = {"after_in_parent": _TURN.release, "after_in_child": _TURN.release}
        os.register_at_fork(before=_before_fork, **after)


def _before_fork() -> None:
    _TURN.acquire()
    for cache in list(_open_caches):
        cache.close()


def _close(connections: dict[threading.Thread, sqlite3.Connection]) -> None:
    with _TURN:
        while connections:
            connections.popitem()[1].close()


def _connect(path: Path) -> sqlite3.Connection:
    """A connection to the file, which is made where it is missing or empty.

    Raises DataError or FormatError, with the file as it was, where it is something else.
    """
    address = f"{path.as_uri()}?mode=rwc"
    connection = sqlite3.connect(  # of no thread, because `close` closes those of all threads
        address, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        for setting in ("trusted_schema = OFF", "cell_size_check = ON", "synchronous = NORMAL"):
            connection.execute(f"PRAGMA {setting}")
        _make(connection)
        _check(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _make(connection: sqlite3.Connection) -> None:
    """Turn an empty database into a response cache; leaves any other one alone."""
    if _described(connection) != _EMPTY:
        return
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        if _described(connection) == _EMPTY:  # no other process was faster
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Raises DataError or FormatError where the database is not all that we make, and no more."""
    application, version, _ = found = _described(connection)
    if application != APPLICATION_ID:
        raise DataError(f"{path} is a database, but no response cache.", fix="give another path.")
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{path} has format_version {version}, this reads up to {FORMAT_VERSION}.",
            fix="update stepwell, or give another path.",
        )
    if found != _OURS:
        raise DataError(f"{path} is damaged: its tables are not as they were made.", fix=_ANEW)


_EMPTY: Final = (0, 0, frozenset[bytes]())
_OURS: Final = (APPLICATION_ID, FORMAT_VERSION, frozenset(map(str.encode, _SCHEMA)))


def _described(connection: sqlite3.Connection) -> tuple[int, int, frozenset[bytes]]:
    """The database's application, its format version, and all that is defined in it."""
    application, version = _numbers(connection, "application_id", "user_version")
    schema = connection.execute("SELECT CAST(sql AS BLOB) FROM sqlite_master WHERE sql IS NOT NULL")
    return application, version, frozenset(sql for [sql] in schema)


def _numbers(connection: sqlite3.Connection, *names: str) -> list[int]:
    return [int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in names]


def _code(error: sqlite3.Error | UnicodeDecodeError) -> int:
    """SQLite's primary code. An error without one tells of names or text that is not UTF-8."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF


def _fault(path: Path, error: sqlite3.Error | UnicodeDecodeError) -> DataError:
    """What SQLite reports, as an error that names the file and what to do."""
    if _code(error) in _BUSY:
        problem, fix = f"other processes held it for {BUSY_S:.0f} seconds", "end them."
    elif _code(error) in _DAMAGED:
        problem, fix = f"no response cache, or a damaged one ({error})", _ANEW
    else:
        problem, fix = str(error), "check that its folder is there, may be written and has room."
    return DataError(f"{path} cannot be used: {problem}.", fix=fix)


def _row(digest: bytes, completion: Completion, now: int) -> tuple[bytes, bytes, bytes, int]:
    values = completion.plain()
    payload = json.dumps({name: values[name] for name in _Payload.model_fields}).encode()
    return digest, payload, _checksum(digest, payload), now


def _checksum(digest: bytes, payload: bytes) -> bytes:
    """What an entry holds beside its payload: it fits no other payload and no other key."""
    return hashlib.sha256(digest + payload).digest()


def _sound(digest: bytes, row: tuple[Any, ...] | None) -> Completion | None:
    """The completion of an entry, None where there is none or where it is not as it was put."""
    payload, checksum, _ = row or (None, None, None)
    if not isinstance(payload, bytes) or checksum != _checksum(digest, payload):
        return None
    try:
        return Completion(**dict(_Payload.model_validate_json(payload)))
    except pydantic.ValidationError:
        return None


def _select(connection: sqlite3.Connection, digests: list[bytes], stale: int) -> list[Any]:
    """Payload, checksum and whether its use is to be noted, of each entry; None for no entry."""
    with connection:
        connection.execute("BEGIN")
        return [connection.execute(_GET, (stale, digest)).fetchone() for digest in digests]


def _write(
    connection: sqlite3.Connection, statement: str, rows: list[Any], max_bytes: float = math.inf
) -> int:
    """Apply a statement to rows, then make room where they take too much; how many are evicted."""
    evicted = 0
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(statement, rows)
        while _num_bytes(connection) > max_bytes and (oldest := _oldest(connection, max_bytes)):
            connection.executemany("DELETE FROM answers WHERE rowid = ?", oldest)
            evicted += len(oldest)
    return evicted


def _oldest(connection: sqlite3.Connection, max_bytes: float) -> list[tuple[int]]:
    """The entries unused for longest that hold a tenth of the limit, or all there are."""
    found, held = [], 0
    for rowid, payload_bytes in connection.execute(_BY_AGE):
        found.append((rowid,))
        held += payload_bytes
        if held >= max_bytes / 10:
            break
    return found


def _num_bytes(connection: sqlite3.Connection) -> int:
    pages, free, size = _numbers(connection, "page_count", "freelist_count", "page_size")
    return (pages - free) * size
