"""What came of a sweep: its trials in the order of a metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from stepwell.config import write_json
from stepwell.errors import ConfigError, suggest
from stepwell.report import Column, Table
from stepwell.storage.sealed import FORMAT_VERSION
from stepwell.train.compare import best_of
from stepwell.train.report_charts import is_share, plain
from stepwell.train.sweep.folder import Plan, SweepFolder, Trial


@dataclass(frozen=True)
class SweepResult:
    """A sweep and its trials; `plan` says by which metric they are compared."""

    directory: Path
    plan: Plan
    trials: Sequence[Trial]

    @classmethod
    def read(cls, directory: str | Path, *, metric: str | None = None) -> Self:
        """The sweep in a folder, by its own metric or another one.

        Raises ConfigError where it is no sweep, or no finished trial has the metric.
        """
        folder = SweepFolder(Path(directory))
        plan = folder.plan()
        if metric is not None and metric != plan.metric:
            plan = plan.changed(metric=metric, goal=best_of(metric))
        result = cls(folder.directory, plan, folder.trials())
        result.check_metric()
        return result

    @property
    def finished(self) -> list[Trial]:
        """The trials that were trained to their end, the best first."""
        done = [trial for trial in self.trials if trial.outcome == "finished"]
        sign = -1.0 if self.plan.goal == "max" else 1.0

        def place(trial: Trial) -> float:
            value = sign * trial.metric(self.plan.metric)
            return math.inf if math.isnan(value) else value

        return sorted(done, key=place)

    @property
    def failed(self) -> list[Trial]:
        """The trials whose values cannot be trained."""
        return [trial for trial in self.trials if trial.outcome == "failed"]

    @property
    def open(self) -> list[Trial]:
        """The trials that have no outcome yet."""
        return [trial for trial in self.trials if not trial.outcome]

    @property
    def best(self) -> Trial | None:
        """The best trial by the metric, None where there is none yet."""
        first = self.finished[:1]
        return first[0] if first and math.isfinite(first[0].metric(self.plan.metric)) else None

    def check_metric(self) -> None:
        """Nothing; raises ConfigError where no finished trial has the metric."""
        known = {name for trial in self.finished for name in trial.metrics}
        if known and self.plan.metric not in known:
            near = suggest(self.plan.metric, known)
            raise ConfigError(f"No trial has a metric {self.plan.metric!r}. {near}")

    def table(self) -> Table:
        """Every trial, the best first, then what failed and why, then what is open."""
        metrics = list(dict.fromkeys((self.plan.metric, "loss", "accuracy", "answer_accuracy")))
        metrics = [name for name in metrics if any(name in each.metrics for each in self.finished)]
        heads = [
            Column(
                plain(name),
                percent=is_share(name),
                best=self.plan.goal if name == self.plan.metric else best_of(name),
            )
            for name in metrics
        ]
        rows = [
            (
                *(str(trial.values.get(name, "")) for name in self.plan.axes),
                *(trial.metrics.get(name) for name in metrics),
                trial.step,
                None if trial.seconds is None else round(trial.seconds),
                trial.reason or ("" if trial.outcome else "open"),
            )
            for trial in (*self.finished, *self.failed, *self.open)
        ]
        return Table((*self.plan.axes, *heads, "best step", Column("time", "s"), ""), rows)

    def plain(self) -> dict[str, Any]:
        """Its values as plain ones, the best trial first."""
        trials = (*self.finished, *self.failed, *self.open)
        return {
            "format_version": FORMAT_VERSION,
            "directory": str(self.directory),
            "metric": self.plan.metric,
            "goal": self.plan.goal,
            "axes": {name: axis.plain for name, axis in self.plan.axes.items()},
            "best": self.best.name if self.best else None,
            "trials": [
                {**trial.plain(), "directory": str(self.directory / trial.name)} for trial in trials
            ],
        }

    def write(self) -> None:
        """Puts sweep.json into the sweep's folder."""
        write_json(self.directory / "sweep.json", self.plain())
