"""Running all stages on all prompts, so that a predictor can be fitted without bias.

Logging only the stages that a policy visited would show it only what it already believes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwell.cascade.features import batch_features
from stepwell.cascade.paths import BoolArray, FloatArray
from stepwell.cascade.stage import Stage
from stepwell.generate.request import Completion


@dataclass(frozen=True, eq=False)
class Collected:
    """What every stage answered to N prompts.

    features [N, K, F] as the predictor reads them; good [N, K], 1 where the answer is right;
    weights [N]; answers[k][i] is stage k's completion of prompt i.
    """

    features: FloatArray
    good: FloatArray
    weights: FloatArray
    answers: tuple[tuple[Completion, ...], ...]

    def take(self, rows: BoolArray) -> Collected:
        """The same for some of the prompts."""
        kept = np.flatnonzero(rows)
        answers = tuple(tuple(stage[row] for row in kept) for stage in self.answers)
        return Collected(self.features[rows], self.good[rows], self.weights[rows], answers)


def collect(
    stages: Sequence[Stage],
    prompts: Sequence[str],
    is_right: Callable[[int, str], bool],
    *,
    weights: Sequence[float] | None = None,
    on_stage: Callable[[str], None] | None = None,
    **sampling: Any,
) -> Collected:
    """All stages' answers to all prompts, graded by `is_right(prompt index, answer text)`."""
    answers: list[tuple[Completion, ...]] = []
    features, good = [], []
    for stage in stages:
        if on_stage is not None:
            on_stage(stage.name)
        completions = tuple(stage.answer(prompts, **sampling))
        features.append(
            batch_features([done.logprobs for done in completions], _agrees(answers, completions))
        )
        good.append([float(is_right(row, done.text)) for row, done in enumerate(completions)])
        answers.append(completions)
    return Collected(
        features=np.stack(features, axis=1),
        good=np.array(good).T,
        weights=np.ones(len(prompts)) if weights is None else np.asarray(weights, dtype=float),
        answers=tuple(answers),
    )


def _agrees(
    answers: Sequence[Sequence[Completion]], completions: Sequence[Completion]
) -> FloatArray:
    """1 where an answer equals that of the stage before, 0 where not; NaN after no stage."""
    if not answers:
        return np.full(len(completions), np.nan)
    pairs = zip(answers[-1], completions, strict=True)
    return np.array([float(before.text == now.text) for before, now in pairs])
