"""Ladders of an evaluation: by name, by file, and each seed its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwell.cascade.build import trainer_config
from stepwell.cascade.ladder import LadderConfig
from stepwell.cascade.prepare import Preparation
from stepwell.errors import ConfigError
from stepwell.evals.protocol_tasks import TASKS, arena_of, arena_of_ladder

TRAIN = {"task": {"name": "facts", "facts": 8}, "preset": "tiny", "steps": 1, "seed": 5}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_a_ladder_whose_models_lie_beside_it(name: str, tmp_path: Path) -> None:
    arena = arena_of(name)
    config = arena.ladder(3)
    runs = [trainer_config(stage, tmp_path) for stage in config.stages]
    assert [run.directory.parent for run in runs] == [tmp_path / "models"] * 3
    config.write(tmp_path / "ladder.yaml")
    assert LadderConfig.read(tmp_path / "ladder.yaml") == config
    assert all(run.seed == 3 for run in runs)
    assert arena.headline is (name == "facts")


@pytest.mark.parametrize("name", TASKS)
def test_another_seed_is_another_task_and_other_weights(name: str) -> None:
    one, other = (arena_of(name).ladder(seed) for seed in (0, 1))
    for first, second in zip(one.stages, other.stages, strict=True):
        assert first.train is not None
        assert second.train is not None
        assert first.train["seed"] != second.train["seed"]
        assert first.train["task"] != second.train["task"]


@pytest.mark.parametrize("name", [task for task in TASKS if task != "facts"])
def test_questions_are_different_and_graded_by_their_task(name: str, tmp_path: Path) -> None:
    arena = arena_of(name)
    assert arena.questions is not None
    asked = arena.questions(1, 50)
    assert len({item.prompt for item in asked.items}) == 50
    assert all(item.grade(item.expected) for item in asked.items)
    assert not any(item.grade(item.expected + "?") for item in asked.items)
    config = arena.ladder(1)
    task = Preparation(tmp_path / "ladder.yaml", config, []).task()
    assert asked.source["task"] == task.plain()


def test_harder_questions_are_deeper_than_any_that_are_asked() -> None:
    arena = arena_of("sums")
    assert arena.questions is not None
    assert arena.shifted is not None
    mild, harder = arena.questions(0, 100), arena.shifted(0, 100)
    assert max(item.depth for item in mild.items) < min(item.depth for item in harder.items)
    assert arena_of("facts").shifted is None


def test_a_task_that_there_is_not_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="'sum'"):
        arena_of("sum")


def ladder_file(folder: Path) -> Path:
    config = LadderConfig.parse(
        {
            "stages": [
                {"name": "kept", "model": "../kept"},
                {"name": "trained", "model": "../trained", "train": TRAIN},
                {"name": "served", "model": "m", "server": "http://127.0.0.1:1", "tokenizer": "t"},
            ],
            "questions": {"file": "asked.jsonl"},
        }
    )
    config.write(folder / "mine.yaml")
    return folder / "mine.yaml"


def test_a_ladder_files_trained_stages_are_trained_anew_each_seed(tmp_path: Path) -> None:
    arena = arena_of_ladder(ladder_file(tmp_path))
    assert arena.name == "mine"
    assert arena.questions is None
    kept, trained, served = arena.ladder(2).stages
    assert trained.model == "models/trained"
    assert trained.train == {**TRAIN, "seed": 7}
    assert (kept.train, served.train) == (None, None)


def test_what_a_ladder_file_names_stays_where_it_is(tmp_path: Path) -> None:
    config = arena_of_ladder(ladder_file(tmp_path)).ladder(0)
    kept, _, served = config.stages
    elsewhere = tmp_path / "out/mine/seed-0"
    assert (elsewhere / str(kept.model)).resolve() == (tmp_path / "../kept").resolve()
    assert served.model == "m"
    assert served.tokenizer == str(tmp_path / "t")
    assert config.questions.file == str(tmp_path / "asked.jsonl")
