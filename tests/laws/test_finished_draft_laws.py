"""Laws of finished drafts: a whole answer written by somebody else moves no bit of the target's.

Drafts are the target's own answer with random damage: tokens replaced, left out and put in, the end
cut off, or another answer altogether. Bits are those of plain decoding at every temperature, alone
and in batches, with the kernels and without.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from support.promises import NEW, V, strict

from stepwell.errors import ConfigError
from stepwell.generate import sampler as sampler_module
from stepwell.generate.draft import MAX_DRAFT, Pace
from stepwell.generate.finished_draft import Alignment, FinishedDraft
from stepwell.generate.request import FinishedEvent, Request, SamplingParams, TokenEvent
from stepwell.model import native
from stepwell.native.library import unavailable_reason

LONG = 5 * NEW


@pytest.fixture(autouse=True)
def lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are as long as they can be: measured, their lengths would be another machine's."""
    monkeypatch.setattr(Pace, "choose", lambda *_: MAX_DRAFT)


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def executors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every law holds with the native kernels and without them."""
    if request.param == "torch":
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip(f"no native kernels: {unavailable_reason()}")


def asked(number: int, temperature: float) -> Request:
    chance = random.Random(number)
    ids = tuple(chance.randrange(V - 1) for _ in range(chance.choice([1, 2, 9, 63, 64, 70, 130])))
    params = {"temperature": temperature, "seed": number, "max_new_tokens": LONG, "logprobs": 1}
    return Request(ids, SamplingParams(**params))


def run(requests: Sequence[Request], drafts: Sequence[Any]) -> list[Any]:
    """All events of each request, and its usage's counts of drafted tokens."""
    engine = strict(max_rows=8)
    pairs = zip(requests, drafts, strict=True)
    handles = [engine.submit(each, draft=draft) for each, draft in pairs]
    found = [list(handle) for handle in handles]
    assert engine.num_free_rows == engine.max_rows
    return found


def tokens(events: Sequence[Any]) -> list[TokenEvent]:
    return [event for event in events if isinstance(event, TokenEvent)]


def end(events: Sequence[Any]) -> FinishedEvent:
    [event] = [event for event in events if isinstance(event, FinishedEvent)]
    return event


def damaged(ids: Sequence[int], seed: int) -> FinishedDraft:
    """The answer as somebody may have written it who is right most of the time."""
    chance = random.Random(seed)
    ids = list(ids)
    for _ in range(chance.choice([0, 1, 2, 5])):
        at = chance.randrange(len(ids))
        kind = chance.choice(["replace", "leave out", "put in", "cut"])
        if kind == "replace":
            ids[at] = chance.randrange(V - 1)
        elif kind == "leave out" and len(ids) > 1:
            del ids[at]
        elif kind == "put in":
            ids.insert(at, chance.randrange(V - 1))
        elif kind == "cut" and at:
            ids = ids[:at]
    return FinishedDraft(tuple(ids))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_bits_are_those_of_decoding_alone(temperature: float) -> None:
    requests = [asked(number, temperature) for number in range(12)]
    alone = [run([each], [None])[0] for each in requests]
    drafts = [
        damaged([event.token_id for event in tokens(events)], number)
        for number, events in enumerate(alone)
    ]
    drafts[3], drafts[4] = FinishedDraft(()), drafts[5]
    together = run(requests, drafts)
    assert [tokens(events) for events in together] == [tokens(events) for events in alone]
    assert [end(events).reason for events in together] == [end(events).reason for events in alone]
    counts = [end(events).usage for events in together]
    assert sum(usage.accepted_tokens for usage in counts) > 5 * LONG, "much of what is right stays"
    assert all(usage.accepted_tokens <= usage.completion_tokens for usage in counts)
    assert counts[3].accepted_tokens == counts[3].rejected_tokens == 0


def test_a_verifier_that_keeps_what_it_would_not_say_fails_the_law(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = asked(3, 0.8)
    [alone] = run([request], [None])
    ids = [event.token_id for event in tokens(alone)]
    ids[4] = (ids[4] + 1) % (V - 1)
    monkeypatch.setattr(sampler_module, "num_equal", lambda drafted, own: len(drafted))
    [kept] = run([request], [FinishedDraft(tuple(ids))])
    assert tokens(kept) != tokens(alone)


def test_a_right_draft_takes_few_steps_and_a_late_mistake_few_more() -> None:
    """The work saved is counted in forwards, which no machine changes."""
    request = asked(5, 0.8)
    [alone] = run([request], [None])
    ids = [event.token_id for event in tokens(alone)]
    wrong = [*ids[:7], (ids[7] + 1) % (V - 1), *ids[8:]]
    assert steps(request, None) == LONG
    whole, realigned = steps(request, ids), steps(request, wrong)
    assert whole < LONG / 3
    assert realigned < LONG / 2
    cut = steps(request, wrong[:8])
    assert cut > realigned, "the rest of the draft is of use after the mistake"


def steps(request: Request, draft: Sequence[int] | None) -> int:
    engine = strict(max_rows=1)
    source = None if draft is None else FinishedDraft(tuple(draft))
    handle = engine.submit(request, draft=source)
    count = 0
    while not handle.is_finished:
        engine.step()
        count += 1
    return count


def test_tokens_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(ConfigError, match="token 61"):
        strict().submit(asked(1, 0.0), draft=FinishedDraft((1, V)))


@pytest.mark.parametrize(
    ("draft", "said", "proposed"),
    [
        ("abcdef", "", "abc"),
        ("abcdef", "ab", "cde"),
        ("abcdef", "abX", ""),
        ("abcdef", "abXd", "ef"),
        ("abcdef", "abXcd", "ef"),
        ("abcabd", "abXab", "cab"),  # of two places that agree as much the nearest
        ("abcabd", "XXab", "cab"),
        ("xbcabcd", "Yabc", "d"),  # the place where most agrees
        ("abcdef", "abcdef", ""),
        ("", "", ""),
    ],
)
def test_an_answer_is_followed_where_it_stands_in_the_draft(
    draft: str, said: str, proposed: str
) -> None:
    alignment = Alignment(tuple(map(ord, draft)))
    alignment.extend(map(ord, said))
    assert "".join(map(chr, alignment.propose(3))) == proposed
