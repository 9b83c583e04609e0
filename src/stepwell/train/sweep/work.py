"""What one worker does: it takes a trial, trains it, writes down what came of it, takes the next.

Knows nothing of processes: `worker` runs this in one of its own, `run` in the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Protocol

from stepwell.errors import DataError, ShapeError, StepwellError, TrainingError, UsageError
from stepwell.train.history import History
from stepwell.train.log import Progress
from stepwell.train.sweep.axes import configured
from stepwell.train.sweep.folder import Claim, Plan, SweepFolder, Trial
from stepwell.train.sweep.search import Search, no_more
from stepwell.train.trainer import Trainer

FAULTS: Final = (
    UsageError,
    TrainingError,
    DataError,
    ShapeError,
    RuntimeError,  # torch's, when memory runs out or shapes do not fit
    ValueError,
    ArithmeticError,
    MemoryError,
)
"""What is the fault of a trial's values; all else, such as a full disk, ends the worker."""

LONGEST_REASON: Final = 300


class Watcher(Protocol):
    """Something that is told what a worker does."""

    def progress(self, trial: Trial) -> Progress:
        """What the trial that begins now reports its steps to."""

    def ended(self, trial: Trial) -> None:
        """The trial has an outcome."""


def work(
    folder: SweepFolder,
    watcher: Watcher,
    stop_requested: Callable[[], bool],
    trainer: type[Trainer] = Trainer,
    **place: Any,
) -> None:
    """Runs trials until none is left to take. `place` are the threads and device to run them on.

    Raises KeyboardInterrupt once a stop is requested and the trial has been saved.
    """
    plan = folder.plan()
    propose = Search(folder.directory, plan).propose if plan.search else no_more
    while not stop_requested():
        claim = folder.take(propose)
        if claim is None:
            return
        watcher.ended(train(folder, plan, claim, watcher, stop_requested, trainer, **place))
    raise KeyboardInterrupt


def train(
    folder: SweepFolder,
    plan: Plan,
    claim: Claim,
    watcher: Watcher,
    stop_requested: Callable[[], bool],
    trainer: type[Trainer],
    **place: Any,
) -> Trial:
    """The trial with what came of it. It goes on where an earlier session of it ended."""
    trial = claim.trial
    try:
        config = configured(plan.config, trial.values)
        config = config.changed(runs=folder.directory, run_name=trial.name, **place)
        run = trainer(config).train(progress=watcher.progress(trial), stop_requested=stop_requested)
    except FAULTS as error:
        return folder.end(claim, outcome="failed", reason=reason_of(error))
    except BaseException:  # stopped, or not this trial's fault: it is open again
        folder.end(claim, stopped=trial.stopped + 1)
        raise
    metrics = {name: value if math.isfinite(value) else None for name, value in run.metrics.items()}
    seconds = History.read(run.directory).seconds
    return folder.end(claim, outcome="finished", step=run.step, metrics=metrics, seconds=seconds)


def reason_of(error: Exception) -> str:
    """Why a trial failed, on one line."""
    if isinstance(error, StepwellError):
        return error.problem
    return " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]
