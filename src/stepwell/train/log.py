"""What a run writes down as it goes: metrics.jsonl, TensorBoard events, calls to a progress bar.

Owns the form of a record and the offset up to which records are committed. Knows no model; what is
shown on a terminal is somebody else's `Progress`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from torch import Tensor, stack

from stepwell.errors import CheckpointError
from stepwell.storage.sealed import disk

TIME_FIELDS: Final = ("seconds", "tokens_per_s")
"""What differs between two runs of one configuration: all else in metrics.jsonl is the same."""


class Progress(Protocol):
    """Something that shows how far a run is."""

    def start(self, total: int, description: str) -> None:
        """A run of `total` steps begins, or goes on."""

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """`step` steps are done; `values` holds the last record: loss, lr, tokens_per_s, ..."""

    def finish(self) -> None:
        """The run has ended, one way or the other."""


class Silent:
    """A `Progress` that shows nothing."""

    def start(self, total: int, description: str) -> None:
        """Nothing."""

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class Window:
    """The losses of the steps since the last record, left on their device until asked for."""

    def __init__(self, losses: list[float] | None = None) -> None:
        self._read = losses or []
        self._waiting: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Takes the loss of one more step, a scalar without a graph."""
        self._waiting.append(loss)

    def losses(self) -> list[float]:
        """All losses in order, NaN where a step was refused. Waits for the device."""
        if self._waiting:
            self._read += stack(self._waiting).tolist()
            self._waiting = []
        return list(self._read)

    def clear(self) -> None:
        """Begins a new window."""
        self._read, self._waiting = [], []


class Meter:
    """Seconds of a run and tokens a second since the last reading, by a clock in seconds."""

    def __init__(
        self, seconds: float = 0.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self._before = seconds
        self._begun = self._since = clock()
        self._tokens = 0

    def add(self, num_tokens: int) -> None:
        """Counts the tokens of a step."""
        self._tokens += num_tokens

    @property
    def seconds(self) -> float:
        """How long the run has taken, earlier sessions included."""
        return self._before + self._clock() - self._begun

    def rate(self) -> float:
        """Tokens a second since the last call of `rate` or `restart`."""
        rate = self._tokens / max(self._clock() - self._since, 1e-9)
        self.restart()
        return rate

    def restart(self) -> None:
        """Leaves out what happened since the last reading: evaluation, saving."""
        self._since, self._tokens = self._clock(), 0


class MetricsLog:
    """Records appended to metrics.jsonl and sent to TensorBoard.

    One line each: {"step": 20, "split": "train", "loss": 1.25, ...}, null for what is not finite.
    """

    def __init__(self, directory: Path, *, step: int, committed_bytes: int, digits: int) -> None:
        """Goes on after `committed_bytes`, which were written up to `step`; the rest is cut off."""
        from tensorboardX import SummaryWriter  # half a second, and only training needs it

        self._path = path = directory / "metrics.jsonl"
        self._digits = digits
        with disk(path):
            path.touch()
            size = path.stat().st_size
        if size < committed_bytes:
            raise CheckpointError(
                f"{path} has {size} bytes, the checkpoint of step {step} was saved when there were"
                f" {committed_bytes}.",
                fix="put the file back, or train anew with fresh=True.",
            )
        with disk(path):
            self._file = path.open("r+b", buffering=0)
            self._file.truncate(committed_bytes)
            self._file.seek(committed_bytes)
            self._events = SummaryWriter(
                str(directory), purge_step=step + 1, filename_suffix=f".{step}"
            )

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds a record."""
        shown = {name: rounded(value, self._digits) for name, value in values.items()}
        line = json.dumps({"step": step, "split": split, **shown}, allow_nan=False) + "\n"
        rest = line.encode()
        with disk(self._path):
            while rest:  # an unbuffered file may take a part
                rest = rest[self._file.write(rest) :]
        for name, value in shown.items():
            if value is not None:
                self._events.add_scalar(f"{split}/{name}", value, step)

    def commit(self) -> int:
        """Puts all records on the disk; returns the length of metrics.jsonl in bytes."""
        with disk(self._path):
            os.fsync(self._file.fileno())
            self._events.flush()
        return self._file.tell()

    def close(self) -> None:
        """Ends the files."""
        with disk(self._path):
            self._file.close()
            self._events.close()


def rounded(value: float, digits: int) -> float | int | None:
    """`value` with so many significant digits (0: all of them); None where it is not finite."""
    if isinstance(value, int):
        return value
    if not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}") if digits else float(value)
