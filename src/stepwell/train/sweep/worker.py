"""A process that runs trials of a sweep: one line of JSON in, lines of JSON out.

    {"directory": ..., "cores": [0, 1], "threads": 2, "device": "cpu", "trainer": ..., "own": {...}}
    {"trial": 3, "step": 20, "steps": 100, "values": {...}}      a trial's progress
    {"ended": {...}}                                             a trial with its outcome
    {"error": {"kind": ..., "problem": ..., "fix": ...}}         why the worker ends

Run as `python -m stepwell.train.sweep.worker` by `crew`. When its input ends it saves and stops, so
it does not outlive who started it. torch is imported once the process is pinned to its cores.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from stepwell.errors import StepwellError

if TYPE_CHECKING:
    from stepwell.train.sweep.folder import Trial

EVERY_S: Final = 0.25  # between two lines of progress


class Lines:
    """A `Watcher` and `Progress` that writes lines of JSON."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._number = self._steps = 0
        self._last = 0.0

    def progress(self, trial: Trial) -> Lines:
        """Itself, from now on about this trial."""
        self._number = trial.number
        return self

    def ended(self, trial: Trial) -> None:
        """Writes the trial down."""
        self.write({"ended": trial.plain()})

    def start(self, total: int, description: str) -> None:  # noqa: ARG002
        """The trial has so many steps."""
        self._steps = total
        self.update(0, {})

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Writes progress, unless some was written a moment ago."""
        if time.monotonic() - self._last >= EVERY_S:
            self._last = time.monotonic()
            shown = {name: value for name, value in values.items() if value == value}
            line = {"trial": self._number, "step": step, "steps": self._steps, "values": shown}
            self.write(line)

    def finish(self) -> None:
        """The next trial writes at once."""
        self._last = 0.0

    def write(self, message: Mapping[str, Any]) -> None:
        """Writes one line."""
        print(json.dumps(message), file=self._out, flush=True)


def import_own(files: Mapping[str, str]) -> dict[str, Any]:
    """The names that modules of the user's own define, by module; `files` says where they are."""
    found = {}
    for name, path in files.items():
        is_main = name == "__main__"
        found[name] = (
            runpy.run_path(path, run_name="__mp_main__")
            if is_main
            else vars(importlib.import_module(name))
        )
    return found


def serve(asked: Mapping[str, Any], out: TextIO, stop_requested: Callable[[], bool]) -> int:
    """Runs trials until none is left or a stop is requested; the exit code."""
    from stepwell.train.sweep.folder import SweepFolder
    from stepwell.train.sweep.work import work
    from stepwell.train.trainer import Trainer

    lines = Lines(out)
    sys.path[:] = asked["search"]
    own = import_own(asked["own"])
    module, name = asked["trainer"]
    trainer = own[module][name] if module in own else Trainer
    place = {"threads": asked["threads"], "device": asked["device"]}
    try:
        work(SweepFolder(Path(asked["directory"])), lines, stop_requested, trainer, **place)
    except KeyboardInterrupt:
        return 0
    except StepwellError as error:
        kind = type(error).__name__
        lines.write({"error": {"kind": kind, "problem": error.problem, "fix": error.fix}})
        return 1
    return 0


def main() -> int:
    """Serves over standard input and output; what libraries print goes to standard error."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    asked = json.loads(sys.stdin.readline())
    if asked["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, asked["cores"])
    stopping = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        stopping.set()

    threading.Thread(target=listen, daemon=True).start()
    return serve(asked, replies, stopping.is_set)


if __name__ == "__main__":
    sys.exit(main())
