"""What an evaluation of cascades is held on: ladders by seed, their questions, and harder ones.

Owns how a task's name or a ladder file becomes the ladder of one seed, with models of its own, and
the questions that it is asked. Trains and asks nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from stepwell.cascade.ladder import LadderConfig, QuestionsConfig, StageConfig
from stepwell.errors import ConfigError, suggest
from stepwell.evals.facts_ladder import facts_ladder
from stepwell.evals.ladders import LADDERS, LadderRecipe
from stepwell.tasks.base import Task
from stepwell.tasks.example import Example
from stepwell.tasks.questions import Question, Questions

FACTS: Final = "facts"
TASKS: Final = (FACTS, *LADDERS)
MODELS: Final = "models"

Asking = Callable[[int, int], Questions]
"""Questions by a seed and their number."""


@dataclass(frozen=True)
class Arena:
    """One task of an evaluation.

    purpose: what it shows, in a sentence. ladder: the ladder file of a seed. questions: what is
    asked, None for what the file itself says. shifted: harder questions, None where there are none.
    headline: whether what a rule costs at equal quality is claimed of it.
    """

    name: str
    purpose: str
    ladder: Callable[[int], LadderConfig]
    questions: Asking | None = None
    shifted: Asking | None = None
    headline: bool = False


def arena_of(name: str) -> Arena:
    """The task of that name. Raises ConfigError where there is none."""
    if name == FACTS:
        return Arena(
            FACTS,
            "Facts learnt by heart, frequent ones first: the larger the stage, the further down.",
            _facts,
            headline=True,
        )
    if name not in LADDERS:
        raise ConfigError(
            f"There is no ladder {name!r}. {suggest(name, TASKS)}", fix=f"take {', '.join(TASKS)}."
        )
    return arena_of_recipe(LADDERS[name])


def arena_of_recipe(recipe: LadderRecipe) -> Arena:
    """A recipe as a task: different questions that no stage has seen, harder ones where it can."""
    return Arena(
        recipe.name,
        recipe.purpose,
        partial(_recipe_ladder, recipe),
        partial(_recipe_questions, recipe),
        None if recipe.harder is None else partial(_recipe_shifted, recipe),
    )


def arena_of_ladder(path: str | Path) -> Arena:
    """A ladder file as a task: stages with `train:` are trained anew each seed, the others kept.

    Its questions stay the same; the seed of training changes.
    """
    file = Path(path)
    config = LadderConfig.read(file)
    purpose = f"The ladder {file.name}, asked its own questions."
    return Arena(file.stem, purpose, partial(_reseeded, config, file.parent))


def placed(config: LadderConfig) -> LadderConfig:
    """The ladder with each trained stage in a model directory of its own, beside the file."""
    stages = [
        stage if stage.train is None else stage.changed(model=f"{MODELS}/{stage.name}")
        for stage in config.stages
    ]
    return config.changed(stages=stages)


def questions_of(task: Task, examples: Sequence[Example], source: dict[str, Any]) -> Questions:
    """Examples of a task as questions that it grades."""
    items = tuple(
        Question(
            example.prompt,
            example.answer,
            partial(task.grade, example),
            depth=example.targets[0].depth,
        )
        for example in examples
    )
    return Questions(items, {"task": task.plain(), **source})


def _facts(seed: int) -> LadderConfig:
    """The demonstration's ladder, with facts and first weights of a seed."""
    config = facts_ladder()
    stages = []
    for stage in config.stages:
        assert stage.train is not None
        task = {"name": FACTS, "seed": seed}
        stages.append(stage.changed(train={**stage.train, "task": task, "seed": seed}))
    return placed(config.changed(stages=stages))


def _recipe_ladder(recipe: LadderRecipe, seed: int) -> LadderConfig:
    config = placed(recipe.config(seed))
    return config.changed(questions=QuestionsConfig(task=recipe.asked(seed).plain()))


def _recipe_questions(recipe: LadderRecipe, seed: int, count: int) -> Questions:
    """Different questions that no stage has seen: each counts once."""
    examples = recipe.questions(seed, "test", count)
    return questions_of(recipe.asked(seed), examples, {"ladder": recipe.name, "split": "test"})


def _recipe_shifted(recipe: LadderRecipe, seed: int, count: int) -> Questions:
    assert recipe.harder is not None
    examples = recipe.shifted(seed, count)
    return questions_of(recipe.harder(seed), examples, {"ladder": recipe.name, "split": "harder"})


def _reseeded(config: LadderConfig, root: Path, seed: int) -> LadderConfig:
    """A ladder file's content for another directory and seed; what it names stays where it is."""
    stages = [_reseeded_stage(stage, root, seed) for stage in config.stages]
    asked = config.questions
    if asked.file is not None:
        asked = asked.changed(file=str((root / asked.file).resolve()))
    return placed(config.changed(stages=stages, questions=asked))


def _reseeded_stage(stage: StageConfig, root: Path, seed: int) -> StageConfig:
    if stage.train is not None:
        begun = int(stage.train.get("seed", 0))
        return stage.changed(train={**stage.train, "seed": begun + seed})
    changes = {}
    if stage.model is not None and stage.server is None:
        changes["model"] = os.path.abspath(root / stage.model)  # noqa: PTH100  # keeps links
    if stage.tokenizer is not None:
        changes["tokenizer"] = str((root / stage.tokenizer).resolve())
    return stage.changed(**changes)
