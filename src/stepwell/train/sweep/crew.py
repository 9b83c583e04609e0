"""The workers of a sweep: started, pinned to cores or a GPU, listened to, replaced, stopped.

A worker that was killed is replaced; the trial it leaves behind is the folder's business. One that
ends with an error ends the sweep.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch

from stepwell import errors
from stepwell.errors import StepwellError, TrainingError
from stepwell.train.sweep.folder import SweepFolder, Trial
from stepwell.train.sweep.watching import SweepProgress
from stepwell.train.trainer import Trainer

LOG: Final = "workers.log"
POLL_S: Final = 0.1


class Crew:
    """Some workers of a sweep, each on cores or a GPU of its own."""

    def __init__(
        self,
        folder: SweepFolder,
        *,
        workers: int,
        devices: Sequence[str],
        threads: int,
        trainer: type[Trainer],
        progress: SweepProgress,
    ) -> None:
        self._folder, self._progress = folder, progress
        self._jobs = [
            job(folder, number, workers, devices[number % len(devices)], threads, trainer)
            for number in range(workers)
        ]
        self._said: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._error: StepwellError | None = None

    def run(self, stop_requested: Callable[[], bool]) -> None:
        """Works until no worker finds a trial any more.

        Raises KeyboardInterrupt once a stop was requested and all have saved, and the error that a
        worker ended with.
        """
        stopping = False
        try:
            for number in range(len(self._jobs)):
                self._start(number)
            while self._processes:
                if not stopping and (self._error is not None or stop_requested()):
                    stopping = True
                    self._stop()
                self._listen(replace=not stopping)
        except (KeyboardInterrupt, StepwellError):
            if not stopping:  # a second Ctrl-C does not wait
                self._stop()
                for process in self._processes.values():
                    process.wait()
            raise
        finally:
            for process in self._processes.values():
                process.kill()
        if self._error is not None:
            raise self._error
        if stopping:
            raise KeyboardInterrupt

    def _start(self, number: int) -> None:
        with (self._folder.directory / LOG).open("ab") as log:
            self._processes[number] = process = subprocess.Popen(
                [sys.executable, "-m", "stepwell.train.sweep.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already, which `_read` says
            print(json.dumps(self._jobs[number]), file=process.stdin, flush=True)
        threading.Thread(target=self._read, args=(number, process), daemon=True).start()

    def _read(self, number: int, process: subprocess.Popen[str]) -> None:
        """Passes on what a worker says, line by line, and that it has ended."""
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):  # a killed worker may leave half of one
                self._said.put((number, json.loads(line)))
        self._said.put((number, None))

    def _listen(self, *, replace: bool) -> None:
        """Waits a moment for what workers say, and deals with it."""
        try:
            number, message = self._said.get(timeout=POLL_S)
        except queue.Empty:
            return
        if message is None:
            self._ended(number, replace=replace)
        elif "error" in message:
            fault = message["error"]
            kind: type[StepwellError] = getattr(errors, fault["kind"], StepwellError)
            self._error = self._error or kind(fault["problem"], fix=fault["fix"])
        elif "ended" in message:
            self._progress.ended(number, Trial.parse(message["ended"]))
        else:
            trial = self._folder.trial(message["trial"])
            loss = message["values"].get("loss")
            self._progress.update(number, trial, message["step"], message["steps"], loss)

    def _ended(self, number: int, *, replace: bool) -> None:
        process = self._processes.pop(number)
        code = process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        if code < 0 and replace:
            self._start(number)
            self._progress.replaced(number)
        elif code > 0 and self._error is None:
            self._error = TrainingError(
                f"A worker of {self._folder.directory} ended with code {code}:"
                f" {last_line(self._folder.directory / LOG)}",
                fix=f"see {self._folder.directory / LOG}; the same command goes on.",
            )

    def _stop(self) -> None:
        """Lets the workers save and end."""
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()


def job(
    folder: SweepFolder,
    number: int,
    workers: int,
    device: str,
    threads: int,
    trainer: type[Trainer],
) -> dict[str, Any]:
    """What worker `number` is told when it starts."""
    cores = share_of_cores(available_cores(), number, workers)
    own = own_files(trainer, type(folder.plan().config.task))
    return {
        "directory": str(folder.directory.resolve()),
        "cores": cores,
        "threads": threads or max(1, len(cores)),
        "device": device,
        "trainer": (trainer.__module__, trainer.__qualname__),
        "own": own,
        "search": sys.path,
    }


def own_files(*kinds: type) -> dict[str, str]:
    """The files of the modules that define classes of the user's own, by module."""
    modules = {kind.__module__ for kind in kinds if kind.__module__.split(".")[0] != "stepwell"}
    return {name: str(getattr(sys.modules[name], "__file__", "")) for name in sorted(modules)}


def available_cores() -> list[int]:
    """The cores that this process may run on; empty where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def share_of_cores(cores: Sequence[int], number: int, workers: int) -> list[int]:
    """The cores of worker `number`: its part of all, or one in turn where workers are more."""
    if len(cores) < workers:
        return [cores[number % len(cores)]] if cores else []
    each = len(cores) // workers
    return list(cores[number * each : (number + 1) * each])


def devices_of(name: str) -> list[str]:
    """The devices that a name stands for: a list with commas, or auto for all GPUs there are."""
    if name != "auto":
        return [part.strip() for part in name.split(",")]
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return gpus or ["auto"]


def last_line(path: Path) -> str:
    """The last line of a log that says anything."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing.")
