"""The ladder of the demonstration: three sizes of a model that learn the same facts by heart.

Facts are drawn with weight 1 / (rank + 8), so that a size remembers as far down the ranks as it
can: difficulty is the rank, graded exactly. What was not taught cannot be known, so predictor,
stopping rule and test have facts of their own, neighbouring ranks dealt out in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stepwell.cascade.beliefs.features import select
from stepwell.cascade.collect import Collected, collect
from stepwell.cascade.ladder import LadderConfig
from stepwell.cascade.prepare import TURNS
from stepwell.cascade.rule.paths import BoolArray, FloatArray
from stepwell.cascade.stage import Stage
from stepwell.tasks.example import Example
from stepwell.tasks.facts import Facts
from stepwell.tasks.questions import Questions

RANKS = (0, 128, 512, 1024, 2048)  # between which difficulty is averaged


def facts_ladder() -> LadderConfig:
    """The ladder file of the demonstration, its stages in run folders beside the ladder's own."""
    recipes = {
        "small": ("facts-small", 700, 1e-2, "float32"),
        "middle": ("facts-middle", 80, 4e-3, "float32"),
        "large": ("facts-large", 160, 2.5e-3, "bfloat16"),
    }
    return LadderConfig.parse(
        {
            "stages": [
                {
                    "name": name,
                    "model": f"../{preset}",
                    "train": {
                        "task": "facts",
                        "preset": preset,
                        "steps": steps,
                        "batch_size": 512,
                        "precision": precision,
                        "optimizer": {"lr": lr, "schedule": "linear", "weight_decay": 0.0},
                    },
                }
                for name, (preset, steps, lr, precision) in recipes.items()
            ],
            "predictor": {"features": ["logprobs", "agreement"]},
            "sampling": {"temperature": 0.0, "max_new_tokens": 3},
        }
    )


@dataclass(frozen=True, eq=False)
class FactsData:
    """What every stage answered to every fact, by rank."""

    examples: tuple[Example, ...]
    collected: Collected

    def split(self, name: str) -> Collected:
        """The facts that only one of predictor, calibration and test may see."""
        return self.collected.take(self._rows(name))

    def examples_of(self, name: str) -> list[Example]:
        """The facts themselves, in the order of `split`."""
        return [self.examples[row] for row in np.flatnonzero(self._rows(name))]

    def drawn(self, name: str, seed: int = 0) -> list[Example]:
        """As many facts of a split as it holds, but as often and as mixed as they are asked.

        By systematic sampling: a fact comes as often as its weight says, rounded up or down.
        """
        examples = self.examples_of(name)
        sums = np.cumsum([example.weight for example in examples])
        places = (np.arange(len(examples)) + 0.5) / len(examples) * sums[-1]
        rows = np.random.default_rng(seed).permutation(np.searchsorted(sums, places))
        return [examples[row] for row in rows]

    def by_difficulty(self) -> tuple[list[str], list[int], FloatArray]:
        """Groups of ranks by name, facts in each, each stage's share of right answers [R, K]."""
        total = len(self.examples)
        spans = list(pairwise([*(rank for rank in RANKS if rank < total), total]))
        names = [f"ranks {low + 1:,} to {high:,}" for low, high in spans]
        right = np.stack([self.collected.good[low:high].mean(axis=0) for low, high in spans])
        return names, [high - low for low, high in spans], right

    def _rows(self, name: str) -> BoolArray:
        turns = np.arange(len(self.examples)) % len(TURNS)
        rows: BoolArray = turns == TURNS.index(name)
        return rows


def ask_all(
    task: Facts,
    stages: Sequence[Stage],
    config: LadderConfig,
    on_stage: Callable[[str], None] | None = None,
) -> FactsData:
    """Every stage's answer to every fact, each weighted with how often it is drawn.

    `on_stage` is told the name of each stage before it is asked.
    """
    collected = collect(
        stages,
        Questions.of_facts(task).items,
        features=select(config.predictor.features),
        on_stage=on_stage,
        **config.sampling,
    )
    return FactsData(tuple(task.all()), collected)
