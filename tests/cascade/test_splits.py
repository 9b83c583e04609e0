"""Splits by what prompts say: disjoint, stable, repeats together; and which prompts were used."""

from __future__ import annotations

import numpy as np
import pytest

from stepwell.cascade.splits import UsedPrompts, splits
from stepwell.errors import ConfigError, DataError

SHARES = {"predictor": 0.5, "calibration": 0.3, "test": 0.2}
PROMPTS = [f"what is {number}?" for number in range(4_000)]


def test_every_prompt_is_in_one_split_and_splits_have_about_their_shares() -> None:
    dealt = splits(PROMPTS, SHARES)
    assert list(dealt) == list(SHARES)
    assert sorted(np.concatenate(list(dealt.values()))) == list(range(4_000))
    for name, share in SHARES.items():
        assert len(dealt[name]) == pytest.approx(4_000 * share, abs=4 * 4_000**0.5 / 2)
        assert (np.diff(dealt[name]) > 0).all()


def test_repeats_go_together_and_the_same_text_never_lies_in_two_splits() -> None:
    """Dealing in turn, as the control does, tears repeats apart."""
    repeated = [*PROMPTS[:301], *PROMPTS[:301]]
    said = [{repeated[row] for row in rows} for rows in splits(repeated, SHARES).values()]
    assert sum(map(len, said)) == len(set.union(*said)) == 301
    in_turn = [set(repeated[start::3]) for start in range(3)]
    assert sum(map(len, in_turn)) > 301


def test_a_prompt_stays_where_it_is_whatever_else_is_dealt_out() -> None:
    few, many = splits(PROMPTS[:100], SHARES), splits(PROMPTS, SHARES)
    for name in SHARES:
        np.testing.assert_array_equal(few[name], many[name][many[name] < 100])
    backward = splits(PROMPTS[::-1], SHARES)
    assert {3_999 - row for row in backward["test"]} == set(many["test"])


def test_shares_are_relative_and_must_be_positive() -> None:
    ten = {name: 10 * share for name, share in SHARES.items()}
    for name, rows in splits(PROMPTS[:200], ten).items():
        np.testing.assert_array_equal(rows, splits(PROMPTS[:200], SHARES)[name])
    assert [len(rows) for rows in splits([], SHARES).values()] == [0, 0, 0]
    for shares in ({}, {"a": 0.0}, {"a": 1.0, "b": -1.0}, {"a": float("nan")}):
        with pytest.raises(ConfigError, match="expected positive"):
            splits(PROMPTS, shares)


def test_used_prompts_are_known_again_one_by_one() -> None:
    one, other = UsedPrompts.of(PROMPTS[:50]), UsedPrompts.of(PROMPTS[40:90])
    assert (len(one), one.shared(other), other.shared(one)) == (50, 10, 10)
    assert one.shared(UsedPrompts.of(PROMPTS[100:])) == 0
    assert UsedPrompts.of([*PROMPTS[:50], PROMPTS[0]]) == one
    assert UsedPrompts.of(PROMPTS[:50][::-1]).digest == one.digest != other.digest
    with pytest.raises(DataError, match="digits"):
        UsedPrompts(("12",))
