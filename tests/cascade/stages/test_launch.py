"""Servers that are started, waited for and stopped, with real processes that behave or do not."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.processes import free_port, is_gone, wait_until

from stepwell.cascade.stages import launch
from stepwell.cascade.stages.launch import Launcher
from stepwell.cascade.stages.server import ServerStage
from stepwell.errors import ConfigError, StageError

SERVER = """
import os, signal, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer

SPIN = '''
import sys, time
while True:
    with open(sys.argv[1], "a") as file:
        file.write(".")
    time.sleep(0.02)
'''

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path == os.environ.get("HEALTHY_AT", "/health")
        self.send_response(200 if known else 404)
        self.end_headers()
    def do_POST(self):
        print("out of memory", flush=True)
        os._exit(9)
    def log_message(self, *values):
        pass

mode, port = sys.argv[1], int(sys.argv[2])
print("word:", os.environ.get("WORD"), "in:", os.getcwd(), flush=True)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "parent":
    subprocess.Popen([sys.executable, "-S", "-c", SPIN, sys.argv[3]])
if mode == "dies":
    print("Loading...", "", "CUDA is not there.", sep="\\n")
    sys.exit(3)
if mode == "deaf":
    time.sleep(60)
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

Make = Callable[..., Launcher]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    return path


@pytest.fixture
def made(script: Path) -> Iterator[Make]:
    """Makes launchers of the script in some mode; what they start ends with the test."""
    with ExitStack() as stack:

        def make(mode: str = "serve", *words: str, port: int = 0, **options: Any) -> Launcher:
            port = port or free_port()
            command = shlex.join([sys.executable, "-S", str(script), mode, str(port), *words])
            launcher = Launcher(command, f"http://127.0.0.1:{port}/v1", **options)
            stack.callback(launcher.stop)
            return launcher

        yield make


def pid_of(launcher: Launcher) -> int:
    assert launcher._process is not None
    return launcher._process.pid


def test_a_server_runs_from_start_to_stop(made: Make) -> None:
    with made() as launcher:
        assert launcher.is_alive
        assert launcher.is_healthy()
        group = pid_of(launcher)
        launcher.start()
        assert pid_of(launcher) == group, "it was started twice"
    assert not launcher.is_alive
    assert is_gone(group)
    launcher.stop()


def test_a_list_of_models_is_a_sign_of_health(made: Make) -> None:
    with made(environment={"HEALTHY_AT": "/v1/models"}) as launcher:
        assert launcher.is_healthy()


def test_what_a_server_has_started_ends_with_it(made: Make, tmp_path: Path) -> None:
    count = tmp_path / "count"
    with made("parent", str(count)) as launcher:
        group = pid_of(launcher)
        assert wait_until(lambda: count.exists() and count.stat().st_size > 2)
    assert wait_until(lambda: is_gone(group))
    before = count.stat().st_size
    time.sleep(0.2)
    assert count.stat().st_size == before


def test_a_server_that_does_not_want_to_end_is_killed(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "GRACE_S", 0.3)
    launcher = made("stubborn")
    launcher.start()
    group = pid_of(launcher)
    os.killpg(group, signal.SIGTERM)
    time.sleep(0.1)
    assert launcher.is_alive, "it ends when it is asked, so that this shows nothing"
    launcher.stop()
    assert is_gone(group)


def test_a_server_that_ends_early_is_an_error_with_its_last_words(made: Make) -> None:
    launcher = made("dies")
    with pytest.raises(StageError, match=r"ended before it was healthy: .* / CUDA is not there"):
        launcher.start()
    assert not launcher.is_alive


def test_a_server_that_does_not_become_healthy_is_stopped(made: Make) -> None:
    launcher = made("deaf", start_timeout_s=0.6)
    begun = time.monotonic()
    with pytest.raises(StageError, match=r"was not healthy after 0\.6 s: word: None"):
        launcher.start()
    assert time.monotonic() - begun < 5
    assert launcher._process is None


def test_a_command_line_is_read_as_a_shell_would(script: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "logs" / "log.txt"
    log.parent.mkdir()
    log.write_text("an older run\n")
    words = shlex.join([sys.executable, "-S", str(script), "serve", str(port)])
    command = f"WORD='two words' HEALTHY_AT=/v1/models {words}"
    url = f"http://127.0.0.1:{port}"
    with Launcher(command, url, log=log, directory=tmp_path) as launcher:
        said = f"word: two words in: {tmp_path.resolve()}"
        assert launcher.last_words == said
    assert log.read_text() == f"an older run\n{said}\n"


@pytest.mark.parametrize("command", ["", "   ", "A=1 B=2", "vllm 'serve"])
def test_a_command_that_is_none_is_refused(command: str) -> None:
    with pytest.raises(ConfigError, match="command is"):
        Launcher(command, "http://127.0.0.1:1")


def test_a_program_that_is_not_there_is_an_error() -> None:
    launcher = Launcher("/no/such/program --x", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StageError, match="/no/such/program does not start"):
        launcher.start()


def test_a_server_that_is_there_already_is_taken_only_where_told_so(made: Make) -> None:
    with made() as first:
        port = int(first.base.rpartition(":")[2])
        with pytest.raises(StageError, match=r"answers at .* already"):
            made(port=port).start()
        with made(port=port, reuse=True) as second:
            assert not second.is_alive
        assert first.is_healthy(), "what was there before is left alone"


OURS = """
import sys, time
from stepwell.cascade.stages.launch import Launcher

launcher = Launcher(sys.argv[1], sys.argv[2])
launcher.start()
print(launcher._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
def test_a_server_does_not_outlive_us(script: Path, tmp_path: Path, guarded: bool) -> None:
    port, count = free_port(), tmp_path / "count"
    command = shlex.join([sys.executable, "-S", str(script), "parent", str(port), str(count)])
    ours = OURS if guarded else OURS.replace("launcher.start()", UNGUARDED)
    words = [sys.executable, "-c", ours, command, f"http://127.0.0.1:{port}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        group = int(process.stdout.readline())
        assert not is_gone(group)
        process.kill()
    assert wait_until(lambda: is_gone(group), 3.0 if guarded else 0.5) == guarded
    if not guarded:
        os.killpg(group, signal.SIGKILL)


UNGUARDED = """
from stepwell.cascade.stages import launch
launch._guard_of = lambda process: None
launcher.start()
"""


def test_a_stage_stops_the_server_that_was_started_for_it(made: Make) -> None:
    launcher = made()
    stage = ServerStage("big", launcher.base, launcher=launcher)
    group = pid_of(launcher)
    stage.close()
    assert is_gone(group)


def test_a_stage_that_cannot_be_made_leaves_no_server_behind(made: Make, tmp_path: Path) -> None:
    launcher = made()
    launcher.start()
    with pytest.raises(Exception, match="holds no tokenizer"):
        ServerStage("big", launcher.base, launcher=launcher, tokenizer=tmp_path)
    assert not launcher.is_alive


def test_the_last_words_of_a_server_are_told(made: Make) -> None:
    launcher = made(environment={"HEALTHY_AT": "/health"})
    stage = ServerStage("big", launcher.base, model="x", dialect="openai", launcher=launcher)
    with pytest.raises(StageError, match=r"Stage 'big' .* / out of memory"):
        stage.generate(["a"])
    stage.close()
