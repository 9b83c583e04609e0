"""What two answers have in common: counted by hand, and bounds held against the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from stepwell.cascade.beliefs.overlap import agreement, length_ratio, total_variation, verification
from stepwell.cascade.rule.paths import FloatArray
from stepwell.cascade.stage import Reply, TopLogprobs
from stepwell.errors import DataError
from stepwell.generate.request import Completion, Usage

VOCABULARY = 12


def reply(text: str, ids: Sequence[int] = (), tops: Sequence[TopLogprobs] = ()) -> Reply:
    """An answer of these tokens; one character a token where no ids are given."""
    count = len(ids) or len(text)
    completion = Completion(text, tuple(ids), "stop", Usage(1, count), (-0.5,) * count)
    return Reply(completion, top_logprobs=tuple(tops))


def place(**chances: float) -> TopLogprobs:
    """The likeliest tokens of a place, a for 0, b for 1 and so on, with their probabilities."""
    return tuple((ord(name) - ord("a"), math.log(chance)) for name, chance in chances.items())


def test_agreement_is_of_texts_whatever_the_tokens() -> None:
    found = agreement(
        [reply("42", [7]), reply("42", [7]), reply("4")],
        [reply("42", [1, 2]), reply("41", [7]), None],
        same_ids=True,
    )
    np.testing.assert_array_equal(found, [[1.0], [0.0], [np.nan]])


def test_the_share_of_a_draft_that_stays_is_counted_in_tokens_or_in_characters() -> None:
    draft, answer = reply("abcd", [1, 2, 3, 4]), reply("abxd", [1, 2, 9, 4])
    both: tuple[list[Reply], list[Reply | None]] = ([answer], [draft])
    assert verification(*both, same_ids=True)[0, 0] == 0.5
    assert verification([reply("abcde", [5, 6])], [draft], same_ids=False)[0, 0] == 1.0
    assert verification([reply("ax", [1])], [draft], same_ids=False)[0, 0] == 0.25
    assert verification([reply("ax")], [draft], same_ids=True)[0, 0] == 0.25  # no ids are told
    assert np.isnan(verification([answer], [reply("")], same_ids=True)).all()
    assert np.isnan(verification([answer], [None], same_ids=True)).all()


def test_the_length_ratio_is_the_logarithm_of_lengths_with_one_added() -> None:
    pairs: tuple[list[Reply], list[Reply | None]] = (
        [reply("abc", [1, 2, 3]), reply(""), reply("a")],
        [reply("a", [1]), reply("ab"), None],
    )
    found = length_ratio(*pairs, same_ids=True)[:, 0]
    np.testing.assert_allclose(found[:2], [math.log(4 / 2), math.log(1 / 3)])
    assert np.isnan(found[2])
    assert length_ratio([reply("abc", [1])], [reply("a", [1])], same_ids=False) == math.log(2)


def test_variation_is_read_where_the_beginning_is_common_and_one_place_on() -> None:
    """The third place follows different tokens, so its distributions cannot be compared."""
    ours = [place(a=0.9, b=0.1), place(a=0.5, b=0.5), place(a=1.0)]
    theirs = [place(a=0.6, b=0.4), place(a=0.5, b=0.5), place(b=1.0)]
    draft, answer = reply("aba", [0, 1, 0], theirs), reply("aaa", [0, 0, 0], ours)
    found = verification([answer], [draft], same_ids=True)[0]
    np.testing.assert_allclose(found, [1 / 3, 0.15, 0.3], atol=1e-12)
    assert np.isnan(verification([answer], [draft], same_ids=False)[0, 1:]).all()
    untold = reply("aba", [0, 1, 0])
    assert np.isnan(verification([answer], [untold], same_ids=True)[0, 1:]).all()


def test_tokens_told_by_their_texts_are_compared_as_texts() -> None:
    def worded(tops: Sequence[TopLogprobs]) -> list[TopLogprobs]:
        return [tuple((f"token {token}", each) for token, each in place) for place in tops]

    ours, theirs = [place(a=0.9, b=0.1), place(a=1.0)], [place(b=0.7, a=0.3), place(c=1.0)]
    by_id = verification([reply("xy", [5, 6], ours)], [reply("xy", [5, 6], theirs)], same_ids=True)
    texts = reply("xy", [5, 6], worded(ours)), reply("xy", [5, 6], worded(theirs))
    by_text = verification([texts[0]], [texts[1]], same_ids=True)
    np.testing.assert_allclose(by_text, by_id)
    mixed = verification([texts[0]], [reply("xy", [5, 6], theirs)], same_ids=True)
    assert np.isnan(mixed[0, 1:]).all()


def told(chances: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Ids and probabilities [count, R] of the likeliest tokens of distributions [R, V]."""
    ids = np.argsort(-chances, axis=1)[:, :count]
    return ids.T.astype(np.float64), np.take_along_axis(chances, ids, axis=1).T


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("sharpness", [0.1, 1.0])
def test_what_is_told_bounds_total_variation_from_below(count: int, sharpness: float) -> None:
    """Taking a token that a side does not tell for impossible there is no bound."""
    rng = np.random.default_rng(count)
    p, q = rng.dirichlet(np.full(VOCABULARY, sharpness), size=(2, 2_000))
    truth = np.abs(p - q).sum(axis=1) / 2
    bound = total_variation(*told(p, count), *told(q, count))
    assert (bound <= truth + 1e-12).all()
    (ids, here), (other_ids, there) = told(p, count), told(q, count)
    full = np.zeros((2, 2_000, VOCABULARY))
    rows = np.arange(2_000)
    full[0, rows, ids.astype(int)], full[1, rows, other_ids.astype(int)] = here, there
    naive = np.abs(full[0] - full[1]).sum(axis=1) / 2
    assert (naive > truth + 1e-3).any()


def test_the_bound_is_exact_where_everything_is_told_and_symmetric() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(VOCABULARY), size=(2, 500))
    whole = total_variation(*told(p, VOCABULARY), *told(q, VOCABULARY))
    np.testing.assert_allclose(whole, np.abs(p - q).sum(axis=1) / 2, atol=1e-12)
    means = [total_variation(*told(p, count), *told(q, count)).mean() for count in (1, 3, 6, 9)]
    assert means == sorted(means)  # the more is told, the closer
    assert means[-1] > 0.8 * whole.mean()
    one, other = told(p, 4), told(q, 4)
    np.testing.assert_allclose(total_variation(*one, *other), total_variation(*other, *one))
    np.testing.assert_array_equal(total_variation(*one, *one), 0.0)


def test_sides_that_are_sure_of_different_tokens_vary_though_none_is_shared() -> None:
    ours, theirs = [place(a=0.9)], [place(b=0.8)]
    found = verification([reply("x", [0], ours)], [reply("y", [1], theirs)], same_ids=True)
    assert found[0, 2] == pytest.approx(0.7)  # b has at most 0.1 here, a at most 0.2 there


def test_places_that_tell_different_numbers_of_tokens_are_told_apart() -> None:
    ours = [place(a=0.5, b=0.3, c=0.2), place(a=1.0)]
    theirs = [place(a=1.0), place(a=0.5, b=0.5)]
    found = verification([reply("aa", [0, 0], ours)], [reply("aa", [0, 0], theirs)], same_ids=True)
    np.testing.assert_allclose(found[0], [1.0, 0.5, 0.5])


def test_many_pairs_at_once_are_those_of_each() -> None:
    rng = np.random.default_rng(1)

    def some(length: int) -> Reply:
        ids = rng.integers(0, 2, size=length).tolist()
        tops = [
            place(a=float(chance), b=float(1 - chance)) for chance in rng.uniform(0.1, 0.9, length)
        ]
        return reply("".join("ab"[token] for token in ids), ids, tops)

    replies = [some(length) for length in (3, 0, 8, 1, 5, 4)]
    before: list[Reply | None] = [some(length) for length in (4, 2, 8, 0, 5)]
    before.append(None)
    measures: tuple[Callable[..., Any], ...] = (agreement, length_ratio, verification)
    for measure in measures:
        together = measure(replies, before, True)
        for row, (new, old) in enumerate(zip(replies, before, strict=True)):
            np.testing.assert_allclose(together[row], measure([new], [old], True)[0])
        assert len(measure([], [], True)) == 0


def test_likeliest_tokens_that_are_not_numbers_are_refused() -> None:
    broken = [((0, math.nan), (1, -1.0))]
    with pytest.raises(DataError, match="NaN"):
        verification([reply("a", [0], broken)], [reply("a", [0], [place(a=1.0)])], same_ids=True)
