"""A peer as a process: started with the Python of its environment, asked, ended.

Owns the process and what becomes of one that dies or hangs. What is said between us is in
peers/conversation.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

from stepwell.errors import PeerError, UsageError, suggest
from stepwell.evals.bench.hook import Hook
from stepwell.evals.bench.peers.conversation import Answer, Setup, Timing
from stepwell.evals.bench.plan import WEIGHTS, Question, Weights

VARIABLE: Final = "STEPWELL_PEERS"
LIMIT_S: Final = 900.0
"""Seconds after which a peer that has not answered is ended."""

HERE: Final = Path(__file__).parent
LAUNCH: Final = """
import importlib, sys
sys.path.append(sys.argv[1])
importlib.import_module(f"peers.{sys.argv[2]}").main()
"""
GUARD: Final = 'read -r _; kill -KILL "-$0"'


@dataclass(frozen=True)
class Kind:
    """A program that can be a peer: its module in `peers`, and what it is asked."""

    module: str
    questions: tuple[Question, ...]
    weights: tuple[Weights, ...] = ("bf16",)


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "llama.cpp": Kind("llama_cpp", ("decode", "prefill", "load"), WEIGHTS),
        "transformers": Kind("transformers", ("decode", "prefill", "load", "train")),
        "vllm": Kind("vllm", ("decode", "prefill", "batch")),
        "nnsight": Kind("nnsight", ("hooks",), ("fp32",)),
        "transformer-lens": Kind("transformer_lens", ("hooks",), ("fp32",)),
    }
)


class Peer:
    """A running peer with its model loaded. A `Contestant`; raises PeerError where it fails."""

    def __init__(self, name: str, command: Sequence[str], setup: Setup, limit_s: float = LIMIT_S):
        self.name, self.version = name, ""
        self._limit_s = limit_s
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the peer
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env=surroundings(setup.threads),
                start_new_session=True,  # so that what it starts can be ended with it
            )
        except OSError as error:
            self._complaints.close()
            raise PeerError(f"{command[0]} does not start: {error.strerror}.") from None
        self._guard: subprocess.Popen[bytes] | None = None
        try:
            self._guard = guard_of(self._process)
            self.version = str(self._exchange(setup._asdict()).get("version", ""))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def measure(self, rows: int, prompt: int, new: int, seed: int) -> Timing:
        """Seconds of reading `rows` prompts, and of the `new - 1` tokens behind the first."""
        asked = {"do": "measure", "rows": rows, "prompt": prompt, "new": new, "seed": seed}
        said = self._exchange(asked)
        return Timing(self._number(said, "prefill_s"), self._number(said, "decode_s"))

    def batch(self, requests: tuple[tuple[int, int], ...], seed: int) -> float:
        """Seconds until the last of the requests, (prompt, new tokens) each, is answered."""
        said = self._exchange({"do": "batch", "requests": requests, "seed": seed})
        return self._number(said, "seconds")

    def load(self, seed: int) -> float:
        """Seconds from the files to the first token of a short prompt."""
        return self._number(self._exchange({"do": "load", "seed": seed}), "seconds")

    def train(self, rows: int, length: int, seed: int, *, compiled: bool) -> float:
        """Seconds of a training step over `rows` of so many tokens, products in bfloat16."""
        asked = {"do": "train", "rows": rows, "length": length, "seed": seed, "compiled": compiled}
        return self._number(self._exchange(asked), "seconds")

    def hooked(self, rows: int, prompt: int, new: int, seed: int, hook: Hook) -> Answer:
        """What `rows` prompts are answered under a hook, and the seconds that it takes."""
        asked = {"do": "hooked", "rows": rows, "prompt": prompt, "new": new, "seed": seed}
        said = self._exchange({**asked, "hook": hook.plain})
        seconds = self._number(said, "prefill_s"), self._number(said, "decode_s")
        return Answer(*seconds, self._list(said, "ids"))

    def logits(self, prompt: int, seed: int, hook: Hook) -> list[float]:
        """The logits from which the first token of an answer comes, under an intervention."""
        asked = {"do": "logits", "prompt": prompt, "seed": seed, "hook": hook.plain}
        return self._list(self._exchange(asked), "logits")

    def close(self) -> None:
        """End the process, and those that it has started."""
        end_group(self._process)
        if self._guard is not None:  # before the process is waited for, whose id is free then
            self._guard.communicate()
        self._process.communicate()
        self._complaints.close()

    def _exchange(self, plain: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the peer says to a line of ours."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with awake(process), killed_after(self._limit_s, process) as was_late:
                process.stdin.write(json.dumps(plain).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            late = f"it did not answer within {self._limit_s:g} s"
            raise PeerError(f"{self.name} ended: {late if was_late() else self._last_words()}.")
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise PeerError(f"{self.name} said {line[:60]!r}, which is no JSON object.")
        return said

    def _number(self, said: Mapping[str, Any], key: str) -> float:
        value = said.get(key)
        if not isinstance(value, int | float):
            raise PeerError(f"{self.name} said {dict(said)}, expected seconds as {key!r}.")
        return float(value)

    def _list(self, said: Mapping[str, Any], key: str) -> list[Any]:
        value = said.get(key)
        if not isinstance(value, list):
            raise PeerError(f"{self.name} said {dict(said)}, expected a list as {key!r}.")
        return value

    def _last_words(self) -> str:
        """The last line of its standard error, or its exit code.

        It may close its output a while before it ends, and has to run to do so.
        """
        with awake(self._process), killed_after(self._limit_s, self._process):
            code = self._process.wait()
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1][:200].rstrip(".") if said else f"exit code {code}"


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process that leads a group, and the whole group, also where itself is gone."""
    signal_group(process, "SIGKILL")


@contextmanager
def awake(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """While this lasts the process group runs; afterwards it stands still.

    Else one that waits by spinning would take a core from those whose turn it is.
    """
    signal_group(process, "SIGCONT")
    try:
        yield
    finally:
        signal_group(process, "SIGSTOP")


def signal_group(process: subprocess.Popen[bytes], name: str) -> None:
    """Sends a signal to the group that a process leads, where the system has such signals."""
    if hasattr(signal, name):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, getattr(signal, name))


def guard_of(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes] | None:
    """A shell that kills the process group as soon as we are gone; None where none can stop.

    One that stands still would not notice the end of its input, and stay for ever.
    """
    if not hasattr(signal, "SIGSTOP"):
        return None
    return subprocess.Popen(
        ["sh", "-c", GUARD, str(process.pid)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it complains where the group has ended before
        start_new_session=True,  # so that what ends us spares it
    )


@contextmanager
def killed_after(limit_s: float, process: subprocess.Popen[bytes]) -> Iterator[Any]:
    """While this lasts the process is killed when the time is up; yields whether it was."""
    late = threading.Event()

    def kill() -> None:
        late.set()
        end_group(process)

    timer = threading.Timer(limit_s, kill)
    timer.start()
    try:
        yield late.is_set
    finally:
        timer.cancel()


def command_of(name: str, python: Path) -> list[str]:
    """The command line that starts a peer with the Python of its environment."""
    return [str(python), "-I", "-B", "-c", LAUNCH, str(HERE), KINDS[name].module]


def surroundings(threads: int) -> dict[str, str]:
    """The environment variables of a peer: ours, without our Python's, and with its threads."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


def known_peers(given: Sequence[str], folder: str | None) -> dict[str, Path]:
    """The Python of each peer: those of a folder of environments, and NAME=PYTHON, which win.

    Raises UsageError for a name that is no peer's.
    """
    found = {}
    for name in KINDS if folder else ():
        python = python_of(Path(folder or "") / name)
        if python.exists():
            found[name] = python
    for word in given:
        name, equals, python_path = word.partition("=")
        if name not in KINDS or not (equals and python_path):
            raise UsageError(
                f"--peer {word!r} is not NAME=PYTHON. {suggest(name, KINDS)}",
                fix="write it like --peer llama.cpp=peers/llama.cpp/bin/python.",
            )
        found[name] = Path(python_path)
    return found


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    windows = sys.platform == "win32"
    return environment / ("Scripts/python.exe" if windows else "bin/python")
