"""When drafting pays: how many tokens are drafted follows measured seconds and success."""

from __future__ import annotations

import itertools
import random

import pytest
from support.engines import engine_of
from support.speculation import request, run_all, some_requests

from stepwell.generate.draft import Pace, Seconds
from stepwell.generate.drafters import LookupDrafter
from stepwell.generate.sequence import Handle

pytestmark = pytest.mark.usefixtures("executors")


def measured(**seconds):
    found = Seconds()
    for name, value in seconds.items():
        found.add(int(name[1:]), value)
        found.add(int(name[1:]), value)
    return found


def test_seconds_lie_on_lines_between_the_sizes_measured():
    found = measured(n2=1.0, n4=2.0, n8=3.0)
    assert [found.of(size) for size in (1, 2, 3, 4, 6, 8)] == [1.0, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert found.of(14) == pytest.approx(5.0)
    assert (found.reaches(1), found.reaches(2), found.reaches(9)) == (False, True, True)
    assert measured(n4=2.0).of(8) == 3.0
    assert measured(n2=2.0, n4=1.0).of(9) == 1.0


def test_a_slow_first_measurement_and_slow_single_ones_count_nothing():
    found = Seconds()
    for value in (9.0, 1.0, 1.0, 50.0, 1.0, 50.0):
        found.add(1, value)
    assert found.of(1) == 1.0
    for _ in range(8):
        found.add(1, 3.0)
    assert found.of(1) == 3.0  # what lasts is believed


def test_more_tokens_never_take_less():
    """A size measured when the machine was busy is held down by those above it."""
    found = measured(n1=2.0, n2=7.0, n4=3.0, n8=4.0)
    assert [found.of(size) for size in (1, 2, 3, 4, 8)] == [2.0, 3.0, 3.0, 3.0, 4.0]
    found.add(8, 1.0)  # once is no median
    assert [found.of(size) for size in (1, 2, 4, 8, 16)] == [2.0, 3.0, 3.0, 4.0, 4 + 8 * 2 / 7]


def settled(verify, drafting, chance, rows=1, steps=400, reading=0.0):
    """The mean draft length of the last steps, where each token stays with such a chance."""
    pace, drawn, chosen = Pace(reading=reading), random.Random(0), []
    pace.seconds.add(rows, drafting)
    for _ in range(steps):
        length = pace.choose(rows, 0, verify)
        chosen.append(length)
        kept = [
            sum(itertools.takewhile(bool, (drawn.random() < chance for _ in range(length))))
            for _ in range(rows)
        ]
        pace.length.observe([length] * rows, kept)
    return sum(chosen[steps // 2 :]) / (steps - steps // 2)


def test_the_draft_length_follows_cost_and_success_down_to_none():
    cheap, dear = measured(n1=1.0, n9=1.2), measured(n1=1.0, n9=9.0)
    assert settled(cheap, 0.01, 0.95) > 6
    assert settled(cheap, 0.01, 0.02) < 1
    assert settled(cheap, 1.0, 0.6) < 0.1
    assert settled(dear, 0.01, 0.5) < 0.1
    batch = measured(n16=1.0, n32=2.0, n144=9.0)
    assert settled(batch, 0.01, 0.5, rows=16) < 0.1


def test_a_drafter_that_must_read_on_is_tried_more_seldom():
    verify = measured(n1=1.0, n9=9.0)
    often = settled(verify, 0.01, 0.1, steps=4000)
    seldom = settled(verify, 0.01, 0.1, steps=4000, reading=10.0)
    assert 0 < seldom < often / 5  # 10 seconds in steps of 1 are 2 % after 500 of them


def test_a_batch_of_a_size_never_measured_is_decoded_plainly_first(model, monkeypatch):
    asked = []
    monkeypatch.setattr(Pace, "choose", lambda self, *rest: asked.append(rest[:2]) or 2)
    engine = engine_of(model)
    run_all(engine, some_requests(3), "lookup")
    run_all(engine, some_requests(1), "lookup")
    assert sum(asked[0]) == 3
    assert (1, 0) in asked


# Lookups: how many tokens agree says how many more will.


def sequences_of(*prompts):
    """Sequences that wait to decode behind these prompts."""
    options = {"room": 9, "stop_ids": frozenset(), "drive": None, "finish": None}
    return [Handle(request(*prompt), **options).sequences[0] for prompt in prompts]


def test_lookups_are_judged_by_how_many_tokens_agree():
    drafter = LookupDrafter()
    one, three, also_three, new = sequences_of(
        (1, 2, 3, 2), (1, 2, 3, 4, 1, 2, 3), (9, 8, 7, 9, 8, 7), (1, 2, 3)
    )
    groups = drafter.by_pace([one, three, also_three, new])
    assert sorted(map(len, groups.values())) == [1, 2]
    assert [rows for rows in groups.values() if len(rows) == 2] == [[three, also_three]]
    assert drafter.by_pace([three]).keys() < groups.keys(), "what was learnt is kept"


def test_much_is_drafted_where_much_agrees_and_nothing_where_that_fails():
    """After four equal tokens come equal ones, after one any: one pace for all drafts too much."""
    verify = measured(n1=1.0, n9=2.6)  # a drafted token costs 0.2 steps
    drafter, drawn = LookupDrafter(), random.Random(0)
    [little], [much] = sequences_of((1, 2, 3, 2)), sequences_of((1, 2, 3, 4) * 2)
    [[few], [many]] = (drafter.by_pace([each]) for each in (little, much))
    merged, lengths = Pace(), {"few": [], "many": [], "merged": []}
    for _ in range(300):
        for name, own, chance in (("few", few, 0.05), ("many", many, 0.95)):
            for key, pace in ((name, own), ("merged", merged)):
                length = pace.choose(1, 0, verify)
                kept = next((k for k in range(length) if drawn.random() > chance), length)
                pace.length.observe([length], [kept])
                lengths[key].append(length)
    middle = {name: sorted(each[-200:])[100] for name, each in lengths.items()}
    assert middle["few"] == 0
    assert middle["many"] >= 6
    assert 0 < middle["merged"] < middle["many"]
