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
    """What the cascade answered, and the seconds of the ladder and of always one stage."""

    answers: tuple[Answer, ...]
    seconds: dict[str, float]

    def relative(self, name: str, to: str) -> float:
        """The seconds of one rule in units of another's."""
        return self.seconds[name] / self.seconds[to]


def run_live(
    cascade: Cascade,
    prompts: Sequence[str],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> LiveRun:
    """The cascade's answers, with median times of it and of always one stage, taking turns."""
    seconds: dict[str, list[float]] = {}
    answers: list[Answer] = []
    for _ in range(REPETITIONS):
        start = clock()
        answers = cascade.generate_batch(prompts)
        seconds.setdefault("ladder", []).append(clock() - start)
        for stage in cascade.stages:
            start = clock()
            stage.answer(prompts, **cascade.config.sampling)
            seconds.setdefault(stage.name, []).append(clock() - start)
    return LiveRun(
        tuple(answers), {name: statistics.median(times) for name, times in seconds.items()}
    )
