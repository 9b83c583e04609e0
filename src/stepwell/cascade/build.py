"""Making a ladder's stages: what its file says how to train is trained, or taken up where it is done."""

from __future__ import annotations

from pathlib import Path

from stepwell.cascade.ladder import LadderConfig, StageConfig
from stepwell.errors import CascadeError
from stepwell.train.config import TrainerConfig
from stepwell.train.log import Progress
from stepwell.train.run_folder import Run
from stepwell.train.trainer import Trainer


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


def is_trained(stage: StageConfig, root: Path) -> bool:
    """Whether a stage's run is finished, as its `train:` has it."""
    directory = root / stage.model
    if not (directory / "manifest.json").is_file():
        return False
    return Run.load(directory).is_finished(trainer_config(stage, root))


def train_stages(
    config: LadderConfig, root: Path, *, fresh: bool = False, progress: Progress | None = None
) -> list[Run]:
    """The runs of all stages, in order; finished ones are not run again unless `fresh`."""
    return [
        Trainer(trainer_config(stage, root)).train(fresh=fresh, progress=progress)
        for stage in config.stages
    ]
