"""Drafters: a lookup finds the latest longest match, a draft length is the one that pays best."""

from __future__ import annotations

import itertools
import random
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from stepwell.errors import ConfigError, ShapeError
from stepwell.generate.draft import (
    SIZES,
    DraftLength,
    PromptLookup,
    StepSeconds,
    best_length,
    expected_tokens,
)

few_tokens = st.lists(st.integers(0, 3), max_size=40)


def scanned(ids, length, sizes):
    """The draft by its definition: all places, longest n-gram first, latest place first."""
    for size in sorted(sizes, reverse=True):
        for start in range(len(ids) - 1, size - 1, -1):
            if ids[start - size : start] == ids[-size:]:
                grown = list(ids)
                for offset in range(length):
                    grown.append(grown[start + offset])
                return grown[len(ids) :]
    return []


@settings(max_examples=300, deadline=None)
@given(ids=few_tokens, length=st.integers(1, 9), sizes=st.sets(st.integers(1, 6), min_size=1))
def test_a_lookup_is_a_scan_for_the_latest_longest_match(ids, length, sizes):
    found = PromptLookup(ids, sizes=list(sizes)).propose(length)
    assert found == scanned(ids, length, sizes)


@settings(max_examples=300, deadline=None)
@given(ids=few_tokens, sizes=st.sets(st.integers(1, 6), min_size=1))
def test_a_match_is_the_largest_size_that_stands_elsewhere(ids, sizes):
    elsewhere = [size for size in sizes if size < len(ids) and places(ids, size)]
    assert PromptLookup(ids, sizes=list(sizes)).match() == max(elsewhere, default=0)


@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(few_tokens, max_size=5))
def test_a_sequence_that_grows_is_looked_up_like_one_given_whole(pieces):
    grown = PromptLookup()
    for piece in pieces:
        grown.extend(piece)
        grown.propose(4)
    assert grown.propose(6) == PromptLookup(itertools.chain(*pieces)).propose(6)


def test_the_first_match_instead_of_the_latest_would_be_noticed():
    ids = [1, 2, 7, 1, 2, 8, 1, 2]
    assert PromptLookup(ids).propose(2) == scanned(ids, 2, SIZES) == [8, 1]


def test_a_match_that_ends_with_the_sequence_goes_on_with_its_own_draft():
    assert PromptLookup([5, 1, 2, 3, 1, 2, 3]).propose(7) == [1, 2, 3, 1, 2, 3, 1]
    assert PromptLookup([4, 4]).propose(3) == [4, 4, 4]


def test_nothing_is_drafted_after_a_token_never_seen_before():
    for ids in ([], [1], [1, 2, 3], [1, 1, 2]):
        assert PromptLookup(ids).propose(4) == []
    assert PromptLookup([1, 2, 1]).propose(0) == []


def test_a_draft_is_that_of_transformers_where_the_match_is_the_only_one():
    source, compared = random.Random(0), 0
    for _ in range(400):
        ids = [source.randrange(12) for _ in range(30)]
        size = next((n for n in (3, 2, 1) if places(ids, n)), 0)
        if not size or len(places(ids, size)) > 1 or places(ids, size)[0] + size + 4 > len(ids):
            continue
        peer = PromptLookupCandidateGenerator(
            num_output_tokens=4, max_matching_ngram_size=3, max_length=100
        )
        expected, _ = peer.get_candidates(torch.tensor([ids]))
        assert [*ids, *PromptLookup(ids, sizes=(1, 2, 3)).propose(4)] == expected[0].tolist()
        compared += 1
    assert compared > 100


def places(ids, size):
    """Where the last `size` tokens stood before."""
    return [at for at in range(len(ids) - size) if ids[at : at + size] == ids[-size:]]


def seconds_of(draft_once):
    def once():
        start = time.perf_counter()
        for _ in range(50):
            draft_once()
        return time.perf_counter() - start

    return min(once() for _ in range(5))


def test_a_draft_costs_the_same_in_a_long_sequence():
    short, long = ([*range(count), count] for count in (100, 30_000))
    indexed = [PromptLookup([*ids, 1, 2, 3]) for ids in (short, long)]
    assert len(indexed[1].propose(8)) == 8
    in_short, in_long = (seconds_of(lambda each=each: each.propose(8)) for each in indexed)
    assert in_long < 10 * in_short
    unseen = [[*ids, -1] for ids in (short, long)]
    in_short, in_long = (seconds_of(lambda ids=ids: places(ids, 1)) for ids in unseen)
    assert in_long > 10 * in_short  # a scan fails the same bound


def test_an_ngram_of_no_tokens_is_refused():
    for sizes in ([], [2, 0]):
        with pytest.raises(ConfigError, match="each above 0"):
            PromptLookup(sizes=sizes)


# How much to draft.

CHEAP = StepSeconds(verify=(1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3), draft=0.1)
DEAR = StepSeconds(verify=(1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0), draft=0.6)
chances = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(acceptance=chances)
def test_expected_tokens_are_the_mean_over_all_outcomes(acceptance):
    found = expected_tokens(acceptance)
    for length in range(len(acceptance) + 1):
        mean = 0.0
        for stays in itertools.product((False, True), repeat=length):
            chance = 1.0
            for stay, accepted in zip(stays, acceptance, strict=False):
                chance *= accepted if stay else 1 - accepted
            mean += chance * (1 + sum(itertools.takewhile(bool, stays)))
        assert found[length] == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.8, 0.99])
def test_expected_tokens_at_one_acceptance_are_the_published_sum(chance):
    published = [(1 - chance ** (length + 1)) / (1 - chance) for length in range(7)]
    assert expected_tokens([chance] * 6) == pytest.approx(published, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    acceptance=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    verify=st.lists(st.floats(0.1, 3), min_size=5, max_size=5),
    draft=st.floats(0, 1),
)
def test_no_length_yields_more_tokens_a_second_than_the_best(acceptance, verify, draft):
    seconds = StepSeconds(tuple(verify), draft)
    rates = [
        tokens / (verify[length] + length * draft)
        for length, tokens in enumerate(expected_tokens(acceptance))
    ]
    assert rates[best_length(acceptance, seconds)] == max(rates)


def test_nothing_is_drafted_where_it_cannot_pay_and_all_where_it_is_free():
    assert best_length([0.0] * 6, CHEAP) == 0
    assert best_length([0.9] * 6, DEAR) == 0
    assert best_length([0.9] * 6, CHEAP) == 6
    assert best_length([0.9, 0.9, 0.05, 0.9, 0.9, 0.9], CHEAP) == 2


class World:
    """Rows whose drafted tokens stay with a chance that may change, and the time they take."""

    def __init__(self, length, seconds, rows=1, seed=0):
        self.length, self.seconds, self.rows = length, seconds, rows
        self.source = random.Random(seed)

    def run(self, steps, chance):
        """Mean tokens a second and row, and the lengths chosen."""
        tokens, elapsed, chosen = 0, 0.0, []
        for _ in range(steps):
            drafted = self.length.choose(self.seconds)
            stays = [[self.source.random() < chance for _ in range(drafted)] for _ in self.each]
            accepted = [sum(itertools.takewhile(bool, row)) for row in stays]
            self.length.observe([drafted] * self.rows, accepted)
            tokens += sum(accepted) + self.rows
            elapsed += self.rows * self.seconds.of(drafted)
            chosen.append(drafted)
        return tokens / elapsed, chosen

    @property
    def each(self):
        return range(self.rows)


def best_rate(chance, seconds):
    length = best_length([chance] * 6, seconds)
    return expected_tokens([chance] * 6)[length] / seconds.of(length)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("seconds", [CHEAP, DEAR], ids=["cheap", "dear"])
@pytest.mark.parametrize("chance", [0.02, 0.3, 0.6, 0.9])
def test_the_chosen_lengths_are_nearly_as_fast_as_the_best_fixed_one(chance, seconds, rows):
    world = World(DraftLength(6), seconds, rows)
    world.run(100, chance)
    rate, _ = world.run(2000, chance)
    assert rate > 0.93 * best_rate(chance, seconds)


def test_a_length_that_never_changes_would_be_noticed_as_slow():
    class Longest(DraftLength):
        def choose(self, seconds):
            return 6

    rate, _ = World(Longest(6), CHEAP).run(2000, 0.02)
    assert rate < 0.75 * best_rate(0.02, CHEAP)


def recovered(world):
    """How many of 200 steps draft, after acceptance went away for long and came back."""
    world.run(200, 0.9)
    world.run(1000, 0.0)
    _, chosen = world.run(200, 0.95)
    return sum(length > 1 for length in chosen)


@pytest.mark.parametrize("seed", range(5))
def test_drafting_comes_back_when_acceptance_does(seed):
    assert recovered(World(DraftLength(6), CHEAP, seed=seed)) > 150


def test_without_probes_drafting_would_stay_away():
    assert recovered(World(DraftLength(6, probe_share=1e-9), CHEAP)) == 0


@pytest.mark.parametrize("seconds", [CHEAP, DEAR], ids=["cheap", "dear"])
@pytest.mark.parametrize("share", [0.005, 0.02, 0.1])
def test_probes_take_no_more_than_their_share_of_the_time(seconds, share):
    world = World(DraftLength(6, probe_share=share), seconds)
    world.run(100, 0.0)
    rate, chosen = world.run(3000, 0.0)
    assert max(chosen) == 1
    price = seconds.of(1) - 1
    assert 0 < 3000 / rate - 3000 <= share * 3000 + price  # one probe more may fall in the window


def test_steps_that_found_nothing_to_draft_put_a_probe_off_and_teach_nothing():
    length = DraftLength(6)
    length.observe([6] * 200, [0] * 200)
    before = length.acceptance
    while not length.choose(CHEAP):
        length.observe([0], [0])
    length.observe([0], [0])
    assert length.choose(CHEAP) == 1
    assert length.acceptance == before


def test_places_are_learned_apart():
    length = DraftLength(4, memory=1000)
    for _ in range(300):
        length.observe([4, 4, 4], [4, 0, 0])
    first, *later = length.acceptance
    assert first == pytest.approx(1 / 3, abs=0.03)
    assert min(later) > 0.97


def test_a_token_that_was_not_reached_counts_neither_way():
    short, long = DraftLength(4), DraftLength(4)
    short.observe([2], [1])
    long.observe([4], [1])
    assert short.acceptance == long.acceptance


def test_same_seconds_and_results_choose_the_same_lengths():
    first, second = (World(DraftLength(6), CHEAP, rows=3, seed=4).run(300, 0.6) for _ in "ab")
    assert first == second
    assert first != World(DraftLength(6), CHEAP, rows=3, seed=5).run(300, 0.6)


@pytest.mark.parametrize(
    "settings", [{"max_length": 0}, {"memory": 0.5}, {"probe_share": 0}, {"probe_share": 1.5}]
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        DraftLength(**settings)


@pytest.mark.parametrize(
    ("verify", "draft"),
    [((1.0,), 0.1), ((1.0, 0.0), 0.1), ((1.0, float("nan")), 0.1), ((1.0, 1.0), -0.1)],
)
def test_seconds_that_cannot_have_been_measured_are_refused(verify, draft):
    with pytest.raises(ConfigError, match="expected positive numbers"):
        StepSeconds(verify, draft)


def test_a_measurement_for_another_length_is_refused():
    with pytest.raises(ShapeError, match="2 acceptances for 7 measured steps"):
        DraftLength(2).choose(CHEAP)
