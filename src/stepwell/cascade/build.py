"""Making a ladder's stages: the training run that a ladder file describes for each of them."""

from __future__ import annotations

from pathlib import Path

from stepwell.cascade.ladder import StageConfig
from stepwell.errors import CascadeError, ConfigError
from stepwell.train.config import TrainerConfig


def trainer_config(stage: StageConfig, root: str | Path) -> TrainerConfig:
    """The training run that makes a stage; `root` is the ladder file's directory.

    Raises CascadeError where the stage says nothing of training, ConfigError that names the stage
    where it says something wrong.
    """
    directory = (Path(root) / stage.model).resolve()
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
