"""The folder of a sweep: what is swept, which trials there are, and who runs which.

    sweep.yaml          the base configuration, what is varied, the metric
    trials/0003.json    a trial: its values, how often it was begun, what came of it
    trials/0003.lock    held by the process that runs it, and by nobody once that is gone
    NAME/               the trial's run folder, as training makes it

A trial is taken under the sweep's own lock, and the lock of the trial is kept until its outcome is
written: so no trial runs twice, and the system gives back what a killed process had taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from filelock import BaseFileLock, FileLock, Timeout
from pydantic import Field

from stepwell.config import Config, read_json, read_yaml, write_json, write_yaml
from stepwell.errors import ConfigError
from stepwell.storage.sealed import FORMAT_VERSION, disk, refuse_newer
from stepwell.train.config import TrainerConfig, differences
from stepwell.train.sweep.axes import Axis, parse_axis, trial_name

SWEEP_FILE: Final = "sweep.yaml"
MOST_DEATHS: Final = 3
"""How often a trial may end its process before it counts as failed."""

Goal = Literal["min", "max"]
Propose = Callable[[Sequence["Trial"]], Mapping[str, Any] | None]


class Plan(Config):
    """What a sweep is: its base, the axes of a grid or of a search, and what counts as good."""

    base: dict[str, Any]
    grid: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, Any] = Field(default_factory=dict)
    trials: int = 0
    metric: str = "loss"
    goal: Goal = "min"
    format_version: int = FORMAT_VERSION

    @property
    def axes(self) -> dict[str, Axis]:
        """What is varied, by name."""
        return {name: parse_axis(name, given) for name, given in (self.grid or self.search).items()}

    @property
    def config(self) -> TrainerConfig:
        """The base configuration."""
        return TrainerConfig.parse(self.base)

    def fixed(self) -> dict[str, Any]:
        """What a second call must not change; a search is led by its metric, a grid is not."""
        led = {"metric": self.metric, "goal": self.goal} if self.search else {}
        return {**self.config.arithmetic(), "grid": self.grid, "search": self.search, **led}


class Trial(Config):
    """One run of a sweep. `begun` counts its sessions, `stopped` those that saved and ended."""

    number: int
    name: str
    values: dict[str, Any]
    begun: int = 0
    stopped: int = 0
    outcome: Literal["", "finished", "failed"] = ""
    reason: str = ""
    step: int | None = None
    metrics: dict[str, float | None] = Field(default_factory=dict)
    seconds: float | None = None

    def metric(self, name: str) -> float:
        """A metric of its best weights; NaN where it has none."""
        value = self.metrics.get(name)
        return math.nan if value is None else value


@dataclass(frozen=True)
class Claim:
    """A trial that is this process's own for as long as the lock is held."""

    trial: Trial
    lock: BaseFileLock


class SweepFolder:
    """The files of one sweep under `directory`, which need not exist yet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._trials = directory / "trials"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While this lasts no other process takes or adds a trial here."""
        with disk(self.directory):
            self._trials.mkdir(parents=True, exist_ok=True)
        with FileLock(self.directory / ".sweep.lock"):
            yield

    # -- what is swept -----------------------------------------------------------------------

    def plan(self) -> Plan:
        """What is swept here. Raises ConfigError where it is no sweep, FormatError if newer."""
        path = self.directory / SWEEP_FILE
        if not path.is_file():
            raise ConfigError(
                f"{self.directory} is no sweep: it holds no {SWEEP_FILE}.",
                fix="give the folder of a sweep.",
            )
        plan = Plan.parse(read_yaml(path), where=str(path))
        refuse_newer(plan.format_version, path)
        return plan

    def set_up(self, plan: Plan, grid: Sequence[Mapping[str, Any]]) -> None:
        """Makes this the folder of a sweep with the trials of its grid, or goes on with it.

        Raises ConfigError that shows the difference where it is the folder of another sweep.
        """
        with self.locked():
            if (self.directory / SWEEP_FILE).exists():
                self._check(plan)
            known = {trial.name for trial in self.trials()}
            for values in grid:
                if trial_name(values) not in known:
                    self._add(values)
            with disk(self.directory):
                write_yaml(self.directory / SWEEP_FILE, plan.plain())

    def _check(self, plan: Plan) -> None:
        changed = differences(self.plan().fixed(), plan.fixed())
        if changed:
            raise ConfigError(
                f"{self.directory} is another sweep: {'; '.join(changed)}.",
                fix="give another name, or fresh=True (--fresh) to begin anew in this folder.",
            )

    # -- trials --------------------------------------------------------------------------------

    def trials(self) -> list[Trial]:
        """All trials so far, in the order of their numbers."""
        files = sorted(self._trials.glob("*.json"))
        return [Trial.parse(read_json(path), where=str(path)) for path in files]

    def trial(self, number: int) -> Trial:
        """The trial of this number, as it is now."""
        path = self._path(number)
        return Trial.parse(read_json(path), where=str(path))

    def take(self, propose: Propose) -> Claim | None:
        """A trial that nobody runs or has run, else a new one with the values that are proposed.

        None where there is nothing left to take. It counts as begun. A trial that has ended its
        process too often is noted as failed instead.
        """
        with self.locked():
            for trial in self.trials():
                claim = None if trial.outcome else self._claim(trial.number)
                if claim is not None and not self._gave_up(claim):
                    return self._begun(claim)
            values = propose(self.trials())
            if values is None:
                return None
            claim = self._claim(self._add(values).number)
            assert claim is not None, "nobody else can know of it"
            return self._begun(claim)

    def end(self, claim: Claim, **outcome: Any) -> Trial:
        """The trial with its outcome, written down, and let go of."""
        trial = claim.trial.changed(**outcome)
        self._write(trial)
        claim.lock.release()
        return trial

    def is_running(self, trial: Trial) -> bool:
        """Whether a process holds the trial."""
        if trial.outcome:
            return False
        claim = self._claim(trial.number)
        if claim is not None:
            claim.lock.release()
        return claim is None

    def _claim(self, number: int) -> Claim | None:
        """The trial as it is now, held; None where another process holds it or it has ended."""
        lock = FileLock(self._trials / f"{number:04d}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        trial = self.trial(number)
        if trial.outcome:
            lock.release()
            return None
        return Claim(trial, lock)

    def _gave_up(self, claim: Claim) -> bool:
        trial = claim.trial
        if trial.begun - trial.stopped < MOST_DEATHS:
            return False
        self.end(
            claim,
            outcome="failed",
            reason=f"its process ended {MOST_DEATHS} times without a word; see workers.log.",
        )
        return True

    def _begun(self, claim: Claim) -> Claim:
        trial = claim.trial.changed(begun=claim.trial.begun + 1)
        self._write(trial)
        return Claim(trial, claim.lock)

    def _add(self, values: Mapping[str, Any]) -> Trial:
        number = len(list(self._trials.glob("*.json")))
        trial = Trial(number=number, name=trial_name(values), values=dict(values))
        self._write(trial)
        return trial

    def _path(self, number: int) -> Path:
        return self._trials / f"{number:04d}.json"

    def _write(self, trial: Trial) -> None:
        path = self._path(trial.number)
        with disk(path):
            write_json(path, trial.plain())
