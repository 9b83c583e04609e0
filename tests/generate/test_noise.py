"""Addressed noise: its words are Philox's, its layout is as documented, only the address counts."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.generate import noise
from stepwell.generate.noise import Address, Purpose, exponential, lane_of, philox, uniform

ALL_ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [  # From Random123's kat_vectors, philox4x32 with 10 rounds.
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
    ),
]
BASE = Address(seed=7, lane=lane_of("a model"), choice=1, position=5, attempt=2)
RECORDED_WORDS = [[1994428647, 1951038448, 2518750562, 1158509199, 4082828027]]
NAMES = ["SAMPLE", "DRAFT", "ACCEPT", "RECOVER", "POLICY"]
RECORDED_LANE = 10952624780440620864
MANY = [
    Address(seed, lane_of("a model"), choice, position, purpose)
    for seed in (0, 3)
    for choice in (0, 1)
    for position in range(5)
    for purpose in Purpose
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, words, device):
    counters = torch.tensor(counter, device=device).view(4, 1, 1)
    keys = torch.tensor(key, device=device).view(2, 1, 1)
    assert philox(counters, keys).flatten().tolist() == list(words)


@pytest.mark.parametrize("device", DEVICES)
def test_philox_of_many_counters_is_philox_of_each(device):
    counters = torch.tensor([row[0] for row in KNOWN_ANSWERS], device=device).t()[:, None]
    keys = torch.tensor(KNOWN_ANSWERS[2][1], device=device).view(2, 1, 1)
    together = philox(counters, keys)
    assert together[:, 0, 2].tolist() == list(KNOWN_ANSWERS[2][2])
    assert [tuple(row) for row in together[:, 0].t().tolist()] == [
        scalar_philox(row[0], KNOWN_ANSWERS[2][1]) for row in KNOWN_ANSWERS
    ]


def scalar_philox(counter, key):
    """Algorithm of the paper's section 3.2, on one counter, in unbounded integers."""
    a, b, c, d = counter
    first, second = key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b = (right >> 32) ^ b ^ first, right % 2**32
        c, d = (left >> 32) ^ d ^ second, left % 2**32
        first, second = (first + 0x9E3779B9) % 2**32, (second + 0xBB67AE85) % 2**32
    return a, b, c, d


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    lane=st.integers(0, 2**64 - 1),
    choice=st.integers(0, 2**32 - 1),
    position=st.integers(0, 2**32 - 1),
    purpose=st.sampled_from(Purpose),
    attempt=st.integers(0, 2**24 - 1),
    token=st.integers(0, 2**34 - 1),
)
def test_layout_is_as_documented(seed, lane, choice, position, purpose, attempt, token):
    address = Address(seed, lane, choice, position, purpose, attempt)
    digest = hashlib.sha256(
        b"stepwell noise 1" + (seed % 2**64).to_bytes(8, "big") + lane.to_bytes(8, "big")
    ).hexdigest()
    counter = (token // 4, position, choice, attempt * 256 + purpose.value)
    words = scalar_philox(counter, (int(digest[:8], 16), int(digest[8:16], 16)))
    found = noise.random_words([address], torch.tensor([token]))
    assert found.tolist() == [[words[token % 4]]]


def test_noise_never_changes_between_versions():
    """Recorded once: if this fails, seeds no longer give the same text, and LABEL must change."""
    assert noise.random_words([BASE], 5).tolist() == RECORDED_WORDS
    assert lane_of("a model") == RECORDED_LANE
    assert [purpose.value for purpose in Purpose] == [0, 1, 2, 3, 4]
    assert [purpose.name for purpose in Purpose] == NAMES


@pytest.mark.parametrize("vocab_size", [1, 3, 4, 5, 40, 257])
def test_company_and_order_of_rows_move_no_bit(vocab_size):
    alone = [exponential([address], vocab_size) for address in MANY]
    together = exponential(MANY, vocab_size)
    backwards = exponential(MANY[::-1], vocab_size).flip(0)
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, backwards)
    assert together.is_contiguous()


def test_noise_consumed_in_order_of_arrival_would_move_bits():
    """The control: a generator with state fails the law that the addresses keep."""
    together = torch.empty(2, 40).exponential_(generator=torch.Generator().manual_seed(0))
    second_alone = torch.empty(1, 40).exponential_(generator=torch.Generator().manual_seed(0))
    assert not torch.equal(together[1:], second_alone)


def test_noise_of_a_token_is_the_same_in_any_vocabulary_and_by_id():
    whole = exponential(MANY, 50_000)
    assert torch.equal(exponential(MANY, 37), whole[:, :37])
    ids = torch.tensor([49_999, 0, 3, 4, 3])
    assert torch.equal(exponential(MANY, ids), whole[:, ids])
    each = torch.arange(len(MANY) * 3).view(len(MANY), 3)
    assert torch.equal(exponential(MANY, each), whole.gather(1, each))


@pytest.mark.parametrize("device", DEVICES)
def test_words_are_the_same_on_every_device(device):
    assert torch.equal(
        noise.random_words(MANY, 41, device=device).cpu(), noise.random_words(MANY, 41)
    )
    assert exponential(MANY, 41, device=device).device.type == device


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"seed": -7},
        {"lane": lane_of("another model")},
        {"choice": 0},
        {"position": 6},
        {"purpose": Purpose.DRAFT},
        {"attempt": 3},
    ],
    ids=str,
)
def test_every_field_of_an_address_counts(change):
    there, here = uniform([BASE._replace(**change), BASE], 4_000)
    assert not (there == here).any()
    assert abs(correlation(there, here)) < 5 / math.sqrt(4_000)


def test_a_shared_lane_would_couple_two_models():
    """The control of the test above: with one lane, draft and target draw the same noise."""
    there, here = uniform([BASE, BASE], 4_000)
    assert correlation(there, here) == pytest.approx(1)


def correlation(left, right):
    return torch.corrcoef(torch.stack((left, right)).double())[0, 1].item()


def test_no_two_addresses_of_a_seed_and_lane_share_a_word():
    addresses = [
        Address(0, 0, choice, position, purpose, attempt)
        for choice in (0, 1, 256, 2**32 - 1)
        for position in (0, 1, 256, 2**32 - 1)
        for purpose in Purpose
        for attempt in (0, 1, 256, 2**24 - 1)
    ]
    blocks = noise.random_words(addresses, 12).view(-1, 4).tolist()
    assert len({tuple(block) for block in blocks}) == 3 * len(addresses)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2**63},
        {"lane": -1},
        {"lane": 2**64},
        {"choice": -1},
        {"choice": 2**32},
        {"position": 2**32},
        {"attempt": 2**24},
        {"attempt": -1},
    ],
    ids=str,
)
def test_a_field_that_is_too_long_is_refused_not_wrapped(change):
    with pytest.raises(OverflowError):
        uniform([BASE._replace(**change)], 4)


def test_extreme_words_stay_strictly_between_zero_and_one(monkeypatch):
    words = torch.tensor([[0, 1, 2**31, 2**32 - 129, 2**32 - 128, 2**32 - 1]])
    monkeypatch.setattr(noise, "random_words", lambda *_, **__: words)
    expected = [2**-33, 3 * 2**-33, 0.5 + 2**-33, 1 - 2**-24, 1 - 2**-24, 1 - 2**-24]
    ids = torch.arange(6)
    assert torch.equal(uniform([BASE], ids)[0], torch.tensor(expected, dtype=torch.float32))
    drawn = exponential([BASE], ids)[0]
    assert drawn[0].item() == pytest.approx(2**-33, rel=1e-6)
    assert drawn[-1].item() == pytest.approx(24 * math.log(2), rel=1e-6)
    assert drawn.log().isfinite().all()


def test_exponential_is_minus_log1p_of_minus_uniform():
    drawn = exponential([BASE], 5_000)[0].double()
    exact = -torch.log1p(-uniform([BASE], 5_000)[0].double())
    torch.testing.assert_close(drawn, exact, rtol=3e-7, atol=0)


@pytest.mark.parametrize("along", ["tokens", "positions", "choices", "attempts", "seeds"])
def test_noise_is_uniform_along_every_field(along):
    num, bins = 20_000, 50
    addresses = {
        "tokens": [BASE],
        "positions": [BASE._replace(position=index) for index in range(num // 4)],
        "choices": [BASE._replace(choice=index) for index in range(num // 4)],
        "attempts": [BASE._replace(attempt=index) for index in range(num // 4)],
        "seeds": [BASE._replace(seed=index) for index in range(num // 4)],
    }[along]
    drawn = uniform(addresses, num // len(addresses)).flatten()
    counts = torch.histc(drawn, bins, 0, 1)
    chi_square = ((counts - num / bins) ** 2 / (num / bins)).sum().item()
    # 49 degrees of freedom: mean 49, standard deviation 9.9. Five of them on either side.
    assert 10 < chi_square < 99
    assert abs(correlation(drawn[:-1], drawn[1:])) < 5 / math.sqrt(num)


def test_lanes_are_sixty_four_bits_of_the_fingerprint():
    lanes = {lane_of(f"model {index}") for index in range(1_000)}
    assert len(lanes) == 1_000
    assert all(0 <= lane < 2**64 for lane in lanes)
    assert max(lanes) > 2**63
