"""What simulated stages say to simulated prompts, and which of it is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stepwell.cascade.beliefs.features import Seen, select
from stepwell.cascade.beliefs.logistic import sigmoid
from stepwell.cascade.beliefs.predictor import ARRAYS, Predictor
from stepwell.cascade.rule.paths import FloatArray
from stepwell.cascade.stage import Reply
from stepwell.generate.request import Completion, Usage

STAGES = 3
FEATURES = select(["prompt", "prompt_entropy", "logprobs", "length", "agreement"])
FULL = (1 << STAGES) - 1


def answers(num_prompts: int, seed: int) -> tuple[Seen, FloatArray]:
    """What three stages said, and labels [N, 3]: right answers have higher log-probabilities.

    Long prompts are difficult ones. Two right answers are the same, two wrong ones now and then.
    """
    rng = np.random.default_rng(seed)
    difficulty = rng.random(num_prompts)
    chance = sigmoid(8.0 * (np.array([0.35, 0.6, 0.85]) - difficulty[:, None]))
    good = (rng.random(chance.shape) < chance).astype(float)
    prompts = ["x" * int(10 * np.exp(hard + rng.normal(scale=0.5))) for hard in difficulty]
    seen, told = Seen.begin(FEATURES, prompts, STAGES), {}
    for stage in range(STAGES):
        said = []
        for row in range(num_prompts):
            sure = 0.6 * good[row, stage] + chance[row, stage] + rng.normal(scale=0.6)
            logprobs = tuple((-np.exp(rng.normal(size=rng.integers(2, 9)) - 1.0 - sure)).tolist())
            text = "right" if good[row, stage] else f"wrong {rng.integers(4)}"
            completion = Completion(text, (), "stop", Usage(1, len(logprobs)), logprobs)
            entropy = float(difficulty[row] + rng.normal(scale=0.5))
            said.append(Reply(completion, prompt_entropy=entropy))
        seen.note(stage + 1, said, told, ["v"] * STAGES)
        told[stage + 1] = said
    return seen, good


def bent(num_prompts: int, seed: int) -> tuple[Seen, FloatArray]:
    """One stage, right where two features of its answer agree in sign, which no line tells."""
    rng = np.random.default_rng(seed)
    features = select(["margin"])
    values = rng.normal(size=(num_prompts, 1, 2))
    good = (rng.random((num_prompts, 1)) < sigmoid(2.5 * np.sign(values.prod(axis=2)))).astype(
        float
    )
    prompt, pairs = np.empty((num_prompts, 0)), np.empty((num_prompts, 1, 1, 0))
    return Seen(features, prompt, values, pairs), good


def arrays_of(predictor: Predictor, directory: Path) -> bytes:
    predictor.save(directory)
    return (directory / ARRAYS).read_bytes()
