"""Ladders for the evaluation of cascades: how their stages are made, and what they are asked.

Each is three sizes of a decoder that train in about three minutes, with questions that no stage has
seen. Owns the recipes and their questions; training, asking and judging are elsewhere. The ladder
of facts, whose questions cannot be unseen, is in `facts_ladder`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from stepwell.cascade.ladder import LadderConfig
from stepwell.errors import DataError, UsageError
from stepwell.tasks.arithmetic import Arithmetic
from stepwell.tasks.base import Task
from stepwell.tasks.example import Example
from stepwell.tasks.mixture import Mixture
from stepwell.tasks.unpredictable import Unpredictable

SeededTask = Callable[[int], Task]

DRAWS: Final = 100  # for each question that is wanted, before a task counts as exhausted
LONG: Final = 14  # terms of the longest sum that is taught
MILD: Final = 11  # terms of the longest sum that is asked where difficulty has not shifted
SHORT: Final = 8  # terms of the longest sum or difference where both are asked
RARE: Final = 0.1  # share of the kind of question that a stage is not made for


@dataclass(frozen=True)
class StageRecipe:
    """One stage: `layers` blocks of `width` channels, and how they learn a task.

    taught: the task by its seed. lr falls linearly over `steps` of `batch_size` examples.
    """

    name: str
    layers: int
    width: int
    heads: int
    taught: SeededTask
    steps: int
    batch_size: int
    lr: float

    def plain(self, ladder: str, seed: int) -> dict[str, Any]:
        """The stage as a ladder file spells it; task and training have the same seed."""
        return {
            "name": self.name,
            "model": f"../{ladder}-{self.name}-{seed}",
            "train": {
                "task": self.taught(seed).plain(),
                "model": {
                    "num_layers": self.layers,
                    "width": self.width,
                    "num_heads": self.heads,
                    "context_length": 256,
                },
                "steps": self.steps,
                "batch_size": self.batch_size,
                "seed": seed,
                "optimizer": {
                    "lr": self.lr,
                    "schedule": "linear",
                    "warmup": 0.05,
                    "final_share": 0.02,
                    "weight_decay": 0.0,
                },
                "evaluate_every": 0,
                "save_every": 0,
                "samples": 0,
            },
        }


@dataclass(frozen=True)
class LadderRecipe:
    """A ladder and its questions, by a seed that changes both the data and the first weights.

    purpose: what it shows, in a sentence. asked: the task whose questions are put, which grades
    the answers too. harder: a task whose questions deeper than `mild` are harder than any of those,
    None where there is no such knob.
    """

    name: str
    purpose: str
    stages: tuple[StageRecipe, ...]
    asked: SeededTask
    harder: SeededTask | None = None
    mild: int = 0

    def config(self, seed: int) -> LadderConfig:
        """The ladder file, its stages in run folders beside the ladder's own."""
        longest = max(stage.taught(seed).max_answer_tokens for stage in self.stages)
        return LadderConfig.parse(
            {
                "stages": [stage.plain(self.name, seed) for stage in self.stages],
                # To observe more than the answer would cost stages of this size half as much again.
                "predictor": {"features": ["prompt", "logprobs", "length", "agreement"]},
                "sampling": {"temperature": 0.0, "max_new_tokens": longest},
            }
        )

    def questions(self, seed: int, split: str, count: int) -> list[Example]:
        """`count` different questions of a split; of another than train, no stage has seen any.

        Raises UsageError for an unknown split, DataError where there are not so many.
        """
        return _different(self.asked(seed), split, count)

    def shifted(self, seed: int, count: int) -> list[Example]:
        """`count` different, harder questions that no stage has seen.

        Raises UsageError where the ladder has no knob of difficulty.
        """
        if self.harder is None:
            able = ", ".join(name for name, each in LADDERS.items() if each.harder is not None)
            raise UsageError(
                f"The ladder {self.name!r} has no harder questions.", fix=f"take {able}."
            )
        return _different(self.harder(seed), "test", count, above=self.mild)


def _different(task: Task, split: str, count: int, *, above: int = -1) -> list[Example]:
    """The first `count` examples of a split that are deeper than `above`, each prompt once."""
    found: dict[str, Example] = {}
    for i in range(count * DRAWS):
        if len(found) == count:
            return list(found.values())
        example = task.example_in(split, i)
        if example.targets[0].depth > above:
            found.setdefault(example.prompt, example)
    raise DataError(
        f"Task {task.name} has {len(found)} different questions in {split}, not {count}.",
        fix="ask for fewer.",
    )


def _sums(operation: str, terms: int) -> SeededTask:
    """Sums or differences of up to `terms` digits."""
    return lambda seed: Arithmetic(digits=1, terms=terms, operations=operation, seed=seed)


def _both(share: float) -> SeededTask:
    """Sums and differences of up to SHORT digits; `share` of them are sums."""

    def mixture(seed: int) -> Task:
        parts = [("+", share), ("-", 1 - share)]
        tasks = [
            {"task": _sums(sign, SHORT)(seed).plain(), "weight": weight} for sign, weight in parts
        ]
        return Mixture.parse({"parts": tasks, "seed": seed})

    return mixture


def _unpredictable(seed: int) -> Task:
    return Unpredictable(seed=seed)


def _small(taught: SeededTask, steps: int, width: int = 32) -> StageRecipe:
    return StageRecipe("small", 1, width, 2, taught, steps, batch_size=64, lr=1e-2)


def _middle(taught: SeededTask, steps: int) -> StageRecipe:
    return StageRecipe("middle", 2, 64, 4, taught, steps, batch_size=64, lr=4e-3)


def _large(taught: SeededTask, steps: int) -> StageRecipe:
    return StageRecipe("large", 4, 192, 3, taught, steps, batch_size=32, lr=1e-3)


_SUMS, _SPECIAL, _GENERAL = _sums("+", LONG), _both(1 - RARE), _both(RARE)
_LADDERS = (
    LadderRecipe(
        "sums",
        "A computed answer: the more digits are added up, the larger the stage that gets it right.",
        (_small(_SUMS, 1200, width=12), _middle(_SUMS, 700), _large(_SUMS, 1900)),
        asked=_sums("+", MILD),
        harder=_SUMS,
        mild=MILD,
    ),
    LadderRecipe(
        "unpredictable",
        "No stage is right more often than by chance: what is hard is not worth a larger stage.",
        (_small(_unpredictable, 600), _middle(_unpredictable, 300), _large(_unpredictable, 400)),
        asked=_unpredictable,
    ),
    LadderRecipe(
        "specialist",
        "The small stage is made for sums and beats the larger ones there, which are made for"
        " differences; half of the questions are of either kind, and the sign tells which.",
        (_small(_SPECIAL, 1200), _middle(_GENERAL, 600), _large(_GENERAL, 1600)),
        asked=_both(0.5),
    ),
)

LADDERS: Final[Mapping[str, LadderRecipe]] = MappingProxyType(
    {each.name: each for each in _LADDERS}
)
