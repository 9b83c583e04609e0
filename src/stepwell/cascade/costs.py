"""What an answer of each stage costs: measured in seconds at several batch sizes, counted in FLOPs.

A small model is dear at batch 1, where starting its operations takes longer than running them, and
cheap in a full batch; so a cost in seconds always names its batch size.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from stepwell.cascade.documents import from_document, to_document
from stepwell.cascade.paths import FloatArray
from stepwell.cascade.stage import Stage
from stepwell.config import read_json, write_json
from stepwell.errors import CascadeError

REPETITIONS = 5


@dataclass(frozen=True)
class StageCost:
    """Mean cost of one answer of a stage. `seconds` by batch size."""

    name: str
    flops: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class Costs:
    """The costs of all stages, smallest stage first."""

    stages: tuple[StageCost, ...]

    KIND: ClassVar[str] = "stage costs"
    VERSION: ClassVar[int] = 1

    def seconds(self, batch: int) -> FloatArray:
        """Seconds an answer at a batch size, [K]. Raises CascadeError where none was measured."""
        try:
            return np.array([stage.seconds[str(batch)] for stage in self.stages])
        except KeyError:
            measured = ", ".join(self.stages[0].seconds)
            raise CascadeError(
                f"Costs were measured at batch sizes {measured}, not {batch}.",
                fix="run `stepwell cascade calibrate`, or set serving.max_rows to one of them.",
            ) from None

    def flops(self) -> FloatArray:
        """Floating-point operations an answer, [K]."""
        return np.array([stage.flops for stage in self.stages])

    def save(self, path: str | Path) -> None:
        """Write the costs as JSON."""
        write_json(path, to_document(self, self.KIND, self.VERSION))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The costs that `save` wrote.

        Raises ConfigError where it is no JSON, FormatError where it is newer, else DataError.
        """
        return from_document(cls, read_json(path), cls.KIND, cls.VERSION)


def measure_costs(
    stages: Sequence[Stage],
    prompts: Sequence[str],
    *,
    batches: Sequence[int] = (64, 1),
    sampling: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Costs:
    """The median cost of an answer to these prompts; stages take turns, so that all drift alike.

    FLOPs are the mean over the largest batch. Raises CascadeError where there are fewer prompts
    than that.
    """
    sizes = sorted(set(batches), reverse=True)
    if not sizes or not 1 <= sizes[-1] <= sizes[0] <= len(prompts):
        raise CascadeError(
            f"{len(prompts)} prompts cannot be timed in batches of {sizes}.",
            fix="give at least as many prompts as the largest batch (serving.max_rows) holds.",
        )
    asked = dict(sampling or {})
    seconds: dict[tuple[str, int], list[float]] = {}
    flops: dict[str, float] = {}
    for turn in range(REPETITIONS + 1):
        for stage, size in itertools.product(stages, sizes):
            start = clock()
            answers = stage.answer(prompts[:size], **asked)
            elapsed = clock() - start
            if turn:  # the first turn warms up
                seconds.setdefault((stage.name, size), []).append(elapsed / size)
            elif size == sizes[0]:
                flops[stage.name] = statistics.fmean(map(stage.flops, answers))
    return Costs(tuple(_cost(stage.name, flops, seconds, sizes) for stage in stages))


def _cost(
    name: str,
    flops: Mapping[str, float],
    seconds: Mapping[tuple[str, int], Sequence[float]],
    sizes: Sequence[int],
) -> StageCost:
    medians = {str(size): statistics.median(seconds[name, size]) for size in sizes}
    return StageCost(name, flops[name], medians)
