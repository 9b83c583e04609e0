"""What the files of a run folder say about how it went: records, samples, sessions, best weights.

Reads, and writes nothing; asks neither for torch nor for a configuration of this version, so that
runs of older ones can be looked at. What is made of it is the business of `report` and `compare`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Self

from filelock import FileLock, Timeout

from stepwell.config import read_json, read_yaml
from stepwell.errors import CheckpointError, ConfigError, DataError, FormatError
from stepwell.storage.sealed import MANIFEST, read_manifest
from stepwell.train.run_folder import LOCK

RUN_FILE: Final = "run.yaml"
RECORDS: Final = "metrics.jsonl"
DEPTH: Final = "/depth_"
SINCE_LOWEST: Final = "since_lowest"  # evaluations; in the records of runs that have patience

Record = Mapping[str, Any]
State = Literal["finished", "running", "stopped", "stopped early"]


@dataclass(frozen=True)
class Samples:
    """What the model said to some validation examples after `step` steps, and what was expected."""

    step: int
    rows: Sequence[Mapping[str, str]]


@dataclass(frozen=True, eq=False)
class History:
    """A run as its folder tells it. `best_step` and `best` are None and empty before any weights.

    records: as in metrics.jsonl, in order. sessions: what environment.json says of each.
    """

    directory: Path
    config: Mapping[str, Any]
    records: Sequence[Record]
    sessions: Sequence[Mapping[str, Any]]
    best_step: int | None
    best: Mapping[str, float]

    @classmethod
    def read(cls, directory: str | Path) -> Self:
        """The history in a run folder, as far as there is one yet.

        Raises ConfigError where it is no run folder, DataError where its records are damaged.
        """
        directory = Path(directory)
        if not (directory / RUN_FILE).is_file():
            raise ConfigError(
                f"{directory} is no run folder: it holds no {RUN_FILE}.",
                fix="give the folder of a run; `stepwell runs` lists them.",
            )
        step, best = _best(directory)
        return cls(
            directory=directory,
            config=_mapping(read_yaml(directory / RUN_FILE)),
            records=read_records(directory),
            sessions=_sessions(directory),
            best_step=step,
            best=best,
        )

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.directory.resolve().name

    @property
    def task(self) -> str:
        """The name of what is learnt."""
        return str(_mapping(self.config.get("task")).get("name", ""))

    @property
    def step(self) -> int:
        """The last step that a record speaks of."""
        return max((int(record["step"]) for record in self.records), default=0)

    @property
    def steps(self) -> int | None:
        """How many steps the run was to take; None where its configuration does not say."""
        return self.config.get("steps")

    @property
    def state(self) -> State:
        """Whether the run is at its end, is going on now, or was stopped, and then how."""
        if is_locked(self.directory):
            return "running"
        if self.steps is not None and self.step >= self.steps:
            return "finished"
        patience = self.config.get("patience") or 0
        return "stopped early" if 0 < patience <= self._since_lowest else "stopped"

    @property
    def _since_lowest(self) -> float:
        return last(self.validation, SINCE_LOWEST) or 0

    @property
    def changed(self) -> datetime:
        """When the run last wrote a record, in local time; before that, when it was begun."""
        files = (self.directory / RECORDS, self.directory / RUN_FILE)
        newest = next(path for path in files if path.exists())
        return datetime.fromtimestamp(newest.stat().st_mtime).astimezone()

    @cached_property
    def training(self) -> list[Record]:
        """The records of training."""
        return [record for record in self.records if record.get("split") == "train"]

    @cached_property
    def validation(self) -> list[Record]:
        """The records of evaluations."""
        return [record for record in self.records if record.get("split") == "validation"]

    @property
    def seconds(self) -> float | None:
        """How long the run has taken up to its last record; None where none says so."""
        return last(self.training, "seconds")

    @property
    def tokens_per_s(self) -> float | None:
        """The median of the records' tokens a second; None where there are none."""
        rates = sorted(value for value in column(self.training, "tokens_per_s")[1] if value > 0)
        return rates[len(rates) // 2] if rates else None

    def samples(self) -> Samples | None:
        """The newest samples, None where there are none."""
        files = sorted(self.directory.glob("samples/step-*.jsonl"))
        if not files:
            return None
        step = int(files[-1].stem.removeprefix("step-"))
        return Samples(step, [dict(row) for row in _lines(files[-1])])


def is_locked(directory: Path) -> bool:
    """Whether a process trains in this folder now. Where nobody may ask, none is seen."""
    path = directory / LOCK
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def read_records(directory: Path) -> list[Record]:
    """The records of a run's metrics.jsonl, in order; None stands for what was not finite.

    A last line that is being written does not count. Raises DataError where another is damaged.
    """
    path = directory / RECORDS
    return list(_lines(path)) if path.exists() else []


# -- columns of records --------------------------------------------------------------------------


def column(records: Iterable[Record], name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the records that hold `name`; NaN where the value was not finite."""
    steps, values = [], []
    for record in records:
        if name in record:
            steps.append(int(record["step"]))
            values.append(math.nan if record[name] is None else float(record[name]))
    return steps, values


def last(records: Sequence[Record], name: str) -> float | None:
    """The newest finite value of a name, None where there is none."""
    found = [value for value in column(records, name)[1] if math.isfinite(value)]
    return found[-1] if found else None


def names(records: Iterable[Record]) -> list[str]:
    """The names of the values in some records, in the order in which they first came."""
    return [
        name
        for name in dict.fromkeys(key for record in records for key in record)
        if name not in ("step", "split")
    ]


def by_depth(metrics: Mapping[str, float], name: str) -> dict[int, float]:
    """The values of a metric by depth, in the order of depth."""
    begin = re.escape(name + DEPTH)
    found = {
        int(match[1]): value
        for key, value in metrics.items()
        if (match := re.fullmatch(rf"{begin}(\d+)", key))
    }
    return dict(sorted(found.items()))


# -- files ---------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterable[Record]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                raise DataError(
                    f"{path}, line {number}: not valid JSON.", fix="remove the line."
                ) from None


def _best(directory: Path) -> tuple[int | None, dict[str, float]]:
    """Step and metrics of the weights in the folder."""
    if not (directory / MANIFEST).exists():
        return None, {}
    try:
        manifest = read_manifest(directory)
    except (CheckpointError, FormatError):  # what the list of runs shows must not depend on it
        return None, {}
    metrics = _mapping(manifest.get("metrics"))
    plain = {name: math.nan if value is None else value for name, value in metrics.items()}
    return manifest.get("step"), plain


def _sessions(directory: Path) -> list[Mapping[str, Any]]:
    path = directory / "environment.json"
    described = _mapping(read_json(path)) if path.exists() else {}
    sessions = described.get("sessions")
    return [_mapping(session) for session in sessions] if isinstance(sessions, list) else []


def _mapping(values: Any) -> dict[str, Any]:
    return dict(values) if isinstance(values, Mapping) else {}
