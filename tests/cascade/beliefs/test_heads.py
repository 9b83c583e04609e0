"""A head: shrinkage that data outweighs, and what is learned without a fold predicting it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stepwell.cascade.beliefs.heads import Head, Regressions, Rows, fit_head
from stepwell.cascade.beliefs.logistic import fit_logistic, sigmoid
from stepwell.cascade.beliefs.mlp import Trunk
from stepwell.cascade.rule.paths import FloatArray

BASE = np.array([0.3, 0.8])
FOLDS = 5


def lessons(num_rows: int, seed: int, inputs: int = 6) -> Rows:
    """Rows whose first input tells the first label; the second label cannot be told."""
    rng = np.random.default_rng(seed)
    design = np.column_stack([np.ones(num_rows), rng.normal(size=(num_rows, inputs))])
    chance = np.column_stack([sigmoid(2.0 * design[:, 1] - 1.0), np.full(num_rows, 0.8)])
    good = (rng.random(chance.shape) < chance).astype(float)
    used, folds = np.arange(1 + inputs), np.arange(num_rows) % FOLDS
    return Rows(design, used, good, np.ones(num_rows), folds)


def head_of(rows: Rows) -> Head:
    regressions = Regressions.fit(rows, BASE, FOLDS)
    none = (Trunk.none(rows.inputs.shape[1], 1, 2),) * (FOLDS + 1)
    return fit_head(rows, regressions, none, 0, BASE)


@pytest.fixture(scope="module")
def head() -> Head:
    return head_of(lessons(600, seed=0))


def test_shrinkage_vanishes_with_plenty_like_it_and_is_the_base_rate_with_none(head: Head) -> None:
    plain = replace(head, curves=np.ones((2, 1)))
    design = lessons(50, seed=1).inputs
    raw = sigmoid(design @ head.weights.T)
    plenty = replace(plain, spread=head.spread * 1e-9).beliefs(design, BASE)
    none = replace(plain, spread=head.spread * 1e12).beliefs(design, BASE)
    np.testing.assert_allclose(plenty, raw, atol=1e-5)
    np.testing.assert_allclose(none, np.broadcast_to(BASE, none.shape), atol=1e-5)
    between = np.abs(plain.beliefs(design, BASE) - BASE)
    assert (between <= np.abs(raw - BASE) + 1e-12).all()


def test_a_prompt_far_from_all_seen_has_fewer_like_it(head: Head) -> None:
    typical, odd = np.append(1.0, np.zeros(6)), np.append(1.0, np.full(6, 4.0))
    like = [1.0 / (x @ head.spread @ x) for x in (typical, odd)]
    assert like[0] > 3 * like[1]


def test_where_inputs_say_nothing_the_base_rate_is_strong(head: Head) -> None:
    assert head.strength[0] < 10.0
    assert head.strength[1] > 10 * head.strength[0]


def test_a_fold_is_predicted_by_what_was_learned_without_it() -> None:
    """Other labels in a fold change nothing that is learned without it, and all that is with it."""
    rows = lessons(300, seed=2)
    other = replace(rows, good=np.where(rows.folds[:, None] == 3, 1.0 - rows.good, rows.good))
    ours, theirs = (Regressions.fit(each, BASE, FOLDS) for each in (rows, other))
    for fold in range(FOLDS + 1):
        same = np.allclose(ours.weights[fold], theirs.weights[fold], atol=1e-3)
        assert same == (fold == 3)


def test_beliefs_are_calibrated_though_inputs_are_many() -> None:
    """Plain maximum likelihood, which knows no row held out, is far too sure of itself."""
    rows, fresh = lessons(150, seed=3, inputs=40), lessons(4_000, seed=4, inputs=40)
    found = head_of(rows).beliefs(fresh.inputs, BASE)[:, 0]
    none, weak = np.zeros(41), np.full(41, 1e-4)
    bare = fit_logistic(rows.inputs, rows.good[:, 0], rows.counts, weak, none)

    def gap(beliefs: FloatArray) -> float:
        parts = np.array_split(np.argsort(beliefs), 10)
        pairs = [(beliefs[part].mean(), fresh.good[part, 0].mean()) for part in parts]
        return float(np.mean([abs(believed - true) for believed, true in pairs]))

    assert gap(found) < 0.06
    assert gap(sigmoid(fresh.inputs @ bare)) > 0.12
