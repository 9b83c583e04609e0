"""`stepwell chat`, typed at a real pseudo-terminal, and through pipes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from stepwell.tasks import Chats

PATIENCE = 60.0


class Typist:
    """A person at a terminal in which `stepwell chat` runs."""

    def __init__(self, *words: object) -> None:
        self.mine, theirs = pty.openpty()
        command = [sys.executable, "-m", "stepwell", "chat", *map(str, words)]
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
            start_new_session=True, preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def until(self, pattern: str, patience: float = PATIENCE) -> str:
        """What appears up to this pattern, which is then behind us."""
        end = time.monotonic() + patience
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.mine], [], [], max(0, end - time.monotonic()))
            assert ready, f"{pattern!r} did not appear in {self.seen!r}"
            try:
                self.seen += os.read(self.mine, 4096).decode()
            except OSError:  # the other side is gone
                raise AssertionError(f"{pattern!r} did not appear in {self.seen!r}") from None
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown

    def type(self, text: str) -> None:
        os.write(self.mine, text.encode())

    def press(self, key: str, pattern: str) -> str:
        """`until` after a key that is pressed again where nothing comes of it.

        Between a prompt and the wait for a line Python keeps a signal to itself until a key comes.
        """
        for _ in range(int(PATIENCE)):
            self.type(key)
            with suppress(AssertionError):
                return self.until(pattern, patience=1.0)
        raise AssertionError(f"{pattern!r} did not appear in {self.seen!r}")

    def close(self) -> int:
        self.process.wait(PATIENCE)
        os.close(self.mine)
        return self.process.returncode


def _take_terminal() -> None:
    """Make the pseudo-terminal the one of the new session, so that Ctrl-C is a signal there."""
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.default_int_handler)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def typist(chat_run: Path) -> Iterator[Typist]:
    person = Typist(chat_run, "--temperature", "0")
    yield person
    person.process.kill()
    person.process.wait()


def test_a_talk_at_a_terminal(typist: Typist, tmp_path: Path, chat_run: Path) -> None:
    typist.until(r"!help")
    typist.until(r"\n> $")
    typist.type("3?\n")
    shown = typist.until(r"21\r\n")
    assert "\x1b[2m3 times 7\x1b[0m" in shown  # dimmed
    typist.until(r"were in the cache.*\r\n.*> ")
    typist.type("!set temprature 1\n")
    assert "Did you mean 'temperature'" in typist.until(r"> ")
    typist.type("!set max_new_tokens 2\n")
    typist.until(r"\n> $")
    typist.type("4?\n")
    assert "ended by length" in typist.until(r"in the cache.*\r\n.*> ")
    typist.type(f"!save {tmp_path / 'talk.jsonl'}\n")
    typist.until(r"Appended to .*\r\n.*> ")
    typist.type("\n")
    typist.until(r"A new conversation\..*\r\n.*> ")
    typist.type("!hepl\n")
    assert "There is no !hepl. Did you mean '!help'?" in typist.until(r"\r\n.*> ")
    typist.type("!quit\n")
    assert typist.close() == 0
    [line] = (tmp_path / "talk.jsonl").read_text().splitlines()
    assert [each["content"] for each in json.loads(line)["messages"]][:3] == ["3?", "21", "4?"]
    task = Chats(path=tmp_path / "talk.jsonl", tokenizer_from=chat_run)
    assert task.examples[0].answer == "<think>3 times 7</think>21<|end|>"


def test_ctrl_c_stops_a_reply_and_ctrl_d_ends(chat_run: Path) -> None:
    person = Typist(chat_run, "--ignore-eos", "--max-new-tokens", "200", "--temperature", "2")
    try:
        person.until(r"\n> $")
        for pause in (0.0, 0.1):  # before the reply begins, perhaps, and within it
            person.type("3?\n")
            time.sleep(pause)
            person.press("\x03", r"\n> $")
        person.press("\x03", r"!quit or Ctrl-D ends\..*\n> $")
        person.type("\x04")
        assert person.close() == 0
    finally:
        person.process.kill()
        person.process.wait()


def test_through_pipes_replies_are_lines(chat_run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stepwell", "chat", chat_run, "--temperature", "0", "--json"],
        input="3?\n\n5?\n!set think maybe\n", capture_output=True, text=True, timeout=PATIENCE,
        check=True,
    )  # fmt: skip
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"think": "3 times 7", "answer": "21", "finish_reason": "stop"},
        {"think": "5 times 7", "answer": "35", "finish_reason": "stop"},
    ]
    assert "think is on or off" in done.stderr
    plain = subprocess.run(
        [sys.executable, "-m", "stepwell", "chat", chat_run, "--temperature", "0", "--quiet"],
        input="3?\n", capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    assert plain.stdout == "(3 times 7)\n21\n"
    assert plain.stderr == ""


def test_training_on_chats_says_that_one_can_chat_now(run, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"data": [f"{n}?", "yes"]}) for n in range(80)))
    words = ("--steps", 2, "--batch-size", 2, "--runs", tmp_path / "runs", "--run-name", "talk")
    ended = run("train", "--task", "chats", "--path", path, *words)
    assert ended.code == 0
    assert f"stepwell chat {tmp_path / 'runs' / 'talk'}" in ended.err.replace("\n", "")


def test_a_model_that_cannot_chat_says_so(run, trained: Path) -> None:
    ended = run("chat", trained)
    assert ended.code == 1
    assert "no chat template" in ended.err
    assert "Traceback" not in ended.err


def test_a_wrong_parameter_is_said_before_the_first_prompt(run, chat_run: Path) -> None:
    ended = run("chat", chat_run, "--top-p", "7")
    assert ended.code == 2
    assert "top_p" in ended.err or "--top-p" in ended.err
