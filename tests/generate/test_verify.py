"""Rows that are verified: each as if alone, and what becomes of unsound logits."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.errors import ShapeError
from stepwell.generate import noise, verify
from stepwell.generate.noise import Address, Purpose, lane_of
from stepwell.generate.request import SamplingParams
from stepwell.generate.sampling import process, sample
from stepwell.generate.verify import (
    NO_TOKEN,
    verify_by_equality,
    verify_by_rejection,
)

NAN, OUT = float("nan"), float("-inf")
PROMPT = (0, 2)
TARGET, DRAFTER = lane_of("a target"), lane_of("a drafter")


def addresses(texts, lane=TARGET, purpose=Purpose.SAMPLE):
    return [
        Address(11, lane, row, len(PROMPT) + len(text), purpose) for row, text in enumerate(texts)
    ]


def outcomes(result):
    """How many tokens stay and which comes next, row by row."""
    return list(zip(result.num_accepted.tolist(), result.next_ids.tolist(), strict=True))


SETTINGS = [
    SamplingParams(),
    SamplingParams(temperature=0.7, top_k=9),
    SamplingParams(top_p=0.8, min_p=0.02),
    SamplingParams(temperature=0),
]
WIDTH = 900
each_setting = pytest.mark.parametrize("params", SETTINGS, ids=["plain", "k", "p", "greedy"])


def at(count, **fields):
    return [Address(5, TARGET, row, 17 + 3 * row, **fields) for row in range(count)]


LENGTHS = [3, 0, 5, 1, 0, 2, 7, 4, 1, 6]


def a_batch(params, lengths=LENGTHS, seed=0):
    """Logits of a target and a like-minded drafter, and drafts of which some are right."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(sum(lengths) + len(lengths), WIDTH, generator=generator) * 5
    target = process(raw, params)
    like_minded = process(raw + torch.randn(raw.shape, generator=generator), params)
    rows = [row for row, count in enumerate(lengths) for _ in range(count)]
    drafter = like_minded[[place + row for place, row in enumerate(rows)]]
    places = [
        place._replace(position=place.position + offset)
        for place, count in zip(at(len(lengths)), lengths, strict=True)
        for offset in range(count)
    ]
    tokens = iter(sample(drafter, params, places).tolist() if places else [])
    return target, [list(itertools.islice(tokens, n)) for n in lengths], drafter


def split(tensor, counts):
    return torch.split(tensor, list(counts))


RULES = {
    "equality": lambda target, drafts, params, places, _: verify_by_equality(
        target, drafts, params, places
    ),
    "rejection": verify_by_rejection,
    "rejection of a point": lambda target, drafts, params, places, _: verify_by_rejection(
        target, drafts, params, places
    ),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@each_rule
@each_setting
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=7), seed=st.integers(0, 99))
def test_a_row_comes_out_the_same_alone_and_in_any_batch(rule, params, lengths, seed):
    target, drafts, drafter = a_batch(params, lengths, seed)
    places = at(len(lengths))
    together = outcomes(rule(target, drafts, params, places, drafter))
    parts = zip(
        split(target, [count + 1 for count in lengths]),
        drafts,
        places,
        split(drafter, lengths),
        strict=True,
    )
    alone = [
        outcomes(rule(rows, [draft], params, [place], own))[0] for rows, draft, place, own in parts
    ]
    assert together == alone


@each_rule
@each_setting
@pytest.mark.parametrize("spoilt", [NAN, float("inf"), OUT], ids=["nan", "inf", "none left"])
def test_a_row_without_sound_logits_is_named_and_harms_no_other(rule, params, spoilt):
    target, drafts, drafter = a_batch(params)
    sound = outcomes(rule(target, drafts, params, at(10), drafter))
    firsts = [sum(LENGTHS[:row]) + row for row in range(10)]
    broken = target.clone()
    for row in (2, 4, 9):  # at its first decision, and at the only one there is
        broken[firsts[row]] = spoilt
    found = rule(broken, drafts, params, at(10), drafter)
    assert found.failed == (2, 4, 9)
    for row, (count, token) in enumerate(outcomes(found)):
        assert (count, token) == ((0, NO_TOKEN) if row in found.failed else sound[row])


@each_rule
@each_setting
def test_what_was_accepted_before_unsound_logits_stays(rule, params):
    target, drafts, drafter = a_batch(params)
    sound = rule(target, drafts, params, at(10), drafter)
    row = int(sound.num_accepted.argmax())
    count = int(sound.num_accepted[row])
    assert count > 1
    first = sum(LENGTHS[:row]) + row
    target[first + 1] = NAN
    found = rule(target, drafts, params, at(10), drafter)
    assert found.failed == (row,)
    assert outcomes(found)[row] == (1, NO_TOKEN)


@each_rule
@each_setting
def test_unsound_logits_after_the_first_rejection_are_never_looked_at(rule, params):
    target, drafts, drafter = a_batch(params)
    sound = rule(target, drafts, params, at(10), drafter)
    counts = sound.num_accepted.tolist()
    rejected = [row for row in range(10) if counts[row] < LENGTHS[row]]
    assert rejected
    for row in rejected:
        first = sum(LENGTHS[:row]) + row
        target[first + counts[row] + 1 : first + LENGTHS[row] + 1] = NAN
    found = rule(target, drafts, params, at(10), drafter)
    assert not found.failed
    assert outcomes(found) == outcomes(sound)


@pytest.mark.parametrize("spoilt", [NAN, float("inf"), OUT], ids=["nan", "inf", "none left"])
def test_a_drafter_with_unsound_logits_makes_a_row_slow_and_not_wrong(spoilt):
    target, drafts, drafter = a_batch(SamplingParams())
    result = verify_by_rejection(
        target, drafts, SamplingParams(), at(10), torch.full_like(drafter, spoilt)
    )
    firsts = [sum(LENGTHS[:row]) + row for row in range(10)]
    draws = [place._replace(purpose=Purpose.RECOVER) for place in at(10)]
    assert result.num_accepted.tolist() == [0] * 10
    assert torch.equal(result.next_ids, sample(target[firsts], SamplingParams(), draws))


@each_rule
@each_setting
def test_drafts_of_no_tokens_give_one_token_each(rule, params):
    target, drafts, drafter = a_batch(params, [0, 0, 0])
    result = rule(target, drafts, params, at(3), drafter)
    assert result.num_accepted.tolist() == [0, 0, 0]
    assert result.next_ids.min() >= 0


@each_rule
def test_logits_are_never_written_to(rule):
    target, drafts, drafter = a_batch(SamplingParams())
    before = target.clone(), drafter.clone()
    rule(target, drafts, SamplingParams(), at(10), drafter)
    assert torch.equal(target, before[0])
    assert torch.equal(drafter, before[1])


def test_the_rejection_rule_never_reads_the_noise_of_plain_sampling(monkeypatch):
    read = []
    words_of = noise._words_of

    def noted(addresses):
        read.extend(address.purpose for address in addresses)
        return words_of(addresses)

    target, drafts, drafter = a_batch(SamplingParams())
    monkeypatch.setattr(noise, "_words_of", noted)
    verify_by_rejection(target, drafts, SamplingParams(), at(10), drafter)
    assert set(read) == {Purpose.ACCEPT, Purpose.RECOVER}
    verify_by_equality(target, drafts, SamplingParams(), at(10))
    assert Purpose.SAMPLE in read


def test_weights_that_rounding_leaves_empty_are_those_of_the_target():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
    q = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [NAN, 0.0, 0.0]])
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.05, 0.25], [0.2, 0.3, 0.5]])
    torch.testing.assert_close(verify.residual(p, q), expected, atol=1e-7, rtol=0)


# What does not fit.


def test_logits_of_another_number_of_rows_are_refused():
    target, drafts, drafter = a_batch(SamplingParams())
    with pytest.raises(ShapeError, match=r"\[38, 900\], expected \[39, V\]"):
        verify_by_equality(target[:-1], drafts, SamplingParams(), at(10))
    with pytest.raises(ShapeError, match=r"\[29, 899\], expected \[29, 900\]"):
        verify_by_rejection(target, drafts, SamplingParams(), at(10), drafter[:, 1:])


@each_rule
def test_one_address_is_asked_for_each_row(rule):
    target, drafts, drafter = a_batch(SamplingParams())
    with pytest.raises(ShapeError, match="9 addresses for 10 drafts"):
        rule(target, drafts, SamplingParams(), at(9), drafter)
