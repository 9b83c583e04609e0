"""The thin predictor on simulated answers: calibrated, humble without data, fast, kept on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.timing import fastest

from stepwell.cascade.features import FEATURES, answer_features, batch_features
from stepwell.cascade.logistic import fit_logistic, log_loss, logit, sigmoid
from stepwell.cascade.paths import FloatArray
from stepwell.cascade.predictor import Predictor
from stepwell.errors import DataError, FormatError, ShapeError

STAGES = 3


def answers(num_prompts: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Features [N, 3, F] and labels [N, 3]: right answers have rather higher log-probabilities."""
    rng = np.random.default_rng(seed)
    difficulty = rng.random(num_prompts)
    chance = sigmoid(8.0 * (np.array([0.35, 0.6, 0.85]) - difficulty[:, None]))
    good = (rng.random(chance.shape) < chance).astype(float)
    features = np.empty((num_prompts, STAGES, len(FEATURES)))
    for row in range(num_prompts):
        for stage in range(STAGES):
            sure = 0.6 * good[row, stage] + chance[row, stage] + rng.normal(scale=0.6)
            logprobs = -np.exp(rng.normal(size=rng.integers(2, 9)) - 1.0 - sure)
            same = stage and good[row, stage] == good[row, stage - 1] and rng.random() < 0.8
            features[row, stage] = answer_features(logprobs, agrees=bool(same) if stage else None)
    return features, good


@pytest.fixture(scope="module")
def test_answers() -> tuple[FloatArray, FloatArray]:
    return answers(4_000, seed=100)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.fit(*answers(3_000, seed=0))


def calibration_error(beliefs: FloatArray, good: FloatArray, bins: int = 10) -> float:
    """Expected calibration error over bins of equally many prompts."""
    parts = np.array_split(np.argsort(beliefs, kind="stable"), bins)
    gaps = [abs(beliefs[rows].mean() - good[rows].mean()) * len(rows) for rows in parts]
    return float(sum(gaps) / len(beliefs))


def worst_error(beliefs: FloatArray, good: FloatArray) -> float:
    """The largest calibration error over all pairs of k >= 1 and j."""
    pairs = [(k, j) for k in range(1, STAGES + 1) for j in range(STAGES)]
    return max(calibration_error(beliefs[:, k, j], good[:, j]) for k, j in pairs)


def total_loss(beliefs: FloatArray, good: FloatArray) -> float:
    """Mean log loss over prompts, for all pairs together."""
    ones = np.ones(len(good)) / len(good)
    pairs = [(k, j) for k in range(1, STAGES + 1) for j in range(STAGES)]
    return sum(log_loss(logit(beliefs[:, k, j]), good[:, j], ones) for k, j in pairs)


def test_every_pair_is_calibrated_on_fresh_prompts(
    predictor: Predictor, test_answers: tuple[FloatArray, FloatArray]
) -> None:
    features, good = test_answers
    beliefs = predictor.paths(features)
    assert worst_error(beliefs, good) < 0.035
    naive = np.broadcast_to(
        features[:, None, :, FEATURES.index("probability_geometric_mean")], beliefs.shape
    )
    assert worst_error(naive, good) > 0.1
    sharpened = sigmoid(2.0 * logit(beliefs))
    assert worst_error(sharpened, good) > 0.06


def test_from_few_prompts_it_beats_plain_maximum_likelihood(
    test_answers: tuple[FloatArray, FloatArray],
) -> None:
    """Ridge, base rate and held-out slope are worth it: without them few prompts overfit."""
    features, good = answers(120, seed=1)
    fresh, truth = test_answers
    careful = Predictor.fit(features, good).paths(fresh)
    bare = np.full(careful.shape, 0.5)
    known = np.nan_to_num(features), np.nan_to_num(fresh)
    for k in range(1, STAGES + 1):
        seen, new = (
            np.column_stack([np.ones(len(rows)), rows[:, :k].reshape(len(rows), -1)])
            for rows in known
        )
        for j in range(STAGES):
            none, weak = np.zeros(seen.shape[1]), np.full(seen.shape[1], 1e-4)
            weights = fit_logistic(seen, good[:, j], np.ones(len(seen)), weak, none)
            bare[:, k, j] = sigmoid(new @ weights)
    assert total_loss(careful, truth) < 0.8 * total_loss(bare, truth)
    assert worst_error(careful, truth) < worst_error(bare, truth)


def test_later_answers_rescore_earlier_ones(
    predictor: Predictor, test_answers: tuple[FloatArray, FloatArray]
) -> None:
    features, good = test_answers
    beliefs = predictor.paths(features)
    ones = np.ones(len(good)) / len(good)
    losses = [log_loss(logit(beliefs[:, k, 0]), good[:, 0], ones) for k in range(4)]
    assert losses[0] > losses[1] > losses[2] > losses[3]
    for j in range(STAGES):  # what is not yet run is predicted better than by its base rate
        before = log_loss(logit(beliefs[:, 0, j]), good[:, j], ones)
        assert log_loss(logit(beliefs[:, 1, j]), good[:, j], ones) < before


def test_only_what_was_seen_counts(predictor: Predictor) -> None:
    features, _ = answers(20, seed=2)
    beliefs = predictor.paths(features)
    rng = np.random.default_rng(3)
    for k in range(STAGES):
        other = features.copy()
        other[:, k:] = rng.normal(size=other[:, k:].shape)
        changed = predictor.paths(other)
        np.testing.assert_array_equal(changed[:, : k + 1], beliefs[:, : k + 1])
        assert not np.array_equal(changed[:, k + 1], beliefs[:, k + 1])


def test_one_prompt_at_a_time_equals_all_at_once(predictor: Predictor) -> None:
    features, _ = answers(20, seed=4)
    beliefs = predictor.paths(features)
    for k in range(STAGES + 1):
        np.testing.assert_allclose(predictor.beliefs(features[:, :k], k), beliefs[:, k], rtol=1e-12)
        for row in range(5):
            alone = predictor.beliefs(features[row, :k], k)
            np.testing.assert_allclose(alone, beliefs[row, k], rtol=1e-12)


def test_shrinkage_vanishes_with_plenty_like_it_and_is_the_base_rate_with_none(
    predictor: Predictor,
) -> None:
    heads, base = predictor.heads[0], predictor.base
    plain = replace(heads, curves=np.ones((STAGES, 1)))
    inputs = np.random.default_rng(5).normal(size=(50, len(FEATURES)))
    design = np.column_stack([np.ones(50), inputs])
    raw = sigmoid(design @ heads.weights.T)
    plenty = replace(plain, spread=heads.spread * 1e-9).beliefs(design, base)
    none = replace(plain, spread=heads.spread * 1e12).beliefs(design, base)
    np.testing.assert_allclose(plenty, raw, atol=1e-6)
    np.testing.assert_allclose(none, np.broadcast_to(base, none.shape), atol=1e-6)
    between = np.abs(plain.beliefs(design, base) - base)
    assert (between <= np.abs(raw - base) + 1e-12).all()
    typical = np.append(1.0, np.zeros(len(FEATURES)))
    odd = np.append(1.0, np.full(len(FEATURES), 4.0))
    like = [1.0 / (x @ heads.spread @ x) for x in (typical, odd)]
    assert like[0] > 20 * like[1]


def test_noise_for_features_leaves_the_base_rate() -> None:
    rng = np.random.default_rng(6)
    features = rng.normal(size=(400, 2, 5))
    good = (rng.random((400, 2)) < [0.3, 0.8]).astype(float)
    beliefs = Predictor.fit(features, good).paths(rng.normal(size=(300, 2, 5)))
    np.testing.assert_allclose(beliefs, np.broadcast_to([0.3, 0.8], beliefs.shape), atol=0.12)


def test_with_no_or_one_kind_of_label_it_still_answers() -> None:
    features, good = answers(30, seed=7)
    empty = Predictor.fit(features[:0], good[:0]).paths(features)
    np.testing.assert_array_equal(empty, np.full((30, 4, 3), 0.5))
    one = Predictor.fit(features[:1], good[:1]).paths(features)
    expected = np.broadcast_to((good[:1] + 0.5) / 2, one.shape)
    np.testing.assert_allclose(one, expected, atol=1e-6)
    sure = Predictor.fit(features, np.ones_like(good)).paths(features)
    assert (sure > 0.97).all()
    assert (sure < 1.0).all()


def test_a_weight_counts_as_so_many_prompts() -> None:
    rng = np.random.default_rng(8)
    features = rng.normal(size=(200, 1, 1))
    good = (rng.random((200, 1)) < 0.5).astype(float)
    weights = np.where(good[:, 0] == 1, 3.0, 1.0)
    base = Predictor.fit(features, good, weights).base[0]
    share = (weights @ good[:, 0]) / weights.sum()
    assert base == pytest.approx(share, abs=0.005)
    assert Predictor.fit(features, good).base[0] == pytest.approx(good.mean(), abs=0.005)


def test_unknown_features_count_as_average(predictor: Predictor) -> None:
    features, _ = answers(1, seed=9)
    skipped, average = features[0, :2].copy(), features[0, :2].copy()
    skipped[0], average[0] = np.nan, predictor.centre[0]
    np.testing.assert_allclose(predictor.beliefs(skipped, 2), predictor.beliefs(average, 2))
    assert np.isfinite(predictor.beliefs(skipped, 2)).all()


def test_a_feature_far_out_counts_no_more_than_one_four_deviations_out(
    predictor: Predictor,
) -> None:
    edge = predictor.centre[:1] + 4.0 * predictor.scale[:1]
    beyond = predictor.centre[:1] + 1e9 * predictor.scale[:1]
    np.testing.assert_allclose(predictor.beliefs(beyond, 1), predictor.beliefs(edge, 1))


def test_after_a_skip_only_the_stages_run_count(predictor: Predictor) -> None:
    features, _ = answers(30, seed=14)
    by_state, by_stage = predictor.paths_by_state(features), predictor.paths(features)
    assert by_state.shape == (30, 8, 3)
    for k in range(4):
        np.testing.assert_array_equal(by_state[:, 2**k - 1], by_stage[:, k])
    other = features.copy()
    other[:, 0] += 1.0
    changed = predictor.paths_by_state(other)
    for state in range(8):
        assert np.array_equal(changed[:, state], by_state[:, state]) == (state % 2 == 0)


def test_beliefs_cost_far_less_than_a_token(predictor: Predictor) -> None:
    """Some 50 microseconds where nothing else runs."""
    features, _ = answers(1, seed=10)
    assert fastest(lambda: predictor.beliefs(features[0], 3), enough=2e-4, calls=20) < 2e-4


def test_disk_gives_back_the_same_beliefs_and_refuses_what_it_cannot_read(
    predictor: Predictor, tmp_path: Path
) -> None:
    features, good = answers(50, seed=11)
    path = tmp_path / "predictor.json"
    predictor.save(path)
    np.testing.assert_array_equal(Predictor.load(path).paths(features), predictor.paths(features))
    again = Predictor.fit(features, good).paths(features)
    np.testing.assert_array_equal(again, Predictor.fit(features, good).paths(features))
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, "format_version": 99}))
    with pytest.raises(FormatError, match="99"):
        Predictor.load(path)
    for damaged in ("{", json.dumps({**plain, "base": "x"}), json.dumps({**plain, "heads": []})):
        path.write_text(damaged)
        with pytest.raises(DataError):
            Predictor.load(path)
    with pytest.raises(DataError, match="cannot be read"):
        Predictor.load(tmp_path / "missing.json")


def test_wrong_shapes_are_typed_errors(predictor: Predictor) -> None:
    features, good = answers(5, seed=12)
    with pytest.raises(ShapeError, match="expected"):
        Predictor.fit(features, good[:, :2])
    with pytest.raises(ShapeError, match="weights"):
        Predictor.fit(features, good, [1.0])
    with pytest.raises(DataError, match="weights"):
        Predictor.fit(features, good, [-1.0] * 5)
    with pytest.raises(ShapeError, match="so far"):
        predictor.beliefs(features[0], 2)
    with pytest.raises(ShapeError, match="features"):
        predictor.paths(features[:, :2])


def test_newton_finds_the_minimum() -> None:
    """The gradient of the objective vanishes there, by finite differences."""
    rng = np.random.default_rng(13)
    design, labels = rng.normal(size=(40, 3)), rng.random(40)
    weights, ridge, start = rng.random(40), np.array([0.1, 1.0, 3.0]), rng.normal(size=3)

    def objective(beta: FloatArray) -> float:
        return log_loss(design @ beta, labels, weights) + ridge @ (beta - start) ** 2 / 2

    found = fit_logistic(design, labels, weights, ridge, start)
    for direction in np.eye(3) * 1e-5:
        slope = (objective(found + direction) - objective(found - direction)) / 2e-5
        assert abs(slope) < 1e-5
        assert objective(found + 100 * direction) > objective(found)
    # Plain Newton steps swing between two far sides here for ever.
    steep = fit_logistic(np.ones((1, 1)), np.zeros(1), np.ones(1), np.full(1, 1e-3), np.full(1, 20))
    assert sigmoid(steep)[0] == pytest.approx(1e-3 * (20 - steep[0]), rel=1e-3)
    separable = np.array([[-1.0], [1.0]])
    far = fit_logistic(separable, np.array([0.0, 1.0]), np.ones(2), np.full(1, 1e-8), np.zeros(1))
    assert np.isfinite(far).all()
    assert far[0] > 5


# Features.


def test_features_of_an_answer_by_hand() -> None:
    logprobs = [-0.5, -0.1, -2.0, -0.2, -0.3]
    row = dict(
        zip(FEATURES, answer_features(logprobs, margins=[3, 1, 2, 2, 2], agrees=True), strict=True)
    )
    assert row["logprob_minimum"] == -2.0
    assert row["logprob_median"] == pytest.approx(-0.3)
    assert row["logprob_quantile_25"] == pytest.approx(np.quantile(logprobs, 0.25))
    assert row["logprob_quantile_10"] == pytest.approx(np.quantile(logprobs, 0.1))
    assert row["logprob_mean"] == pytest.approx(-0.62)
    assert row["probability_minimum"] == pytest.approx(np.exp(-2.0))
    assert row["probability_geometric_mean"] == pytest.approx(np.exp(-0.62))
    assert row["log_length"] == pytest.approx(np.log(6))
    assert (row["margin_minimum"], row["margin_mean"], row["agreement"]) == (1.0, 2.0, 1.0)


def test_quantiles_do_not_move_with_length_and_sums_do() -> None:
    once = np.array([-0.5, -0.1, -2.0, -0.2, -0.3, -0.3, -0.1])
    short, long = answer_features(once), answer_features(np.tile(once, 8))
    shifts = np.abs(long - short)
    for name in ("logprob_minimum", "logprob_median", "logprob_mean"):
        assert shifts[FEATURES.index(name)] < 1e-12
    assert abs(8 * once.sum() - once.sum()) > 10


def test_features_of_empty_impossible_and_broken_answers() -> None:
    empty = answer_features([])
    assert empty[FEATURES.index("log_length")] == 0.0
    assert np.isnan(np.delete(empty, FEATURES.index("log_length"))).all()
    assert np.isfinite(answer_features([-np.inf, -1.0])[:8]).all()
    with pytest.raises(DataError, match="NaN"):
        answer_features([-1.0, float("nan")])
    with pytest.raises(ShapeError, match="margins"):
        answer_features([-1.0, -2.0], margins=[1.0])
    batch = batch_features([[-1.0], []], np.array([1.0, np.nan]))
    np.testing.assert_array_equal(batch, [answer_features([-1.0], agrees=True), empty])
