"""From a ladder file to a fitted rule: questions, answers of all stages, costs, the fit.

Owns the order of these steps, what each leaves beside the ladder file, and which question serves
what: learning beliefs, solving the rule, certifying it, judging it. No question serves two.

    LADDER.collected/   the answers, and costs.json with what was measured to what it is true of
    LADDER.fitted/      what `Cascade.load` reads
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from stepwell.cascade.beliefs.features import FeatureSet, select
from stepwell.cascade.build import trainer_config
from stepwell.cascade.collect import Collected, collect
from stepwell.cascade.collection import Asked, Collection
from stepwell.cascade.costs import Costs, measure_costs
from stepwell.cascade.documents import from_document, to_document
from stepwell.cascade.fitted import Fitted
from stepwell.cascade.ladder import (
    Certified,
    LadderConfig,
    collected_directory,
    fitted_directory,
)
from stepwell.cascade.rule.certify import Certificate
from stepwell.cascade.rule.paths import IntArray
from stepwell.cascade.splits import splits
from stepwell.cascade.stage import Stage
from stepwell.config import fingerprint, read_json, write_json
from stepwell.errors import CascadeError, ConfigError, DataError, StepwellError, UsageError
from stepwell.tasks.base import Task, task_from_plain
from stepwell.tasks.facts import Facts
from stepwell.tasks.mmlu import mmlu_questions
from stepwell.tasks.questions import Question, Questions

SHARES: Final[Mapping[str, float]] = {
    "predictor": 0.4,
    "calibration": 0.2,
    "certification": 0.2,
    "test": 0.2,
}
TURNS: Final = ("predictor", "calibration", "test")
"""Splits of facts, dealt out in turn by rank: what was not taught cannot be asked, and no two facts
are independent draws, so that nothing about them is certified."""
COSTS: Final = "costs.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """Costs, and the fingerprint of all that they depend on but the machine."""

    of: str
    costs: Costs

    KIND: ClassVar[str] = "measured costs"
    VERSION: ClassVar[int] = 1


@dataclass(frozen=True)
class Preparation:
    """A ladder that is being prepared: its file, what it says, and its stages."""

    ladder_file: Path
    config: LadderConfig
    stages: Sequence[Stage]

    @property
    def fitted(self) -> Path:
        """Where what is fitted lies."""
        return fitted_directory(self.ladder_file)

    @cached_property
    def features(self) -> FeatureSet:
        """What the predictor may look at. Raises ConfigError for a group that is none."""
        return select(self.config.predictor.features)

    def questions(self, count: int | None = None) -> Questions:
        """What the stages are asked: so many of the source's questions, all where it ends.

        Raises ConfigError where the ladder does not say what to ask, DataError where its file does
        not hold it.
        """
        if count is not None and count < 1:
            raise UsageError(f"{count} questions are to be asked, expected 1 or more.")
        if self._are_listed:
            found = self._listed()
            return replace(found, items=found.items[:count])  # its source is that of all rows
        task = self.task()
        if isinstance(task, Facts):
            return Questions.of_facts(task)
        return Questions.of_task(task, 0, count)

    def check(self) -> None:
        """Raise at once what would be raised after training and asking; needs no stages."""
        _ = self.features
        self.questions(1)
        if not isinstance(self.config.policy.lam, Certified) or self._certifies:
            return
        why = (
            "no two facts are independent draws"
            if self._is_facts
            else "it counts answers that are right or wrong, not the shares of several rollouts"
        )
        raise ConfigError(
            f"{self.ladder_file} asks for a certificate, which this ladder cannot have: {why}.",
            fix="say `lambda: auto`, a number or a budget.",
        )

    def task(self) -> Task:
        """The task that is asked: the file's own, or what all stages were trained on."""
        asked = self.config.questions.task
        if asked is not None:
            return task_from_plain(asked)
        root = self.ladder_file.parent
        trained = [stage for stage in self.config.stages if stage.train is not None]
        tasks = [trainer_config(stage, root).task for stage in trained]
        if not tasks or any(task != tasks[0] for task in tasks):
            raise ConfigError(
                f"{self.ladder_file} does not say what to ask, and its stages were not all trained"
                " on one task.",
                fix="add `questions: {task: ...}` or `questions: {file: questions.jsonl}`.",
            )
        return tasks[0]

    def collect(
        self, questions: Questions, on_part: Callable[[int], None] = lambda _: None
    ) -> Collected:
        """All stages' answers to the questions; those that are there are not asked for again."""

        def ask(some: Sequence[Question]) -> Collected:
            return collect(
                self.stages,
                some,
                features=self.features,
                rollouts=self.config.questions.rollouts,
                by_agreement=self.config.questions.checker == "agreement",
                **self.config.sampling,
            )

        return self._collection(questions).collect(questions.items, ask, on_part)

    def calibrate(self, prompts: Sequence[str]) -> Costs:
        """What an answer of each stage costs here and now, kept beside the answers."""
        rows = self.config.serving.max_rows
        costs = measure_costs(
            self.stages,
            list(itertools.islice(itertools.cycle(prompts), rows)),
            batches=(rows, 1),
            observe=self.features.observe,
            prices=[stage.price for stage in self.config.stages],
            sampling=self.config.sampling,
        )
        path = collected_directory(self.ladder_file) / COSTS
        path.parent.mkdir(parents=True, exist_ok=True)
        measured = Measured(self._measured_of, costs)
        write_json(path, to_document(measured, Measured.KIND, Measured.VERSION))
        return costs

    def costs(self) -> Costs | None:
        """The costs that were measured before; None where there are none of this very ladder."""
        path = collected_directory(self.ladder_file) / COSTS
        if not path.exists():
            return None
        try:
            found = from_document(Measured, read_json(path), Measured.KIND, Measured.VERSION)
        except (ConfigError, DataError) as error:
            logger.warning("%s is damaged and counts for nothing: %s", path, error.problem)
            return None
        return found.costs if found.of == self._measured_of else None

    def fit(self, collected: Collected, costs: Costs) -> Fitted:
        """Fit predictor and rule, certify where questions are independent, and save all of it."""
        rows = self.rows(collected)
        certification = rows.get("certification")
        for name in ("predictor", "calibration"):
            if not len(rows[name]):
                raise CascadeError(
                    f"Of {len(collected)} questions none is left for the {name} split.",
                    fix="collect more: `stepwell cascade collect --num-samples 2000`.",
                )
        fitted = Fitted.fit(
            self.config,
            self.stages,
            collected.take(rows["predictor"]),
            collected.take(rows["calibration"]),
            costs,
            None if certification is None else collected.take(certification),
            self._earlier_certificate(),
        )
        fitted.save(self.fitted)
        return fitted

    def rows(self, collected: Collected) -> dict[str, IntArray]:
        """The questions that serve each purpose: each of them one only, and always the same."""
        if self._is_facts:
            turns = np.arange(len(collected)) % len(TURNS)
            return {name: np.flatnonzero(turns == place) for place, name in enumerate(TURNS)}
        served = {name: SHARES[name] for name in SHARES if name in TURNS or self._certifies}
        return splits(collected.prompts, served)

    @property
    def _certifies(self) -> bool:
        return not self._is_facts and self.config.questions.rollouts == 1

    @property
    def _measured_of(self) -> str:
        """What costs are true of: stages and prices, rows at once, what is asked and observed."""
        return fingerprint(
            {
                "stages": [stage.fingerprint for stage in self.stages],
                "prices": [stage.price and stage.price.plain() for stage in self.config.stages],
                "rows": self.config.serving.max_rows,
                "features": self.features.groups,
                "sampling": self.config.sampling,
            }
        )

    def _earlier_certificate(self) -> Certificate | None:
        """That of the ladder as it was fitted before; None where there is none that can be read."""
        with suppress(StepwellError):
            return Fitted.load(self.fitted).certificate
        return None

    @property
    def _is_facts(self) -> bool:
        return not self._are_listed and isinstance(self.task(), Facts)

    @property
    def _are_listed(self) -> bool:
        """Whether all questions are there to be read, and no task makes them."""
        asked = self.config.questions
        return asked.file is not None or asked.dataset is not None

    def _listed(self) -> Questions:
        asked = self.config.questions
        if asked.file is None:
            return mmlu_questions()
        path = self.ladder_file.parent / asked.file
        return Questions.read(path, answered=asked.checker == "exact")

    def _collection(self, questions: Questions) -> Collection:
        source = {key: value for key, value in questions.source.items() if key != "end"}
        asked = Asked(
            stages=tuple(stage.fingerprint for stage in self.stages),
            features=self.features.groups,
            source=fingerprint([source, self.config.questions.checker]),
            sampling=fingerprint(self.config.sampling),
            rollouts=self.config.questions.rollouts,
        )
        return Collection(collected_directory(self.ladder_file), asked, self.features)


def first_prompts(questions: Questions, count: int) -> list[str]:
    """The first prompts, from the start again where there are fewer."""
    return list(itertools.islice(itertools.cycle(each.prompt for each in questions.items), count))
