"""Where the time of one prompt went on its way through a ladder: by stage, and for deciding."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from stepwell.cascade.answer import Answer
from stepwell.cascade.pipeline import Cascade
from stepwell.errors import UsageError
from stepwell.report.figure import Column, Table


@dataclass(frozen=True)
class StageTime:
    """What one stage took of an answer. share: of the whole."""

    stage: str
    mode: str
    seconds: float
    share: float
    cost: float
    new_tokens: int
    accepted_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class CascadeProfile:
    """Where the seconds of one answer went; they add up.

    deciding_s: features, beliefs and decisions, and all else that is not a stage. runs: seconds of
    every repetition; what is told is the one in the middle.
    """

    answer: Answer
    seconds: float
    deciding_s: float
    stages: tuple[StageTime, ...]
    runs: tuple[float, ...]

    def plain(self) -> dict[str, Any]:
        """The profile as JSON can hold it."""
        return {
            "text": self.answer.text,
            "stage": self.answer.stage,
            "stopped": self.answer.stopped,
            "seconds": self.seconds,
            "deciding_s": self.deciding_s,
            "stages": [asdict(each) for each in self.stages],
            "runs": list(self.runs),
        }

    def table(self) -> Table:
        """A row a stage, and one for deciding."""
        rows: list[tuple[Any, ...]] = [
            (
                each.stage,
                each.mode,
                1e3 * each.seconds,
                each.share,
                each.new_tokens,
                each.accepted_tokens,
                each.cached_tokens,
                each.cost,
            )
            for each in self.stages
        ]
        share = self.deciding_s / self.seconds
        rows.append(("deciding", "", 1e3 * self.deciding_s, share, None, None, None, None))
        heads = ("tokens", "of them drafted", "of the prompt cached", "cost")
        return Table(("where", "how", "ms", Column("share", percent=True), *heads), rows)


def profile_cascade(
    cascade: Cascade,
    prompt: str,
    *,
    repetitions: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    **options: Any,
) -> CascadeProfile:
    """The profile of one prompt, nothing of which is in any cache; after two runs that warm up.

    `options` are those of Cascade.generate. Raises UsageError for fewer repetitions than one.
    """
    if repetitions < 1:
        raise UsageError(f"repetitions is {repetitions}, expected 1 or more.")
    runs: list[tuple[float, Answer]] = []
    for turn in range(repetitions + 2):
        cascade.kv.clear()
        for stage in cascade.stages:
            stage.forget()
        begun = clock()
        answer = cascade.generate(prompt, **options)
        if turn > 1:
            runs.append((clock() - begun, answer))
    seconds = [taken for taken, _ in runs]
    middle, answer = runs[seconds.index(statistics.median_low(seconds))]
    stages = tuple(
        StageTime(
            visit.stage,
            visit.fault or visit.mode,
            visit.seconds,
            visit.seconds / middle,
            visit.cost,
            visit.new_tokens,
            visit.accepted_tokens,
            visit.cached_tokens,
        )
        for visit in answer.trace
    )
    deciding = middle - sum(each.seconds for each in stages)
    return CascadeProfile(answer, middle, deciding, stages, tuple(seconds))
