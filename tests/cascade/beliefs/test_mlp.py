"""The hidden layer: absent where nothing bends, there where something does, the same each time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stepwell.cascade.beliefs.logistic import log_loss, sigmoid
from stepwell.cascade.beliefs.mlp import Samples, Trunk, fit_trunks
from stepwell.cascade.rule.paths import FloatArray

FOLDS = 5
STEEPNESS = 2.5


def samples(num_prompts: int, seed: int, *, bent: bool = True) -> Samples:
    """One label: right where two inputs agree in sign, which no line tells; or a coin.

    Each prompt is seen as a whole, by head 1, and without its second input, by head 0.
    """
    rng = np.random.default_rng(seed)
    inputs = np.column_stack([np.ones(num_prompts), rng.normal(size=(num_prompts, 3))])
    logits = STEEPNESS * np.sign(inputs[:, 1] * inputs[:, 2]) if bent else np.zeros(num_prompts)
    good = (rng.random(num_prompts) < sigmoid(logits)).astype(float)[:, None]
    masks = np.array([[True, True, False, True], [True, True, True, True]])
    ways = np.tile([0, 1], (num_prompts, 1))
    folds = rng.permutation(num_prompts) % FOLDS
    return Samples(inputs, masks, ways, np.array([0, 1]), good, np.ones(num_prompts), folds)


def offsets(told: Samples) -> FloatArray:
    """Regressions that say 1/2, as those of a line do here."""
    return np.zeros((FOLDS + 1, *told.ways.shape, 1))


def fitted(told: Samples, seed: int = 0) -> tuple[Trunk, ...] | None:
    return fit_trunks(told, offsets(told), 16, seed)


def log_odds(trunk: Trunk, told: Samples, head: int) -> FloatArray:
    hidden = np.tanh((told.inputs * told.masks[head]) @ trunk.inner)
    said: FloatArray = (hidden @ trunk.outer[head].T)[:, 0]
    return said


@pytest.fixture(scope="module")
def trunks() -> tuple[Trunk, ...]:
    found = fitted(samples(800, seed=0))
    assert found is not None
    return found


def test_what_no_line_tells_is_learned_and_each_fold_by_layers_that_lack_it(
    trunks: tuple[Trunk, ...],
) -> None:
    told, fresh = samples(800, seed=0), samples(2_000, seed=1)
    assert len(trunks) == FOLDS + 1
    for trunk in trunks:
        right = (log_odds(trunk, fresh, 1) > 0) == (fresh.good[:, 0] == 1)
        assert right.mean() > 0.8
    ones = np.ones(2_000) / 2_000
    assert log_loss(log_odds(trunks[-1], fresh, 1), fresh.good[:, 0], ones) < 0.5
    own = [log_odds(trunk, told, 1) for trunk in trunks[:-1]]
    held_out = np.choose(told.folds, own)
    loss = log_loss(held_out, told.good[:, 0], np.ones(800) / 800)
    assert loss == pytest.approx(
        log_loss(log_odds(trunks[-1], fresh, 1), fresh.good[:, 0], ones), abs=0.06
    )


def test_a_head_that_does_not_see_an_input_does_not_use_it(trunks: tuple[Trunk, ...]) -> None:
    fresh = samples(200, seed=2)
    other = replace(fresh, inputs=fresh.inputs * [1.0, 1.0, -1.0, 1.0])
    for trunk in trunks:
        np.testing.assert_array_equal(log_odds(trunk, fresh, 0), log_odds(trunk, other, 0))
        assert not np.allclose(log_odds(trunk, fresh, 1), log_odds(trunk, other, 1))


def test_where_nothing_bends_there_is_no_layer() -> None:
    bent = sum(fitted(samples(200, seed, bent=False)) is not None for seed in range(6))
    assert bent <= 1
    assert fitted(samples(40, seed=3)) is None
    told = samples(800, seed=4)
    assert fit_trunks(told, offsets(told), 0, 0) is None


def test_what_the_regressions_say_already_is_not_learned_again() -> None:
    """The layer adds to them: where they are right, nothing is left to gain."""
    told = samples(400, seed=5)
    sure = STEEPNESS * np.sign(told.inputs[:, 1] * told.inputs[:, 2])
    said = np.broadcast_to(sure[None, :, None, None], (FOLDS + 1, 400, 2, 1))
    assert fit_trunks(told, said, 16, 0) is None


def test_the_same_seed_gives_the_same_bits_and_another_one_others(
    trunks: tuple[Trunk, ...],
) -> None:
    again, other = fitted(samples(800, seed=0)), fitted(samples(800, seed=0), seed=1)
    assert again is not None
    assert other is not None
    for one, two, three in zip(trunks, again, other, strict=True):
        np.testing.assert_array_equal(one.inner, two.inner)
        np.testing.assert_array_equal(one.outer, two.outer)
        assert not np.array_equal(one.inner, three.inner)


def test_a_prompt_without_weight_teaches_nothing() -> None:
    told, first = samples(800, seed=0), np.arange(800) < 400
    misled = replace(told, good=np.where(first[:, None], 1 - told.good, told.good))
    counted = replace(misled, counts=np.where(first, 0.0, 1.0))
    fresh = samples(2_000, seed=1)
    shares = []
    for each in (counted, misled):
        found = fitted(each)
        right = 0.5
        if found is not None:
            said = log_odds(found[-1], fresh, 1) > 0
            right = float((said == (fresh.good[:, 0] == 1)).mean())
        shares.append(right)
    assert shares[0] > 0.75
    assert shares[1] < 0.6
