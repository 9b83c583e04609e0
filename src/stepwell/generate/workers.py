"""Prompts over several devices, or over several processes of one machine.

Each device has a worker, a process with the model of its own (on a CPU, mapped files are shared).
Whoever is free takes the next few prompts. Noise has addresses, so it moves no answer who gives it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from stepwell import errors
from stepwell.errors import ConfigError, DeviceError, StepwellError
from stepwell.generate.batch import Progress
from stepwell.generate.request import Completion, Usage
from stepwell.model.interventions import (
    Intervention,
    parse_interventions,
    plain_interventions,
)

CHUNK = 64
"""Prompts that a worker takes at once: enough to fill its rows, few enough to share them out."""


class WorkerPool:
    """`TextGenerator.generate_batch` by one process for each of `devices`, such as ["cpu"] * 4.

    threads: of each process; the machine's cores are shared out evenly by default. `options` are
    those of `TextGenerator.load`. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        source: str | Path,
        devices: Sequence[str],
        *,
        threads: int | None = None,
        **options: Any,
    ) -> None:
        if not devices:
            raise ConfigError("No devices are given.", fix='such as ["cuda:0", "cuda:1"].')
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        share = threads or max(1, (cores or 1) // len(devices))
        self._workers = [_Worker(name) for name in devices]
        try:
            for worker in self._workers:
                job = {"source": str(source), "device": worker.name, "threads": share}
                worker.send({**job, "options": options})
            for worker in self._workers:
                worker.receive()
        except BaseException:
            self.close()
            raise

    @property
    def num_at_once(self) -> int:
        """Prompts that keep all of the processes busy."""
        return CHUNK * len(self._workers)

    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        interventions: Sequence[Intervention] = (),
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[list[Completion]]:
        """The answers to each prompt, prompts in the order given.

        Prompts of a worker that dies are given to the others. Raises DeviceError where none is
        left, and otherwise what a single generator raises.
        """
        changes = plain_interventions(parse_interventions(interventions))
        asked = {**sampling, "interventions": changes} if changes else sampling
        run = _Run(prompts, asked, progress)
        workers = self._alive()
        while run.is_open and workers:  # again, where one died after the others had found no more
            threads = [threading.Thread(target=run.work, args=(each,)) for each in workers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            workers = [worker for worker in workers if worker.is_alive]
        return run.result()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _alive(self) -> list[_Worker]:
        alive = [worker for worker in self._workers if worker.is_alive]
        if not alive:
            raise DeviceError("Every worker process has ended.", fix="make a new WorkerPool.")
        return alive


class _Worker:
    """One process, and the lines that go to it and come from it."""

    def __init__(self, name: str) -> None:
        self.name = name
        command = [sys.executable, "-m", "stepwell.generate.worker"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8"
        )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `receive` says that it has ended
            print(json.dumps(message), file=self._process.stdin, flush=True)

    def receive(self) -> dict[str, Any]:
        """The next reply. Raises the error that it holds, or _EndedWorkerError."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise _EndedWorkerError(
                f"The worker on {self.name} has ended with code {self._process.wait()}.",
                fix="look at what it wrote to standard error; it may have run out of memory.",
            )
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise _error(reply["error"])
        return reply

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


class _EndedWorkerError(DeviceError):
    """A worker process that is gone; its prompts can go to another."""


class _Run:
    """One batch on its way through the workers, each with a thread here that waits for it."""

    def __init__(
        self, prompts: Sequence[str], sampling: Mapping[str, Any], progress: Progress | None
    ) -> None:
        self._prompts, self._sampling, self._progress = prompts, dict(sampling), progress
        self._open = deque(range(0, len(prompts), CHUNK))
        self._answers: dict[int, list[list[Completion]]] = {}
        self._error: StepwellError | None = None
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether there are prompts that somebody could answer."""
        return bool(self._open) and isinstance(self._error, _EndedWorkerError | None)

    def work(self, worker: _Worker) -> None:
        """Let a worker answer chunk after chunk, until none is left or one of them fails."""
        for start in self._chunks():
            prompts = self._prompts[start : start + CHUNK]
            worker.send({"number": start, "prompts": list(prompts), "sampling": self._sampling})
            try:
                reply = worker.receive()
            except _EndedWorkerError as error:
                self._give_back(start, error)
                return
            except StepwellError as error:
                self._error = error
                return
            self._take(start, reply["answers"])

    def result(self) -> list[list[Completion]]:
        """The answers in order. Raises what went wrong where some are missing."""
        if len(self._answers) * CHUNK < len(self._prompts):
            assert self._error is not None
            raise self._error
        return [choices for start in sorted(self._answers) for choices in self._answers[start]]

    def _chunks(self) -> Iterator[int]:
        while True:
            with self._lock:
                if not self.is_open:
                    return
                start = self._open.popleft()
            yield start

    def _give_back(self, start: int, error: StepwellError) -> None:
        with self._lock:
            self._open.appendleft(start)
            self._error = self._error or error

    def _take(self, start: int, answers: list[list[dict[str, Any]]]) -> None:
        with self._lock:
            self._answers[start] = [[_completion(each) for each in row] for row in answers]
            done = [choice for chunk in self._answers.values() for row in chunk for choice in row]
            if self._progress is not None:
                self._progress.update(len(done), sum(len(choice.token_ids) for choice in done))


def _completion(plain: dict[str, Any]) -> Completion:
    tuples = {name: tuple(plain[name]) for name in ("token_ids", "logprobs", "executors")}
    top = tuple(tuple(map(tuple, place)) for place in plain["top_logprobs"])
    usage = Usage(**plain["usage"])
    return Completion(**{**plain, **tuples, "top_logprobs": top, "usage": usage})


def _error(plain: Mapping[str, str]) -> StepwellError:
    """The error that a worker reported, as its own class."""
    kind = getattr(errors, plain["kind"], StepwellError)
    error: StepwellError = kind(plain["problem"], fix=plain["fix"])
    return error
