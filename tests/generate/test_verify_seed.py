"""Verification with a seed: the text of plain decoding, whoever drafts."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch

from stepwell.generate import verify
from stepwell.generate.noise import Address, Purpose, lane_of
from stepwell.generate.request import SamplingParams
from stepwell.generate.sampling import process, sample
from stepwell.generate.verify import (
    verify_by_equality,
    verify_by_rejection,
)

TARGET, DRAFTER = lane_of("a target"), lane_of("a drafter")


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


@cache
def wide_target(params, text):
    """Processed logits of a random model of WIDTH tokens that sees the last two."""
    number = sum(token * WIDTH**place for place, token in enumerate(text[-2:]))
    generator = torch.Generator().manual_seed(number)
    return process(torch.randn(1, WIDTH, generator=generator) * 4, params)[0]


def plain_decoding(params, row, length):
    text = ()
    for _ in range(length):
        address = at(8)[row]._replace(position=at(8)[row].position + len(text))
        text += (sample(wide_target(params, text)[None], params, [address]).item(),)
    return text


def speculated(params, drafter, length, rows=8):
    """Texts by equality; drafter gives the tokens to draft after a row's text."""
    texts, accepted = [()] * rows, 0
    while min(map(len, texts)) < length:
        drafts = [drafter(row, text) for row, text in enumerate(texts)]
        target = torch.stack(
            [
                wide_target(params, (*text, *draft[:end]))
                for text, draft in zip(texts, drafts, strict=True)
                for end in range(len(draft) + 1)
            ]
        )
        places = [
            place._replace(position=place.position + len(text))
            for place, text in zip(at(rows), texts, strict=True)
        ]
        result = verify_by_equality(target, drafts, params, places)
        accepted += sum(result.num_accepted.tolist())
        texts = [
            (*text, *draft[:count], token)
            for text, draft, (count, token) in zip(texts, drafts, outcomes(result), strict=True)
        ]
    return [text[:length] for text in texts], accepted


@each_setting
def test_equality_gives_the_tokens_of_plain_decoding_whoever_drafts(params):
    plain = [plain_decoding(params, row, 12) for row in range(8)]

    def half_right(row, text):
        """The coming tokens, with a mistake in some places, and lengths that change."""
        coming = plain[row][len(text) : len(text) + (row + len(text)) % 6]
        return [
            (token + 1) % WIDTH if (row + len(text) + place) % 4 == 3 else token
            for place, token in enumerate(coming)
        ]

    texts, accepted = speculated(params, half_right, 12)
    assert texts == plain
    assert accepted > 20
    for drafter in (lambda row, text: [], lambda row, text: [row] * 3):
        assert speculated(params, drafter, 12)[0] == plain


def test_another_seed_would_be_noticed():
    params = SETTINGS[0]
    plain = [plain_decoding(params, row, 4) for row in range(8)]
    with pytest.MonkeyPatch.context() as patch:
        moved = Purpose.RECOVER
        patch.setattr(
            verify,
            "sample",
            lambda x, how, places: sample(x, how, [p._replace(purpose=moved) for p in places]),
        )
        assert speculated(params, lambda row, text: [1], 4)[0] != plain


@each_setting
def test_greedy_rejection_accepts_what_is_likeliest(params):
    target, drafts, drafter = a_batch(SamplingParams(temperature=0))
    result = verify_by_rejection(target, drafts, SamplingParams(temperature=0), (), drafter)
    likeliest = iter(target.double().argmax(dim=-1).tolist())
    for draft, count, token in zip(
        drafts, result.num_accepted.tolist(), result.next_ids.tolist(), strict=True
    ):
        said = list(itertools.islice(likeliest, len(draft) + 1))
        assert said[:count] == draft[:count]
        assert token == said[count]
        assert count == len(draft) or draft[count] != token
    assert 0 < result.num_accepted.sum() < sum(map(len, drafts))


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
