"""A server as a process: started from a command line, waited for until it is healthy, stopped.

Owns the process, its group and its log; it is stopped too when we are killed. What is said to the
server is not known here.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from stepwell.cascade.stages.connection import LOOPBACK, base_of, without_secrets
from stepwell.errors import ConfigError, StageError

if TYPE_CHECKING:
    import httpx2

GRACE_S: Final = 10.0
"""Seconds that a server has to end by itself when it is told to."""
POLL_S: Final = 0.1
HEALTH: Final = ("/health", "/v1/models")
HEALTH_LIMIT_S: Final = 5.0
LAST_LINES: Final = 3
LINE: Final = 300
TAIL: Final = 10_000
"""How many lines an error shows, how much of each, and how much of a log is read for them."""
KILL: Final = getattr(signal, "SIGKILL", signal.SIGTERM)
ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=")
GUARD: Final = 'read -r _; kill -KILL "-$0"'


class Launcher:
    """Starts the server that listens at `url`; use it as a context manager, or start and stop it.

    command: a command line as a shell would read it, variables such as `A=1 program` included; no
    shell runs it. log: where its output goes, a temporary file if None. environment: more
    variables. directory: where it is run. start_timeout_s: how long the server may take until it is
    healthy. reuse: whether a healthy server that is there already will do; it is left running then.
    Raises ConfigError for a command that is none, StageError for a server that does not start.
    """

    def __init__(
        self,
        command: str,
        url: str,
        *,
        start_timeout_s: float = 300.0,
        log: str | Path | None = None,
        environment: Mapping[str, str] | None = None,
        directory: str | Path | None = None,
        reuse: bool = False,
    ) -> None:
        variables, self._words = _parsed(command)
        self._environment = {**variables, **(environment or {})}
        self.base = base_of(url)
        self._directory = directory
        self._start_timeout_s, self._reuse = start_timeout_s, reuse
        self._folder = tempfile.TemporaryDirectory() if log is None else None
        self._log = Path(self._folder.name) / "server.log" if self._folder else Path(log or "")
        self._log_begin = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_alive(self) -> bool:
        """Whether the process that was started runs."""
        return self._process is not None and not self._has_exited()

    @property
    def last_words(self) -> str:
        """The end of what the server wrote, in one line."""
        try:
            with self._log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_begin, end - TAIL))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        said = [line.strip()[:LINE] for line in lines if line.strip()]
        return " / ".join(said[-LAST_LINES:])

    def start(self) -> None:
        """Start the server and wait until it is healthy; nothing where that was done before."""
        with self._lock:
            if self._process is not None:
                return
            if self.is_healthy():
                if self._reuse:
                    return
                raise StageError(
                    f"A server answers at {self._shown} already.",
                    fix="stop it, choose another port, or say that it is to be reused.",
                )
            try:
                self._begin()
                with self._client() as client:
                    self._wait_until_healthy(client)
            except BaseException:
                self._end()
                raise

    def stop(self) -> None:
        """End the server and all that it has started: asked first, then killed."""
        with self._lock:
            self._end()

    def is_healthy(self) -> bool:
        """Whether a server answers at the address that it is well."""
        with self._client() as client:
            return self._is_well(client, HEALTH_LIMIT_S)

    def _client(self) -> httpx2.Client:
        import httpx2

        return httpx2.Client(
            base_url=self._shown, trust_env=urlsplit(self.base).hostname not in LOOPBACK
        )

    def _is_well(self, client: httpx2.Client, limit_s: float) -> bool:
        import httpx2

        for path in HEALTH:
            with suppress(httpx2.HTTPError):
                if client.get(path, timeout=limit_s).status_code == 200:
                    return True
        return False

    @property
    def _shown(self) -> str:
        return without_secrets(self.base)

    def _begin(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._log_begin = log.tell()
            try:
                self._process = subprocess.Popen(
                    self._words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self._environment},
                    cwd=self._directory,
                    start_new_session=True,  # so that what it starts can be ended with it
                )
            except OSError as error:
                raise StageError(
                    f"{self._words[0]} does not start: {error.strerror}.",
                    fix="correct `command:`.",
                ) from None
        self._guard = _guard_of(self._process)

    def _wait_until_healthy(self, client: httpx2.Client) -> None:
        limit = time.monotonic() + self._start_timeout_s
        while True:
            if self._has_exited():
                problem = f"The server for {self._shown} ended before it was healthy"
                fix = "run its command by hand."
                break
            left = limit - time.monotonic()
            if left <= 0:
                waited = f"{self._start_timeout_s:g} s"
                problem = f"The server for {self._shown} was not healthy after {waited}"
                fix = "raise start_timeout_s, or see whether it listens at this address."
                break
            if self._is_well(client, min(left, HEALTH_LIMIT_S)):
                return
            time.sleep(POLL_S)
        raise StageError(f"{problem}: {self.last_words or 'it wrote nothing'}", fix=fix)

    def _has_exited(self) -> bool:
        """Whether the process has ended; its id stays its own until `_end`."""
        assert self._process is not None
        if self._process.returncode is not None:
            return True
        if not hasattr(os, "waitid"):
            return self._process.poll() is not None
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, options) is not None

    def _end(self) -> None:
        process, guard = self._process, self._guard
        if process is not None:
            _signal_group(process, signal.SIGTERM)
            limit = time.monotonic() + GRACE_S
            while not self._has_exited() and time.monotonic() < limit:
                time.sleep(POLL_S / 2)
            _signal_group(process, KILL)
            if guard is not None:  # before the process is waited for, whose id is free then
                guard.communicate()
            process.wait()
        self._process = self._guard = None
        if self._folder is not None:
            self._folder.cleanup()


def _parsed(command: str) -> tuple[dict[str, str], list[str]]:
    """The variables that a command line begins with, and its words."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"command is {command!r}: {error}.", fix="close the quotes.") from None
    count = next((at for at, word in enumerate(words) if not ASSIGNMENT.match(word)), len(words))
    if count == len(words):
        raise ConfigError(
            f"command is {command!r}, expected a program.",
            fix="write it like vllm serve models/big --port 8000.",
        )
    variables = (word.partition("=") for word in words[:count])
    return {name: value for name, _, value in variables}, words[count:]


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Sends a signal to the group that a process leads; to it alone where there are no groups."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def _guard_of(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes] | None:
    """A shell that kills the process group as soon as we are gone; None where there are none."""
    if not hasattr(os, "killpg"):
        return None
    return subprocess.Popen(
        ["sh", "-c", GUARD, str(process.pid)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it complains where the group has ended before
        start_new_session=True,  # so that what ends us spares it
    )
