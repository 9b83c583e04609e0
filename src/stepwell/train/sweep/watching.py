"""Who is told how far a sweep is, and the ways from a worker to there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from stepwell.train.log import Progress
from stepwell.train.sweep.folder import SweepFolder, Trial
from stepwell.train.sweep.page import write_sweep
from stepwell.train.sweep.result import SweepResult


class SweepProgress(Protocol):
    """Something that shows how far a sweep is."""

    def start(self, folder: SweepFolder, workers: int) -> None:
        """The sweep in this folder begins, or goes on."""

    def update(self, worker: int, trial: Trial, step: int, steps: int, loss: float | None) -> None:
        """A worker has come to `step` of `steps` of a trial."""

    def ended(self, worker: int, trial: Trial) -> None:
        """A trial has an outcome."""

    def replaced(self, worker: int) -> None:
        """A worker was killed, and another has taken its place."""

    def finish(self) -> None:
        """The sweep has ended, one way or the other."""


class Unwatched:
    """A `SweepProgress` that shows nothing."""

    def start(self, folder: SweepFolder, workers: int) -> None:
        """Nothing."""

    def update(self, worker: int, trial: Trial, step: int, steps: int, loss: float | None) -> None:
        """Nothing."""

    def ended(self, worker: int, trial: Trial) -> None:
        """Nothing."""

    def replaced(self, worker: int) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class Drawing:
    """A `SweepProgress` that passes everything on, and draws the page after each trial."""

    def __init__(self, folder: SweepFolder, progress: SweepProgress) -> None:
        self._folder, self._progress = folder, progress
        self.start, self.update = progress.start, progress.update
        self.replaced, self.finish = progress.replaced, progress.finish

    def ended(self, worker: int, trial: Trial) -> None:
        """A trial has an outcome, and the page shows it."""
        self._progress.ended(worker, trial)
        write_sweep(SweepResult.read(self._folder.directory), pictures=False)


class Alone:
    """The watcher of a single worker, in the caller's own process."""

    def __init__(self, progress: SweepProgress) -> None:
        self._progress = progress

    def progress(self, trial: Trial) -> Progress:
        """What passes a trial's steps on."""
        return Steps(trial, self._progress)

    def ended(self, trial: Trial) -> None:
        """Passes it on."""
        self._progress.ended(0, trial)


class Steps:
    """The `Progress` of one trial, passed on to that of the sweep."""

    def __init__(self, trial: Trial, progress: SweepProgress) -> None:
        self._trial, self._progress = trial, progress
        self._total = 0

    def start(self, total: int, description: str) -> None:  # noqa: ARG002
        """The trial has so many steps."""
        self._total = total
        self.update(0, {})

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Passes it on."""
        self._progress.update(0, self._trial, step, self._total, values.get("loss"))

    def finish(self) -> None:
        """Nothing: the trial's outcome comes by itself."""
