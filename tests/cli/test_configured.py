"""A file, then --set, then flags: the later counts, and shapes are derived anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepwell.cli.configured import (
    StartFlags,
    chosen_tasks,
    overlaid,
    trainer_config,
    training_flags,
)
from stepwell.config import write_yaml
from stepwell.errors import ConfigError, UsageError
from stepwell.model.presets import presets
from stepwell.tasks import TASKS, Facts
from stepwell.train.config import TrainerConfig

FLAGS = training_flags([Facts])


def configured(
    *assignments: str,
    given: dict[str, Any] | None = None,
    task: str | None = "facts",
    file: Path | None = None,
    preset: str | None = None,
):
    """The configuration that all of these come to."""
    return trainer_config(FLAGS, given or {}, StartFlags(preset, file, assignments), task=task)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A whole configuration, as a run folder keeps it."""
    config = TrainerConfig(model=presets["tiny"], task=Facts(facts=9), steps=7, batch_size=3)
    write_yaml(tmp_path / "run.yaml", config.plain())
    return tmp_path / "run.yaml"


def test_nothing_but_a_task_is_the_defaults() -> None:
    assert configured() == TrainerConfig(model="tiny", task="facts")


def test_the_later_counts(file: Path) -> None:
    assert configured(file=file).steps == 7
    assert configured("steps=8", file=file).steps == 8
    both = configured("steps=8", "batch_size=5", file=file, given={"steps": 9})
    assert (both.steps, both.batch_size, both.task.facts) == (9, 5, 9)


def test_a_file_alone_is_itself(file: Path) -> None:
    config = configured(file=file, task=None)
    assert config.plain() == TrainerConfig.parse(configured(file=file).plain()).plain()
    assert config.task == Facts(facts=9)


def test_set_and_flags_reach_nested_fields() -> None:
    config = configured("optimizer.lr=3e-4", "task.facts=5", given={"beta1": 0.5, "data_seed": 4})
    assert config.optimizer.lr == 3e-4
    assert config.optimizer.beta1 == 0.5
    assert config.task == Facts(facts=5, seed=4)


def test_seed_is_the_runs_and_data_seed_the_tasks() -> None:
    config = configured(given={"seed": 3})
    assert (config.seed, config.task.seed) == (3, 0)


def test_sizes_that_follow_from_others_follow_again(file: Path) -> None:
    for options in ({}, {"file": file}):
        shape = configured(given={"num_heads": 8}, **options).model
        assert shape == presets["tiny"].resized(num_heads=8)
        assert shape.head_dim == 8
    # the negative control: with head_dim kept from two heads of 32, the shape is another
    assert presets["tiny"].changed(num_heads=8, num_kv_heads=8).head_dim == 32


def test_a_preset_replaces_the_shape_of_the_file(file: Path) -> None:
    for options in ({"preset": "facts-small"}, {"given": {}, "file": file}):
        assert configured(**options).model.width in (32, 64)
    assert configured(file=file, preset="facts-small").model == presets["facts-small"]
    assert configured("model=facts-small", file=file).model == presets["facts-small"]
    assert configured("model=facts-small", given={"width": 48}).model.width == 48


def test_another_task_leaves_the_fields_of_the_files_behind(file: Path) -> None:
    flags = training_flags([TASKS["dag"]])
    config = trainer_config(flags, {"nodes": 9}, StartFlags(config=file), task="dag")
    assert config.task == TASKS["dag"](nodes=9)


def test_a_file_with_a_fault_is_named_and_a_flag_is_not(file: Path) -> None:
    write_yaml(file, {"task": "facts", "stepz": 3})
    with pytest.raises(ConfigError, match=r"run\.yaml: .*'stepz'"):
        configured(file=file, task=None)
    with pytest.raises(ConfigError) as caught:
        configured(given={"steps": 0})
    assert "run.yaml" not in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "names"),
    [
        (["--task", "facts"], ["facts"]),
        (["--steps", "3", "--task=dag"], ["dag"]),
        (["--steps", "3"], []),
        (["--", "--task", "facts"], []),
        (["--config", "nowhere.yaml"], []),
    ],
)
def test_the_task_of_a_command_line(tokens: list[str], names: list[str]) -> None:
    assert [kind.name for kind in chosen_tasks(tokens)] == names


def test_the_task_of_a_file(file: Path) -> None:
    assert chosen_tasks(["--config", str(file)]) == [Facts]
    assert chosen_tasks(["--config", str(file), "--task", "dag"]) == [TASKS["dag"]]
    with pytest.raises(UsageError, match="fatcs"):
        chosen_tasks(["--task", "fatcs"])


def test_overlaid_leaves_both_sides_as_they_were() -> None:
    base, change = {"a": {"b": 1}, "c": 2}, {"a": {"d": 3}}
    assert overlaid(base, change) == {"a": {"b": 1, "d": 3}, "c": 2}
    assert (base, change) == ({"a": {"b": 1}, "c": 2}, {"a": {"d": 3}})
