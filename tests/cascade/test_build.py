"""What a ladder file says of training becomes the configuration of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepwell.cascade.build import trainer_config
from stepwell.cascade.ladder import StageConfig
from stepwell.errors import CascadeError, ConfigError
from stepwell.evals.facts_ladder import facts_ladder
from stepwell.model.presets import presets
from stepwell.tasks.facts import Facts


def stage(**train: Any) -> StageConfig:
    return StageConfig(name="small", model="../facts-small", train=train)


def test_a_stage_becomes_a_run_where_its_model_is_expected(tmp_path: Path) -> None:
    recipe = stage(
        task={"name": "facts", "facts": 64}, preset="facts-small", steps=9, optimizer={"lr": 0.01}
    )
    config = trainer_config(recipe, tmp_path / "demo")
    assert config.directory == tmp_path / "facts-small"
    assert config.task == Facts(facts=64)
    assert config.model == presets["facts-small"]
    assert (config.steps, config.optimizer.lr) == (9, 0.01)
    assert trainer_config(recipe, str(tmp_path / "demo")) == config
    shape = presets["tiny"].resized(width=16).plain()
    given = stage(task="facts", model=shape)
    assert trainer_config(given, tmp_path).model == presets["tiny"].resized(width=16)


def test_no_model_and_no_way_to_make_it_is_an_error(tmp_path: Path) -> None:
    missing = StageConfig(name="small", model="nowhere")
    with pytest.raises(CascadeError, match=r"Stage 'small' has no `train:`.*nowhere") as caught:
        trainer_config(missing, tmp_path)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"task": "fact", "preset": "tiny"}, "fact"),
        ({"task": "facts", "preset": "facts-smal"}, "facts-smal"),
        ({"task": "facts", "preset": "tiny", "step": 3}, "'step'.* 'steps'"),
        ({"preset": "tiny"}, "'task'"),
        ({"task": "facts", "preset": "tiny", "model": "tiny"}, "'preset'"),
        ({"task": "facts", "preset": "tiny", "run_name": "mine"}, "run_name is said by `model:`"),
        ({"task": "facts", "preset": "tiny", "runs": "there"}, "runs is said by `model:`"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named_with_its_stage(
    tmp_path: Path, train: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        trainer_config(stage(**train), tmp_path)
    assert "stage small, train" in caught.value.problem


def test_the_demonstrations_ladder_can_be_built(tmp_path: Path) -> None:
    ladder = facts_ladder()
    configs = [trainer_config(recipe, tmp_path / "demo") for recipe in ladder.stages]
    sizes = [config.model.width * config.model.num_layers for config in configs]
    assert sizes == sorted(set(sizes))
    assert {config.task for config in configs} == {Facts()}
    assert {config.directory.parent for config in configs} == {tmp_path}
