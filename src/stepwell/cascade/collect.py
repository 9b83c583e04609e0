"""Running all stages on all prompts, so that a predictor can be fitted without bias.

Logging only the stages that a policy visited would show it only what it already believes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwell.cascade.features import batch_features, seen_features
from stepwell.cascade.paths import BoolArray, FloatArray, Paths
from stepwell.cascade.predictor import Predictor
from stepwell.cascade.stage import Stage
from stepwell.errors import ShapeError
from stepwell.generate.request import Completion


@dataclass(frozen=True, eq=False)
class Collected:
    """What every stage answered to N prompts.

    features [N, K, F] as the predictor reads them; good [N, K], 1 where the answer is right;
    weights [N]; answers[k][i] is the completion of prompt i by stage k + 1.
    """

    features: FloatArray
    good: FloatArray
    weights: FloatArray
    answers: tuple[tuple[Completion, ...], ...]

    def paths(self, predictor: Predictor) -> Paths:
        """What would have been believed after every set of stages, and what was true."""
        states = range(1 << self.good.shape[1])
        beliefs = [
            predictor.beliefs(seen_features(self.features, state), state.bit_length())
            for state in states
        ]
        return Paths(np.stack(beliefs, axis=1), self.good, self.weights)

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
    """All stages' answers to all prompts, graded by `is_right(prompt index, answer text)`.

    weights say how much each prompt counts; `on_stage` is told a stage's name before it begins.
    """
    counts = np.ones(len(prompts)) if weights is None else np.asarray(weights, dtype=float)
    if counts.shape != (len(prompts),):
        raise ShapeError(f"weights are {list(counts.shape)}, expected [{len(prompts)}].")
    answers: list[tuple[Completion, ...]] = []
    for stage in stages:
        if on_stage is not None:
            on_stage(stage.name)
        answers.append(tuple(stage.answer(prompts, **sampling)))
    good = [[float(is_right(row, done.text)) for row, done in enumerate(each)] for each in answers]
    before: list[Sequence[Completion | None]] = [(None,) * len(prompts), *answers[:-1]]
    features = [
        batch_features([done.logprobs for done in now], agreement(earlier, now))
        for earlier, now in zip(before, answers, strict=True)
    ]
    return Collected(np.stack(features, axis=1), np.array(good).T, counts, tuple(answers))


def agreement(before: Sequence[Completion | None], completions: Sequence[Completion]) -> FloatArray:
    """1 where an answer equals that of the stage right before, 0 where not, NaN where none is."""
    pairs = zip(before, completions, strict=True)
    return np.array([np.nan if old is None else old.text == new.text for old, new in pairs], float)
