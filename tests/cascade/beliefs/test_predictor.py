"""The predictor on simulated answers: calibrated, humble without data, fast."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.simulated_answers import FEATURES, FULL, STAGES, answers, arrays_of, bent
from support.timing import fastest

from stepwell.cascade.beliefs.features import Seen, select
from stepwell.cascade.beliefs.logistic import fit_logistic, log_loss, logit, sigmoid
from stepwell.cascade.beliefs.predictor import ARRAYS, Predictor
from stepwell.cascade.rule.paths import FloatArray
from stepwell.errors import ConfigError, DataError, ShapeError


@pytest.fixture(scope="module")
def test_answers() -> tuple[Seen, FloatArray]:
    return answers(3_000, seed=100)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.fit(*answers(900, seed=0), hidden=32)


def calibration_error(beliefs: FloatArray, good: FloatArray, bins: int = 10) -> float:
    """Expected calibration error over bins of equally many prompts."""
    parts = np.array_split(np.argsort(beliefs, kind="stable"), bins)
    gaps = [abs(beliefs[rows].mean() - good[rows].mean()) * len(rows) for rows in parts]
    return float(sum(gaps) / len(beliefs))


def worst_error(beliefs: FloatArray, good: FloatArray) -> float:
    """The largest calibration error over all states and stages."""
    pairs = [(state, j) for state in range(1 << STAGES) for j in range(STAGES)]
    return max(calibration_error(beliefs[:, state, j], good[:, j]) for state, j in pairs)


def loss(beliefs: FloatArray, good: FloatArray) -> float:
    """Mean log loss over prompts, summed over stages."""
    return log_loss(logit(beliefs), good, np.ones(good.shape) / len(good))


def test_every_stage_is_calibrated_in_every_state_on_fresh_prompts(
    predictor: Predictor, test_answers: tuple[Seen, FloatArray]
) -> None:
    seen, good = test_answers
    beliefs = predictor.paths(seen)
    assert worst_error(beliefs, good) < 0.05
    geometric = seen.answers[..., FEATURES.answer_names.index("probability_geometric_mean")]
    assert worst_error(np.broadcast_to(geometric[:, None], beliefs.shape), good) > 0.1
    assert worst_error(sigmoid(2.0 * logit(beliefs)), good) > 0.07


def test_from_few_prompts_it_beats_plain_maximum_likelihood(
    test_answers: tuple[Seen, FloatArray],
) -> None:
    """Ridges, base rate and held-out curves are worth it: without them few prompts overfit."""
    (seen, good), (fresh, truth) = answers(120, seed=1), test_answers
    careful = Predictor.fit(seen, good).beliefs(fresh, FULL)
    known = FEATURES.known(FULL, STAGES)
    design, new = (
        np.column_stack([np.ones(len(each)), np.nan_to_num(each.flat()[:, known])])
        for each in (seen, fresh)
    )
    weak, none = np.full(design.shape[1], 1e-4), np.zeros(design.shape[1])
    weights = [fit_logistic(design, label, np.ones(120), weak, none) for label in good.T]
    bare = sigmoid(new @ np.transpose(weights))
    assert loss(careful, truth) < 0.8 * loss(bare, truth)
    assert calibration_error(careful[:, 0], truth[:, 0]) < calibration_error(
        bare[:, 0], truth[:, 0]
    )


def test_later_answers_rescore_earlier_ones_and_say_what_is_not_yet_run(
    predictor: Predictor, test_answers: tuple[Seen, FloatArray]
) -> None:
    seen, good = test_answers
    prompt, one, two, three = (predictor.beliefs(seen, (1 << k) - 1) for k in range(4))
    first = [loss(each[:, :1], good[:, :1]) for each in (prompt, one, two, three)]
    assert first[0] > first[1] > first[2] > first[3]
    rates = np.broadcast_to(predictor.base, good.shape)
    for j in range(STAGES):  # the prompt alone tells something, and the first answer more
        here = slice(j, j + 1)
        assert loss(prompt[:, here], good[:, here]) < loss(rates[:, here], good[:, here])
        assert loss(one[:, here], good[:, here]) < loss(prompt[:, here], good[:, here])


def scrambled(seen: Seen, run: int, seed: int) -> Seen:
    """Other numbers wherever a state does not know them."""
    rng = np.random.default_rng(seed)
    numbers = [stage for stage in range(STAGES) if run >> stage & 1]
    prompt = seen.prompt.copy()
    if 0 not in numbers:
        prompt[:, FEATURES.prompt_names.index("prompt_entropy")] = rng.normal(size=len(seen))
    answered = rng.normal(size=seen.answers.shape)
    answered[:, numbers] = seen.answers[:, numbers]
    pairs = rng.normal(size=seen.pairs.shape)
    pairs[:, numbers[1:], numbers[:-1]] = seen.pairs[:, numbers[1:], numbers[:-1]]
    return Seen(FEATURES, prompt, answered, pairs)


def test_only_what_was_seen_counts(predictor: Predictor) -> None:
    """Nothing of a stage that was skipped, nor what a later answer has in common with its one."""
    seen, _ = answers(20, seed=2)
    beliefs = predictor.paths(seen)
    for state in range(8):
        changed = predictor.paths(scrambled(seen, state, seed=3))
        for other in range(8):
            same = np.array_equal(changed[:, other], beliefs[:, other])
            told, held = (FEATURES.known(each, STAGES) for each in (other, state))
            assert same == (told <= held).all()


def test_after_a_skip_agreement_is_with_the_last_answer_before(predictor: Predictor) -> None:
    seen, _ = answers(40, seed=4)
    agrees = FEATURES.pair_names.index("agreement")
    with_first, with_second = seen.pairs.copy(), seen.pairs.copy()
    with_first[:, 2, 0, agrees] = 1.0 - with_first[:, 2, 0, agrees]
    with_second[:, 2, 1, agrees] = 1.0 - with_second[:, 2, 1, agrees]
    first, second = replace(seen, pairs=with_first), replace(seen, pairs=with_second)
    for state, told, untold in ((0b101, first, second), (0b110, second, first)):
        ours = predictor.beliefs(seen, state)
        assert not np.allclose(predictor.beliefs(told, state), ours)
        np.testing.assert_array_equal(predictor.beliefs(untold, state), ours)


def test_one_prompt_at_a_time_equals_all_at_once(predictor: Predictor) -> None:
    seen, _ = answers(20, seed=5)
    beliefs = predictor.paths(seen)
    for state in range(8):
        for row in range(5):
            alone = predictor.beliefs(seen.take(np.array([row])), state)
            np.testing.assert_allclose(alone[0], beliefs[row, state], rtol=1e-12)


def test_where_truth_bends_so_do_beliefs() -> None:
    (seen, good), (fresh, truth) = bent(800, seed=0), bent(4_000, seed=1)
    ours = Predictor.fit(seen, good, hidden=16)
    straight = Predictor.fit(seen, good, hidden=0)
    assert ours.inner.shape[1] == 16
    assert loss(ours.beliefs(fresh, 1), truth) < 0.4
    assert loss(straight.beliefs(fresh, 1), truth) > 0.65
    assert calibration_error(ours.beliefs(fresh, 1)[:, 0], truth[:, 0]) < 0.05


def test_noise_for_features_leaves_the_base_rate() -> None:
    rng = np.random.default_rng(6)
    features = select(["logprobs"])

    def noise(num_prompts: int) -> Seen:
        pairs = np.empty((num_prompts, 2, 2, 0))
        return Seen(features, pairs[:, 0, 0], rng.normal(size=(num_prompts, 2, 7)), pairs)

    good = (rng.random((400, 2)) < [0.3, 0.8]).astype(float)
    beliefs = Predictor.fit(noise(400), good).paths(noise(300))
    np.testing.assert_allclose(beliefs, np.broadcast_to([0.3, 0.8], beliefs.shape), atol=0.12)


def test_with_no_or_one_kind_of_label_it_still_answers() -> None:
    seen, good = answers(60, seed=7)
    none = np.arange(0)
    empty = Predictor.fit(seen.take(none), good[none]).paths(seen)
    np.testing.assert_array_equal(empty, np.full((60, 8, 3), 0.5))
    one = Predictor.fit(seen.take(np.arange(1)), good[:1]).paths(seen)
    np.testing.assert_allclose(one, np.broadcast_to((good[:1] + 0.5) / 2, one.shape), atol=1e-6)
    sure = Predictor.fit(seen, np.ones_like(good)).paths(seen)
    assert (sure > 0.97).all()
    assert (sure < 1.0).all()


def test_a_weight_counts_as_so_many_prompts() -> None:
    seen, good = answers(200, seed=8)
    weights = np.where(good[:, 0] == 1, 3.0, 1.0)
    base = Predictor.fit(seen, good, weights, hidden=0).base[0]
    assert base == pytest.approx((weights @ good[:, 0]) / weights.sum(), abs=0.005)
    assert Predictor.fit(seen, good, hidden=0).base[0] == pytest.approx(
        good[:, 0].mean(), abs=0.005
    )


def test_unknown_features_count_as_average_and_one_far_out_as_four_deviations(
    predictor: Predictor,
) -> None:
    seen, _ = answers(1, seed=9)
    width = seen.prompt.shape[1]
    where = slice(width, width + seen.answers.shape[2])  # the first stage's, in Seen.flat
    centre, scale = predictor.standards.centre[where], predictor.standards.scale[where]

    def first_answer(values: FloatArray) -> FloatArray:
        changed = seen.answers.copy()
        changed[:, 0] = values
        return predictor.beliefs(replace(seen, answers=changed), 0b001)

    unknown = first_answer(np.full(len(centre), np.nan))
    np.testing.assert_allclose(unknown, first_answer(centre))
    assert np.isfinite(unknown).all()
    edge = first_answer(centre + 4.0 * scale)
    np.testing.assert_allclose(first_answer(centre + 1e9 * scale), edge)
    assert not np.allclose(edge, unknown)


def test_more_than_four_stages_share_heads_and_see_only_what_was_run() -> None:
    rng = np.random.default_rng(10)
    features = select(["agreement", "margin"])
    difficulty, reach = rng.normal(size=1_000), np.linspace(-1.0, 2.0, 5)
    good = (rng.random((1_000, 5)) < sigmoid(2.0 * (reach - difficulty[:, None]))).astype(float)
    margins = good[..., None] + rng.normal(size=(1_000, 5, 2))
    pairs = (good[:, :, None] == good[:, None, :])[..., None].astype(float)
    seen = Seen(features, np.empty((1_000, 0)), margins, pairs)
    learns, rest = np.arange(300), np.arange(300, 1_000)
    predictor = Predictor.fit(seen.take(learns), good[learns], hidden=8)
    assert len(predictor.heads) == 6
    fresh, truth = seen.take(rest), good[rest]
    for state in (0b10101, 0b11111, 0b00110):
        beliefs = predictor.beliefs(fresh, state)
        assert loss(beliefs, truth) < loss(np.broadcast_to(predictor.base, truth.shape), truth)
    other = fresh.answers.copy()
    other[:, 1] += 1.0
    changed = replace(fresh, answers=other)
    for state, same in ((0b10101, True), (0b10111, False)):
        pair = predictor.beliefs(fresh, state), predictor.beliefs(changed, state)
        assert np.array_equal(*pair) == same


def test_beliefs_cost_far_less_than_a_token(predictor: Predictor) -> None:
    """Some 60 microseconds where nothing else runs."""
    seen, _ = answers(1, seed=11)
    assert fastest(lambda: predictor.beliefs(seen, FULL), enough=1e-4, calls=20) < 1e-4


def test_fitting_takes_seconds() -> None:
    data = answers(700, seed=12)
    assert fastest(lambda: Predictor.fit(*data), enough=6.0) < 6.0


# Bits.


def test_the_same_seed_gives_the_same_bits_on_any_number_of_threads(tmp_path: Path) -> None:
    data, threads = answers(120, seed=13), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        one = arrays_of(Predictor.fit(*data, hidden=8), tmp_path)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert arrays_of(Predictor.fit(*data, hidden=8), tmp_path) == one
    finally:
        torch.set_num_threads(threads)
    assert arrays_of(Predictor.fit(*data, hidden=8, seed=1), tmp_path) != one


@pytest.mark.slow
def test_processes_with_one_and_with_many_threads_learn_the_same_bits(tmp_path: Path) -> None:
    """numpy's own threads are set when it is loaded."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.path.insert(0, sys.argv[2])\n"
        "import test_predictor as t; t.Predictor.fit(*t.answers(900, 0)).save(sys.argv[3])"
    )
    here, shared = Path(__file__).parent, Path(__file__).parents[2]
    found = []
    for threads in ("1", "2", "4"):
        target = tmp_path / threads
        paths = str(shared), str(here), str(target)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", program, *paths], env=environment, check=True)
        found.append((target / ARRAYS).read_bytes())
    assert found[0] == found[1] == found[2]


def test_wrong_shapes_and_numbers_are_typed_errors(predictor: Predictor) -> None:
    seen, good = answers(5, seed=16)
    with pytest.raises(ShapeError, match="expected"):
        Predictor.fit(seen, good[:, :2])
    with pytest.raises(DataError, match="between 0 and 1"):
        Predictor.fit(seen, good * np.nan)
    with pytest.raises(ShapeError, match="weights"):
        Predictor.fit(seen, good, [1.0])
    with pytest.raises(DataError, match="weights"):
        Predictor.fit(seen, good, [-1.0] * 5)
    with pytest.raises(ConfigError, match="hidden"):
        Predictor.fit(seen, good, hidden=-1)
    with pytest.raises(ShapeError, match="state"):
        predictor.beliefs(seen, 8)
    with pytest.raises(ShapeError, match="of 1 stages"):
        predictor.beliefs(bent(2, seed=0)[0], 1)
