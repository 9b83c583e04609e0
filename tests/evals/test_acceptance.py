"""Acceptance of drafts by position, counted by hand and on scripted stages."""

from __future__ import annotations

from typing import Any

from stepwell.evals.acceptance import Acceptance, acceptance, by_position


def test_positions_are_reached_up_to_the_first_that_differs() -> None:
    pairs = [
        ((1, 2, 3), (1, 2, 3)),  # all three stay
        ((1, 2, 3), (1, 5, 3)),  # the third is never reached, although it is equal
        ((4, 2), (1, 2, 7)),
        ((1, 2, 3), (1,)),  # the answer ended: what follows was not judged
        ((), (1,)),
    ]
    reached, accepted = by_position(pairs)
    assert reached == (4, 2, 1)
    assert accepted == (3, 1, 1)
    assert Acceptance(reached, accepted, 0, 0).shares == (0.75, 0.5, 1.0)


def test_equal_places_do_not_count_after_a_difference() -> None:
    """A control: counting every equal place would say 1/2 for the second one."""
    pairs = [((1, 2), (9, 2)), ((1, 2), (1, 9))]
    equal = [sum(draft[i] == answer[i] for draft, answer in pairs) for i in range(2)]
    assert equal == [1, 1]
    assert by_position(pairs) == ((2, 1), (1, 0))


def test_counts_of_several_add_up() -> None:
    one, other = Acceptance((4, 2), (3, 1), 10, 4), Acceptance((1,), (0,), 3, 3)
    assert Acceptance.joined([one, other]) == Acceptance((5, 2), (3, 1), 13, 7)
    nothing = Acceptance.joined([])
    assert nothing.shares == ()
    assert nothing.tokens_per_forward is None
    assert Acceptance((), (), 12, 8).tokens_per_forward == 1.5


def test_answers_are_compared_with_the_draft_that_they_verified(world: Any) -> None:
    """Scripted tokens count up from 0, so that the shorter of two answers decides."""
    answers = world.cascade(drafted=0.3, **{"lambda": 10.0}).generate_batch(world.prompts())
    verified = [
        (answer.trace[place - 1], answer.trace[place])
        for answer in answers
        for place in range(1, len(answer.trace))
    ]
    assert len(verified) > 30
    found = acceptance(answers, ["words"] * 3)
    shortest = [min(old.new_tokens, new.new_tokens) for old, new in verified]
    expected = [sum(length > place for length in shortest) for place in range(max(shortest))]
    assert list(found.reached) == list(found.accepted) == expected
    assert found.tokens == sum(new.new_tokens for _, new in verified)
    assert found.forwards == found.tokens  # scripted stages say that no token was drafted


def test_drafts_of_another_vocabulary_are_left_out(world: Any) -> None:
    answers = world.cascade(drafted=0.3, **{"lambda": 10.0}).generate_batch(world.prompts())
    assert acceptance(answers, ["words", "others", "third"]).reached == ()
    assert acceptance(answers, ["", "", ""]).reached == ()


def test_who_stops_at_once_verifies_nothing(world: Any) -> None:
    answers = world.cascade(**{"lambda": 0.0}).generate_batch(world.prompts())
    assert acceptance(answers, ["words"] * 3) == Acceptance((), (), 0, 0)
