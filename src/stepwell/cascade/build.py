"""Making a ladder's stages: what its file says how to train is trained, unless it is there."""

from __future__ import annotations

from pathlib import Path

from stepwell.cascade.ladder import StageConfig
from stepwell.errors import CascadeError
from stepwell.train.config import TrainerConfig


def trainer_config(stage: StageConfig, root: Path) -> TrainerConfig:
    """The training run that makes a stage; `root` is the ladder file's directory.

    Raises CascadeError where the stage says nothing of training.
    """
    if stage.train is None:
        raise CascadeError(
            f"Stage {stage.name!r} has no model in {root / stage.model} and no `train:`.",
            fix="correct `model:`, or say how to train it.",
        )
    directory = (root / stage.model).resolve()
    fields = {**stage.train, "run_name": directory.name, "runs": str(directory.parent)}
    if "preset" in fields:
        fields["model"] = fields.pop("preset")
    return TrainerConfig.parse(fields, where=f"stage {stage.name}, train")
