"""The ladders of the evaluation: files that train, questions that are unseen, what each shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stepwell.cascade.build import trainer_config
from stepwell.cascade.ladder import LadderConfig
from stepwell.errors import DataError, UsageError
from stepwell.evals.ladders import LADDERS, LONG, MILD, LadderRecipe, StageRecipe
from stepwell.generate.text import TextGenerator
from stepwell.tasks.example import Example
from stepwell.train.config import TrainerConfig
from stepwell.train.trainer import Trainer

LOOKED_AT = 4000  # first examples of a run


@pytest.fixture(params=LADDERS)
def recipe(request: pytest.FixtureRequest) -> LadderRecipe:
    return LADDERS[request.param]


def runs(recipe: LadderRecipe, seed: int, root: Path) -> list[TrainerConfig]:
    """The training runs of a ladder's stages."""
    return [trainer_config(stage, root / "ladder") for stage in recipe.config(seed).stages]


def met(recipe: LadderRecipe, seed: int, root: Path) -> set[str]:
    """The prompts that any stage meets first in training."""
    return {
        run.task.example_in("train", i).prompt
        for run in runs(recipe, seed, root)
        for i in range(LOOKED_AT)
    }


def test_a_ladder_file_is_whole_and_its_stages_grow(recipe: LadderRecipe, tmp_path: Path) -> None:
    ladder = recipe.config(seed=3)
    assert LadderConfig.parse(ladder.model_dump(mode="json", by_alias=True)) == ladder
    trainers = [Trainer(run) for run in runs(recipe, 3, tmp_path)]
    assert [trainer.config.directory.parent for trainer in trainers] == [tmp_path] * 3
    small, middle, large = (trainer.model_config.num_parameters for trainer in trainers)
    assert 5 * small < middle < large / 5


def test_the_seed_changes_data_and_first_weights_and_nothing_else(recipe: LadderRecipe) -> None:
    def neutral(values: Any) -> Any:
        """Plain values with every seed, and the folder named after it, left out."""
        if isinstance(values, Mapping):
            left_out = ("seed", "model") if "name" in values else ("seed",)
            return {key: neutral(each) for key, each in values.items() if key not in left_out}
        return [neutral(each) for each in values] if isinstance(values, list) else values

    one, other = (recipe.config(seed).model_dump(mode="json") for seed in (1, 2))
    assert one != other
    assert neutral(one) == neutral(other)
    for left, right in zip(one["stages"], other["stages"], strict=True):
        assert left["model"] != right["model"]
        assert (left["train"]["seed"], right["train"]["seed"]) == (1, 2)
        assert left["train"]["task"] != right["train"]["task"]
    prompts = [[each.prompt for each in recipe.questions(seed, "test", 50)] for seed in (1, 2)]
    assert prompts[0] != prompts[1]


def test_no_question_is_met_in_training_or_asked_twice(
    recipe: LadderRecipe, tmp_path: Path
) -> None:
    asked = {
        split: {each.prompt for each in recipe.questions(0, split, 600)}
        for split in ("validation", "test")
    }
    assert [len(prompts) for prompts in asked.values()] == [600, 600]
    assert not asked["validation"] & asked["test"]
    assert not met(recipe, 0, tmp_path) & (asked["validation"] | asked["test"])


def test_a_question_met_in_training_would_be_found(tmp_path: Path) -> None:
    """The control: of the questions of the train split some are met."""
    recipe = LADDERS["sums"]
    taught = {each.prompt for each in recipe.questions(0, "train", 600)}
    assert met(recipe, 0, tmp_path) & taught


def test_every_stage_can_read_the_questions_and_say_the_answers(
    recipe: LadderRecipe, tmp_path: Path
) -> None:
    questions = recipe.questions(0, "test", 300)
    questions += recipe.shifted(0, 100) if recipe.harder else []
    room, asked = recipe.config(0).sampling["max_new_tokens"], recipe.asked(0)
    assert all(asked.grade(each, each.answer) for each in questions)
    for run in runs(recipe, 0, tmp_path):
        tokenizer = run.task.tokenizer
        assert tokenizer.fingerprint == asked.tokenizer.fingerprint
        for each in questions:
            prompt, answer = tokenizer.encode(each.prompt), tokenizer.encode(each.answer)
            assert len(answer) + run.task.ends <= room
            assert len(prompt) + room <= run.model.context_length


def test_shifted_questions_are_harder_than_any_other() -> None:
    recipe = LADDERS["sums"]
    mild = Counter(each.targets[0].depth for each in recipe.questions(0, "test", 600))
    hard = Counter(each.targets[0].depth for each in recipe.shifted(0, 600))
    assert set(mild) == set(range(2, MILD + 1))
    assert set(hard) == set(range(MILD + 1, LONG + 1))
    assert min(hard.values()) > 60


def test_a_ladder_without_a_knob_says_which_have_one() -> None:
    with pytest.raises(UsageError, match="'unpredictable' has no harder questions") as caught:
        LADDERS["unpredictable"].shifted(0, 10)
    assert "sums" in str(caught.value)


def test_more_questions_than_there_are_is_an_error() -> None:
    narrow = replace(
        LADDERS["sums"], asked=lambda seed: LADDERS["sums"].asked(seed).changed(terms=2)
    )
    with pytest.raises(DataError, match=r"arithmetic has \d different questions in test, not 20"):
        narrow.questions(0, "test", 20)


def test_half_of_the_specialists_questions_are_sums() -> None:
    questions = LADDERS["specialist"].questions(0, "test", 1000)
    sums = sum("+" in each.prompt for each in questions)
    assert abs(sums - 500) < 4 * 250**0.5
    assert all(("+" in each.prompt) != ("-" in each.prompt) for each in questions)


# -- what the stages learn -------------------------------------------------------------------


def answers(
    recipe: LadderRecipe, stage: StageRecipe, questions: list[Example], root: Path
) -> list[str]:
    """What one stage, trained here, says."""
    alone = replace(recipe, stages=(stage, replace(stage, name="unused")))
    config = runs(alone, 0, root)[0].changed(threads=1)
    gen = TextGenerator.load(Trainer(config).train().directory)
    sampling = alone.config(0).sampling
    said = gen.generate_batch([each.prompt for each in questions], **sampling)
    return [done.text for [done] in said]


def right(recipe: LadderRecipe, questions: list[Example], said: list[str]) -> NDArray[np.bool_]:
    """Which answers are right."""
    task = recipe.asked(0)
    graded = [task.grade(each, text) for each, text in zip(questions, said, strict=True)]
    return np.array(graded)


def test_what_nothing_predicts_is_answered_in_form_and_right_no_more_than_by_chance(
    tmp_path: Path,
) -> None:
    recipe = LADDERS["unpredictable"]
    questions = recipe.questions(0, "test", 400)
    said = answers(recipe, replace(recipe.stages[0], steps=150), questions, tmp_path)
    offered = [
        text in each.prompt[-each.targets[0].depth - 1 :]
        for each, text in zip(questions, said, strict=True)
    ]
    assert np.mean(offered) > 0.8
    chances = np.array([1 / each.targets[0].depth for each in questions])
    spread = (chances * (1 - chances)).sum() ** 0.5
    assert right(recipe, questions, said).sum() < chances.sum() + 4 * spread


@pytest.mark.slow
def test_a_middle_stage_adds_up_more_than_a_small_one_and_less_where_it_is_harder(
    tmp_path: Path,
) -> None:
    """About 40 seconds on one core."""
    recipe = LADDERS["sums"]
    mild, hard = recipe.questions(0, "test", 400), recipe.shifted(0, 400)
    small, middle = (
        right(recipe, mild + hard, answers(recipe, stage, mild + hard, tmp_path))
        .reshape(2, -1)
        .mean(axis=1)
        for stage in recipe.stages[:2]
    )
    assert (middle > small + 0.1).all()
    assert middle[0] > middle[1] + 0.05
