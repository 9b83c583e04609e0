from __future__ import annotations

from pathlib import Path

import pytest

from stepwell.config import read_yaml, write_yaml
from stepwell.errors import ConfigError
from stepwell.model.presets import presets
from stepwell.tasks.facts import Facts
from stepwell.train.config import (
    FREE_ON_RESUME,
    OptimizerConfig,
    TrainerConfig,
    differences,
)


def test_names_stand_for_presets_and_tasks():
    config = TrainerConfig(model="tiny", task="facts")
    assert config.model == presets["tiny"]
    assert config.task == Facts()


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="'tiny'"):
        TrainerConfig(model="tinny", task="facts")
    with pytest.raises(ConfigError, match="'facts'"):
        TrainerConfig(model="tiny", task="fcts")
    with pytest.raises(ConfigError, match="'batch_size'"):
        TrainerConfig(model="tiny", task="facts", batchsize=3)


def test_a_configuration_comes_back_from_yaml_as_it_was(small, tmp_path):
    config = small(task=Facts(facts=7, seed=3), optimizer=OptimizerConfig(lr=3e-4, schedule="wsd"))
    write_yaml(tmp_path / "run.yaml", config.plain())
    assert TrainerConfig.parse(read_yaml(tmp_path / "run.yaml")) == config


def test_every_field_is_described():
    for kind in (TrainerConfig, OptimizerConfig):
        assert all(field.description for field in kind.model_fields.values())


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 0},
        {"batch_size": 4, "gradient_accumulation": 5},
        {"optimizer": {"lr": float("nan")}},
        {"optimizer": {"beta1": 1.0}},
        {"run_name": "../elsewhere"},
        {"run_name": ".hidden"},
        {"clip": -1.0},
        {"on_nan": "hope"},
    ],
)
def test_values_that_cannot_be_are_refused(small, fields):
    with pytest.raises(ConfigError):
        small(**fields)


def test_runs_lie_where_the_environment_says(monkeypatch):
    monkeypatch.delenv("STEPWELL_RUNS", raising=False)
    assert TrainerConfig(model="tiny", task="facts").runs == Path("runs")
    monkeypatch.setenv("STEPWELL_RUNS", "elsewhere")
    assert TrainerConfig(model="tiny", task="facts", run_name="a").directory == Path("elsewhere/a")


def test_a_run_without_a_name_is_named_after_what_it_computes(small):
    unnamed = small(run_name="")
    assert unnamed.directory == unnamed.changed(threads=2, keep_checkpoints=9).directory
    assert unnamed.directory != unnamed.changed(seed=1).directory
    assert unnamed.directory != unnamed.changed(task=Facts(facts=17)).directory
    assert unnamed.directory.name.startswith("facts-")


def test_only_what_is_free_on_resume_leaves_the_identity_alone(small):
    config = small()
    other = {
        "run_name": "other",
        "runs": Path("other"),
        "keep_checkpoints": 5,
        "threads": 2,
        "device": "auto",
        "init_from": Path("base"),
        "patience": 3,
    }
    assert set(other) == set(FREE_ON_RESUME)
    assert config.changed(**other).identity == config.identity
    assert config.changed(log_every=1).identity != config.identity


def test_differences_name_leaves_with_old_and_new_values():
    old = {"steps": 5, "optimizer": {"lr": 0.1, "eps": 1.0}, "gone": 1}
    new = {"steps": 5, "optimizer": {"lr": 0.2, "eps": 1.0}, "new": [2]}
    assert differences(old, new) == [
        "gone: 1 -> None",
        "new: None -> [2]",
        "optimizer.lr: 0.1 -> 0.2",
    ]
    assert differences(new, new) == []
