"""Small runs, and a disk whose every operation can be watched or made to fail."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stepwell.model.config import ModelConfig
from stepwell.tasks.facts import Facts
from stepwell.train import report
from stepwell.train.config import OptimizerConfig, TrainerConfig

MODEL = ModelConfig(width=16, num_layers=1, num_heads=2, context_length=8)


@pytest.fixture(autouse=True)
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush takes milliseconds and shows only after a power cut, which no test brings about."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take half a second a run; what is tested about them asks for them itself."""
    monkeypatch.setattr(report, "PICTURES", ())


@pytest.fixture(scope="session")
def small_in() -> Callable[..., TrainerConfig]:
    """Makes configurations of runs that take a fraction of a second, in a folder for runs."""

    def make(runs: Path, **fields: Any) -> TrainerConfig:
        values: dict[str, Any] = {
            "model": MODEL,
            "task": Facts(facts=16),
            "steps": 12,
            "batch_size": 8,
            "optimizer": OptimizerConfig(lr=1e-2),
            "evaluate_every": 4,
            "evaluation_batches": 2,
            "samples": 2,
            "save_every": 4,
            "log_every": 3,
            "run_name": "run",
            "runs": runs,
            "threads": 1,
            "device": "cpu",
        }
        return TrainerConfig(**{**values, **fields})

    return make


@pytest.fixture
def small(small_in: Callable[..., TrainerConfig], tmp_path: Path) -> Callable[..., TrainerConfig]:
    """Makes such configurations in a folder of the test's own."""
    return partial(small_in, tmp_path)


class Disk:
    """Counts what is done to files while `before` is set, and calls that with each one's number."""

    def __init__(self) -> None:
        self.operations: list[str] = []
        self.before: Callable[[int], None] | None = None

    def count(self, name: str) -> None:
        if self.before is None:
            return
        self.operations.append(name)
        before, self.before = self.before, None  # what it does itself does not count
        try:
            before(len(self.operations) - 1)
        finally:
            self.before = before

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name != "mkdir" or not Path(arguments[0]).exists():
                self.count(name)
            return function(*arguments, **options)

        return call

    @contextmanager
    def watched(self, before: Callable[[int], None] = lambda number: None) -> Iterator[None]:
        """Counts anew while this lasts."""
        self.operations.clear()
        self.before = before
        try:
            yield
        finally:
            self.before = None

    def failing_at(self, number: int) -> AbstractContextManager[None]:
        """While this lasts, operation `number` is refused, as on a full disk."""

        def refuse(now: int) -> None:
            if now == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return self.watched(refuse)


class CountedFile:
    """A file open for writing whose writes are counted."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> Any:
        self._disk.count("write")
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> CountedFile:
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Watches every open for writing, write, flush to the disk, rename and new directory."""
    made = Disk()
    real_open = io.open

    def open_counted(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "r" in mode and "+" not in mode:
            return real_open(file, mode, *arguments, **options)
        made.count("open")
        return CountedFile(real_open(file, mode, *arguments, **options), made)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", open_counted)
        for name in ("fsync", "replace", "rename", "mkdir"):
            patch.setattr(os, name, made.counted(name, getattr(os, name)))
        yield made
