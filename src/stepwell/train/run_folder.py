"""The run folder: who may write in it, whose run it is, and the best weights in it.

    run.yaml            the resolved configuration
    environment.json    data, and the versions, machine and git state of each session
    source/             the files that define a trainer or task of the user's own
    model.safetensors config.json tokenizer.json generation_config.json manifest.json
                        the best weights so far: a Hugging Face model directory
    adapter/            the same as changes of the base, where LoRA learnt them

Owns these files and the lock. Checkpoints and records have their own modules.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from filelock import FileLock, Timeout

from stepwell.config import (
    Config,
    read_json,
    read_yaml,
    write_atomically,
    write_json,
    write_yaml,
)
from stepwell.errors import CheckpointError, ConfigError, TrainingError
from stepwell.storage.sealed import FORMAT_VERSION, commit, disk, read_manifest, refuse_newer
from stepwell.train.config import TrainerConfig, arithmetic_of, differences

ADAPTER: Final = "adapter"  # what LoRA has learnt, as PEFT loads it
LOCK: Final = ".lock"
PUBLISHED: Final = re.compile(
    r"model.*\.safetensors(\.index\.json)?"
    r"|(config|generation_config|tokenizer|tokenizer_config|manifest)\.json"
)
REMNANT: Final = re.compile(
    r"\.(checkpoint-\d+|adapter|run\.yaml|environment\.json|report\.html|\w+\.png)\..+"
)
SHOWN: Final = 6  # differences in one message


@dataclass(frozen=True)
class Run:
    """A run folder with weights in it; `metrics` are those of the weights, taken at `step`."""

    directory: Path
    step: int
    metrics: Mapping[str, float]

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """The run in a folder. Raises CheckpointError where no weights have been published yet."""
        directory = Path(directory)
        manifest = read_manifest(directory)
        metrics = {
            name: float("nan") if value is None else value
            for name, value in manifest.get("metrics", {}).items()
        }
        return cls(directory, manifest.get("step", 0), metrics)


class Description(Config):
    """environment.json: fingerprints of the data and of the model that the run began with, and the
    environment of each session."""

    format_version: int = FORMAT_VERSION
    data: str
    base: str | None = None
    sessions: tuple[dict[str, Any], ...] = ()


class RunFolder:
    """The files of one run under `directory`, which need not exist yet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._environment = directory / "environment.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While this lasts no other process trains here. Raises TrainingError where one does."""
        with disk(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(self.directory / LOCK).acquire(timeout=0)
        except Timeout:
            raise TrainingError(
                f"Another process is training in {self.directory}.",
                fix="wait for it, or give another run name.",
            ) from None
        with held:
            yield

    def clear(self) -> None:
        """Removes all files of the run. Raises ConfigError where the folder is no run folder."""
        children = [path for path in self.directory.iterdir() if path.name != LOCK]
        if children and not (self.directory / "run.yaml").exists():
            raise ConfigError(
                f"{self.directory} is not empty and holds no run.yaml: it is no run folder.",
                fix="give another run name.",
            )
        # run.yaml goes last: what a kill leaves is still known as a run folder
        for path in sorted(children, key=lambda path: path.name == "run.yaml"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def sweep(self) -> None:
        """Removes the hidden files and directories that a killed process left."""
        for path in self.directory.glob(".*"):
            if REMNANT.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    # -- whose run it is -------------------------------------------------------------------

    def claim(self, config: TrainerConfig, data: str, base: str | None = None) -> None:
        """Makes this the folder of a configuration, or checks it.

        data, base: fingerprints of what is learnt and of the model that the run begins with.
        Raises ConfigError that shows the difference where it is the folder of another one.
        """
        path = self.directory / "run.yaml"
        if path.exists():
            self._check(config, read_yaml(path), {"data": data, "base": base})
        else:
            with disk(self.directory):
                write_json(self._environment, Description(data=data, base=base).plain())
                write_yaml(path, config.plain())

    def _check(
        self, config: TrainerConfig, stored: Mapping[str, Any], content: Mapping[str, str | None]
    ) -> None:
        known = self._description()
        changed = differences(_arithmetic(stored), config.arithmetic())
        if not changed and known.data != content["data"]:
            changed = [_change("data (code of the task)", known.data, content["data"])]
        if known.base != content["base"]:
            changed.append(_change("init_from (its weights)", known.base, content["base"]))
        if changed:
            more = f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            raise ConfigError(
                f"{self.directory} is the run of another configuration: "
                + "; ".join(changed[:SHOWN])
                + more
                + ".",
                fix="give another run name, or fresh=True (--fresh) to train anew in this folder.",
            )

    def _description(self) -> Description:
        path = self._environment
        try:
            values = read_json(path)
            refuse_newer(values["format_version"], path)
            return Description.parse(values, where=str(path))
        except (ConfigError, KeyError, TypeError):
            raise CheckpointError(
                f"{path} is missing or damaged.", fix="train anew with fresh=True."
            ) from None

    def begin_session(self, environment: Mapping[str, Any], sources: Mapping[str, Path]) -> None:
        """Notes where this session of the run takes place and keeps its source files, by name."""
        described = self._description()
        sessions = (*described.sessions, dict(environment))
        with disk(self.directory):
            write_json(self._environment, described.changed(sessions=sessions).plain())
            for name, path in sources.items():
                write_atomically(self.directory / "source" / name, path.read_bytes())

    # -- the best weights ------------------------------------------------------------------

    def published_step(self) -> int | None:
        """The step whose weights are in this folder, None where there are none."""
        try:
            return Run.load(self.directory).step
        except CheckpointError:
            return None

    def publish(
        self, fill: Callable[[Path], None], step: int, metrics: Mapping[str, float | None]
    ) -> None:
        """Puts the model directory that `fill` writes into this folder, in place of the last one.

        Where it fails the last one stays; a kill between two renames leaves no manifest, never one
        that does not fit.
        """
        commit(
            self.directory,
            fill,
            belongs=lambda name: bool(PUBLISHED.fullmatch(name)),
            step=step,
            metrics=dict(metrics),
        )


def _change(what: str, *fingerprints: str | None) -> str:
    """`what: old -> new`, by the beginnings of two fingerprints."""
    return f"{what}: " + " -> ".join(each[:12] if each else "none" for each in fingerprints)


def _arithmetic(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed run must not change, from run.yaml; fields it does not know yet by default."""
    try:
        return TrainerConfig.parse(stored).arithmetic()
    except ConfigError:  # written by a version with other fields: shown as it is
        return arithmetic_of(stored)
