"""All stages on all prompts: what is kept of it, and what would have been seen in each state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stepwell.cascade.collect import Collected, collect
from stepwell.cascade.features import (
    AGREEMENT,
    FEATURES,
    answer_features,
    batch_features,
    seen_features,
)
from stepwell.errors import DataError, ShapeError

PROMPTS = ["a>", "b>", "c>"]
TEXTS = {"small": ("x", "y", "z"), "middle": ("x", "no", "z"), "large": ("x", "y", "w")}
LOGPROBS = {"small": (-0.5, -1.5, -3.0), "middle": (-0.2, -2.0, -1.0), "large": (-0.1, -0.1, -0.4)}
RIGHT = ("x", "y", "w")


@pytest.fixture
def stages(answer: Callable[..., Any], scripted: Callable[..., Any]) -> list[Any]:
    """Three stages, each with one answer of two tokens to each prompt."""
    return [
        scripted(
            name,
            {
                prompt: answer(text, [logprob, logprob - 0.1])
                for prompt, text, logprob in zip(PROMPTS, TEXTS[name], LOGPROBS[name], strict=True)
            },
        )
        for name in TEXTS
    ]


def gather(stages: list[Any], **options: Any) -> Collected:
    return collect(stages, PROMPTS, lambda row, text: text == RIGHT[row], **options)


def test_every_stage_is_asked_every_prompt_and_graded(stages: list[Any]) -> None:
    told: list[str] = []
    data = gather(stages, on_stage=told.append, temperature=0.0)
    assert told == ["small", "middle", "large"]
    assert all(stage.asked == [(PROMPTS, {"temperature": 0.0})] for stage in stages)
    np.testing.assert_array_equal(data.good, [[1, 1, 1], [1, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(data.weights, [1, 1, 1])
    assert [answer.text for answer in data.answers[1]] == ["x", "no", "z"]


def test_features_are_those_of_each_answer_beside_the_one_before(stages: list[Any]) -> None:
    data = gather(stages)
    agrees = {"small": [None] * 3, "middle": [True, False, True], "large": [True, False, False]}
    for place, (name, logprobs) in enumerate(LOGPROBS.items()):
        for row, logprob in enumerate(logprobs):
            expected = answer_features([logprob, logprob - 0.1], agrees=agrees[name][row])
            np.testing.assert_allclose(data.features[row, place], expected, atol=1e-12)


def test_some_of_the_prompts_can_be_taken(stages: list[Any]) -> None:
    data = gather(stages, weights=[1.0, 2.0, 3.0])
    part = data.take(np.array([True, False, True]))
    np.testing.assert_array_equal(part.features, data.features[[0, 2]])
    np.testing.assert_array_equal(part.weights, [1.0, 3.0])
    np.testing.assert_array_equal(part.good, data.good[[0, 2]])
    assert [answer.text for answer in part.answers[2]] == ["x", "w"]
    with pytest.raises(ShapeError, match=r"weights are \[2\], expected \[3\]"):
        gather(stages, weights=[1.0, 2.0])


def test_in_each_state_only_what_was_run_is_seen() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 3, len(FEATURES)))
    for state in range(8):
        seen = seen_features(features, state)
        run = [number for number in (1, 2, 3) if state >> (number - 1) & 1]
        assert seen.shape == (4, max(run, default=0), len(FEATURES))
        for number in range(1, seen.shape[1] + 1):
            row = np.where(number in run, features[:, number - 1], np.nan)
            if number > 1 and number - 1 not in run:
                row[:, AGREEMENT] = np.nan
            np.testing.assert_array_equal(seen[:, number - 1], row)


def test_beliefs_do_not_know_the_answers_of_skipped_stages(world: Any) -> None:
    """Another answer of a stage that a state skips changes nothing there, and something elsewhere.

    The predictor by itself cannot know that agreement is about the stage before: its own paths by
    state read whether the third answer equals the second, where the second was never asked for.
    """
    data, predictor = world.data("test"), world.fitted.predictor
    other = data.features.copy()
    other[:, 1] = np.random.default_rng(1).normal(size=other[:, 1].shape)
    other[:, 2, AGREEMENT] = 1.0 - other[:, 2, AGREEMENT]  # the third is about the second
    changed = Collected(other, data.good, data.weights, data.answers)
    ours, theirs = data.paths(predictor), changed.paths(predictor)
    for state in (0, 0b001, 0b100, 0b101):
        np.testing.assert_array_equal(ours.after(state), theirs.after(state))
    for state in (0b010, 0b011, 0b110, 0b111):
        assert not np.array_equal(ours.after(state), theirs.after(state))
    naive, naive_changed = (predictor.paths_by_state(each) for each in (data.features, other))
    assert not np.array_equal(naive[:, 0b101], naive_changed[:, 0b101])


def test_features_of_many_answers_are_those_of_each() -> None:
    rng = np.random.default_rng(2)
    lengths = [*range(12), 0, 1, 40, *rng.integers(0, 9, size=50)]
    ragged = [(-np.exp(3 * rng.normal(size=length))).tolist() for length in lengths]
    ragged[20] = [-np.inf, -1.0, -2.0]
    agrees = rng.choice([0.0, 1.0, np.nan], size=len(ragged))
    together = batch_features(ragged, agrees)
    for row, logprobs, equal in zip(together, ragged, agrees, strict=True):
        alone = answer_features(logprobs, agrees=None if np.isnan(equal) else bool(equal))
        np.testing.assert_allclose(row, alone, rtol=0, atol=1e-12)
    assert batch_features([]).shape == (0, len(FEATURES))
    assert batch_features([[], []])[:, FEATURES.index("log_length")].tolist() == [0.0, 0.0]
    with pytest.raises(DataError, match="NaN"):
        batch_features([[-1.0], [-1.0, np.nan]])
