"""The folder in which the documentation is executed: small models under the names that it uses.

They have the shapes of those that `stepwell demo` and the tutorial make, and are trained on fewer
facts for fewer steps.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stepwell.cascade.build import trainer_config
from stepwell.cascade.costs import measure_costs
from stepwell.cascade.fitted import Fitted
from stepwell.cascade.ladder import LadderConfig, PolicyConfig, fitted_directory
from stepwell.cascade.stage import LocalStage
from stepwell.evals.facts_ladder import ask_all, facts_ladder
from stepwell.model.presets import presets
from stepwell.tasks import Facts, VariableRenaming
from stepwell.train.config import TrainerConfig
from stepwell.train.trainer import Trainer

LADDER = Path("runs/demo/ladder.yaml")
FACTS = Facts(facts=192)  # a third of them fills the batch of 64 at which costs are measured
STEPS = {"small": 60, "middle": 60, "large": 40}
BRIEF = {"batch_size": 64, "evaluation_batches": 1, "save_every": 0}


def brief_ladder() -> LadderConfig:
    """The demonstration's ladder, its stages trained for a few seconds altogether."""
    ladder = facts_ladder()
    stages = [
        stage.changed(
            train={**(stage.train or {}), **BRIEF, "task": FACTS.plain(), "steps": STEPS[stage.name]}
        )
        for stage in ladder.stages
    ]
    return ladder.changed(stages=stages, policy=PolicyConfig(lam=1.0))


def prepare(root: Path) -> None:
    """Trains, measures and fits what the pages speak of, under `root`."""
    config, file = brief_ladder(), root / LADDER
    config.write(file)
    for stage in config.stages:
        Trainer(trainer_config(stage, file.parent)).train()
    stages = [LocalStage.load(stage.name, file.parent / stage.model) for stage in config.stages]
    data = ask_all(FACTS, stages, config)
    prompts = [example.prompt for example in data.examples_of("calibration")]
    costs = measure_costs(stages, prompts, sampling=config.sampling)
    predictor, calibration = data.split("predictor"), data.split("calibration")
    fitted = Fitted.fit(config, stages, predictor, calibration, costs)
    fitted.save(fitted_directory(file))
    task = VariableRenaming(chains=2, renames=12)
    Trainer(
        TrainerConfig(
            model=presets["tiny"],
            task=task,
            steps=20,
            batch_size=16,
            run_name="rename",
            runs=root / "runs",
        )
    ).train()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/facts-small, -middle, -large, runs/rename and runs/demo."""
    root = tmp_path_factory.mktemp("documentation")
    prepare(root)
    return root


@pytest.fixture
def workplace(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, and the current directory of the test."""
    place = tmp_path / "work"
    shutil.copytree(prepared, place)
    monkeypatch.chdir(place)
    monkeypatch.delenv("STEPWELL_RUNS", raising=False)
    return place
