"""Scores of many texts under many interventions are those of each alone."""

from __future__ import annotations

import numpy as np
import pytest
from support import studies

from stepwell.model.interventions import Scale
from stepwell.study import question
from stepwell.study.patch import zero_heads
from stepwell.study.question import ask

TEXTS, RIGHT, WRONG = ["abcd>", "dcbag>", "hg>"], ["e", "f", "a"], ["f", "b", "c"]
TOLERANCE = 2e-5  # float32, scores of order 1


@pytest.mark.parametrize("most", [1, 13, 10_000])
def test_every_text_is_scored_by_its_own_answers_in_every_batch(gen, monkeypatch, most) -> None:
    monkeypatch.setattr(question, "BATCH_TOKENS", most)
    table = zero_heads(gen, TEXTS, right=RIGHT, wrong=WRONG)
    asked = list(zip(TEXTS, RIGHT, WRONG, strict=True))
    lost = np.array(
        [
            [
                [
                    studies.difference(gen, *one)
                    - studies.difference(gen, *one, {layer: studies.zeroed(head)})
                    for head in range(2)
                ]
                for layer in range(2)
            ]
            for one in asked
        ]
    )
    np.testing.assert_allclose(table.effects, lost.mean(0), atol=TOLERANCE)
    error = lost.std(0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(table.standard_errors, error, atol=TOLERANCE)


def test_the_last_position_is_that_of_the_text_and_not_of_the_padding(gen) -> None:
    asked = ask(gen, TEXTS, RIGHT, WRONG)
    silent = Scale(point="logits", factor=0.0, positions="last")
    before = Scale(point="logits", factor=0.0, positions=(-2,))
    plain, zeros, same = asked.scores(gen.model, [[()] * 3, [[silent]] * 3, [[before]] * 3])
    assert zeros.tolist() == [0.0] * 3
    np.testing.assert_allclose(same, plain, atol=TOLERANCE)
    assert plain.abs().min() > 10 * TOLERANCE


def test_default_answers_are_the_two_likeliest(gen) -> None:
    best = [studies.last_logits(gen, text).topk(2).indices.tolist() for text in TEXTS]
    plain = ask(gen, TEXTS)
    assert [list(pair) for pair in zip(plain.right, plain.wrong, strict=True)] == best
    second = [gen.tokenizer.token(pair[1]) for pair in best]
    turned = ask(gen, TEXTS, right=second)
    assert list(turned.wrong) == [first for first, _ in best]
