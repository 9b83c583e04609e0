"""The folder in which the documentation is executed: small models under the names that it uses.

They have the shapes of those that `stepwell demo` and the tutorial make, and are trained on fewer
facts for fewer steps.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stepwell.cascade.build import trainer_config
from stepwell.cascade.costs import measure_costs
from stepwell.cascade.fitted import Fitted
from stepwell.cascade.ladder import LadderConfig, PolicyConfig, fitted_directory
from stepwell.cascade.stages.load import load_stages
from stepwell.evals.facts_ladder import ask_all, facts_ladder
from stepwell.model.presets import presets
from stepwell.tasks import Corpus, Facts, Task, VariableRenaming
from stepwell.train.config import TrainerConfig
from stepwell.train.trainer import Trainer

LADDER = Path("runs/demo/ladder.yaml")
FACTS = Facts(facts=192)  # a third of them fills the batch of 64 at which costs are measured
STEPS = {"small": 60, "middle": 60, "large": 50}
BRIEF = {"batch_size": 64, "evaluation_batches": 1, "save_every": 0}


def brief_ladder() -> LadderConfig:
    """The demonstration's ladder, its stages trained for a few seconds altogether."""
    ladder = facts_ladder()
    stages = []
    for stage in ladder.stages:
        brief = {**BRIEF, "task": FACTS.plain(), "steps": STEPS[stage.name]}
        stages.append(stage.changed(train={**(stage.train or {}), **brief}))
    return ladder.changed(stages=stages, policy=PolicyConfig(lam=1.0))


def prepare(root: Path) -> None:
    """Trains, measures and fits what the pages speak of, under `root`."""
    config, file = brief_ladder(), root / LADDER
    config.write(file)
    for stage in config.stages:
        Trainer(trainer_config(stage, file.parent)).train()
    stages = load_stages(config, file.parent)
    data = ask_all(FACTS, stages, config)
    prompts = [example.prompt for example in data.examples_of("calibration")]
    costs = measure_costs(stages, prompts, sampling=config.sampling)
    predictor, calibration = data.split("predictor"), data.split("calibration")
    fitted = Fitted.fit(config, stages, predictor, calibration, costs)
    fitted.save(fitted_directory(file))
    with contextlib.chdir(root):
        train("rename", VariableRenaming(chains=2, renames=12))
        Path("story.txt").write_text("Once there was a well with stairs, its water deep. " * 50)
        train("story", Corpus(path="story.txt", window=32))
        Path("numbers.txt").write_text("\n".join(f"{n} times 7 is {7 * n}." for n in range(200)))
        train("base", Corpus(path="numbers.txt", tokens="byte", window=32))
        gather()


def train(name: str, task: Task) -> None:
    """Trains a model of 3 layers with 4 heads each for some steps."""
    model = presets["tiny"].resized(num_layers=3, num_heads=4)
    fields = {**BRIEF, "steps": 20, "batch_size": 16, "run_name": name, "runs": Path("runs")}
    Trainer(TrainerConfig(model=model, task=task, **fields)).train()


def gather() -> None:
    """Copies models to the other names that the examples of the command line have for them."""
    for place in ("runs/facts", "experiments/facts"):
        shutil.copytree("runs/facts-large", place)
    shutil.copy("runs/facts/config.json", "config.json")
    torch.save(load_file("runs/facts/model.safetensors"), "weights.pt")


def prune(root: Path) -> None:
    """Removes the checkpoints: no page goes on with one of these runs."""
    for checkpoint in root.glob("*/*/checkpoint-*"):
        shutil.rmtree(checkpoint)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/facts-small, -middle, -large, runs/demo and more."""
    root = tmp_path_factory.mktemp("documentation")
    prepare(root)
    prune(root)
    return root


@pytest.fixture
def workplace(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of that folder, and the current directory of the test."""
    place = tmp_path / "work"
    shutil.copytree(prepared, place)
    monkeypatch.chdir(place)
    monkeypatch.delenv("STEPWELL_RUNS", raising=False)
    yield place
    shutil.rmtree(place)
