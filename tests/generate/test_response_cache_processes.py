"""The response cache under threads, processes and kills: nothing put is lost or torn."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.answers import answer, key

from stepwell.errors import DataError
from stepwell.generate import response_cache
from stepwell.generate.response_cache import ResponseCache


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
from stepwell.generate.answer_key import AnswerKey, AnswerSource
from stepwell.generate.response_cache import ResponseCache

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
while turn < target or not os.path.exists(path + ".kills-are-over"):
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
    """What was lost or torn while writers were killed, each in a random moment, and restarted.

    No writer ends before the last kill, however fast it is.
    """
    path, rng = folder / "answers.sqlite", random.Random(3)
    logs = [folder / f"log-{writer}" for writer in range(writers)]

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
        assert running[victim].returncode == -signal.SIGKILL
        running[victim] = start(victim)
    path.with_name(path.name + ".kills-are-over").touch()
    faults = [each.communicate(timeout=3000)[1] for each in running.values()]
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
