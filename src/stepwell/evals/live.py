"""Running a cascade for real beside the stages that it is compared with, and timing both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stepwell.cascade.pipeline import Answer, Cascade

REPETITIONS = 5


@dataclass(frozen=True)
class LiveRun:
    """What the cascade answered, its seconds, and those of always one stage by its name."""

    answers: tuple[Answer, ...]
    seconds: float
    stage_seconds: dict[str, float]

    def relative_to(self, stage: str) -> float:
        """The cascade's seconds in units of always this stage's."""
        return self.seconds / self.stage_seconds[stage]


def run_live(
    cascade: Cascade,
    prompts: Sequence[str],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> LiveRun:
    """The cascade's answers, with median times of it and of always one stage, taking turns.

    The cascade's time holds everything that it does: features, beliefs and decisions too.
    """
    own: list[float] = []
    others: dict[str, list[float]] = {stage.name: [] for stage in cascade.stages}
    answers: list[Answer] = []
    for _ in range(REPETITIONS):
        start = clock()
        answers = cascade.generate_batch(prompts)
        own.append(clock() - start)
        for stage in cascade.stages:
            start = clock()
            stage.answer(prompts, **cascade.config.sampling)
            others[stage.name].append(clock() - start)
    medians = {name: statistics.median(times) for name, times in others.items()}
    return LiveRun(tuple(answers), statistics.median(own), medians)
