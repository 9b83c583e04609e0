"""Making a ladder's stages: the training run that a ladder file describes for each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stepwell.cascade.ladder import LadderConfig, StageConfig
from stepwell.errors import CascadeError, ConfigError
from stepwell.train.config import TrainerConfig


def trainer_config(stage: StageConfig, root: str | Path) -> TrainerConfig:
    """The training run that makes a stage; `root` is the ladder file's directory.

    Raises CascadeError where the stage says nothing of training, ConfigError that names the stage
    where it says something wrong.
    """
    directory = stage_directory(stage, root)
    if stage.train is None:
        raise CascadeError(
            f"Stage {stage.name!r} has no `train:` that would make a model in {directory}.",
            fix="correct `model:`, or say how to train it.",
        )
    where = f"stage {stage.name}, train"
    fields = dict(stage.train)
    for name in ("run_name", "runs"):
        if name in fields:
            raise ConfigError(f"{where}: {name} is said by `model:`.", fix=f"leave out {name}.")
    if "preset" in fields and "model" not in fields:
        fields["model"] = fields.pop("preset")
    placed = {**fields, "run_name": directory.name, "runs": str(directory.parent)}
    return TrainerConfig.parse(placed, where=where)


def stage_directory(stage: StageConfig, root: str | Path) -> Path:
    """Where the model of a stage is, or will be."""
    return (Path(root) / str(stage.model)).resolve()


def build_missing(
    config: LadderConfig, root: str | Path, train: Callable[[str, TrainerConfig], object]
) -> None:
    """Give `train` the name and run of each stage that is not there, or may be unfinished.

    A model that no run of ours made is taken as it is. Raises CascadeError where one is neither
    there nor to be made.
    """
    for stage in config.stages:
        directory = stage_directory(stage, root)
        is_run, is_model = ((directory / name).exists() for name in ("run.yaml", "config.json"))
        if stage.server is None and (not is_model or (is_run and stage.train is not None)):
            train(stage.name, trainer_config(stage, root))
