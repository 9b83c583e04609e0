"""The scheduler: who is let in, who waits, and who gives way where blocks run out.

No model is needed: sequences are put into a cache by hand.
"""

from __future__ import annotations

from stepwell.generate.request import Request, SamplingParams, TokenEvent
from stepwell.generate.scheduler import Scheduler
from stepwell.generate.sequence import Handle, Sequence
from stepwell.model.blocks import BLOCK
from stepwell.model.cache import KVCache
from stepwell.model.config import ModelConfig

CONTEXT = 256
CONFIG = ModelConfig(context_length=CONTEXT, width=16, num_layers=1, num_heads=2)


class Desk:
    """A scheduler and its cache. What is computed are lengths only."""

    def __init__(self, rows: int = 4, blocks: int = 8) -> None:
        self.cache = KVCache(CONFIG, rows, num_blocks=blocks)
        self.scheduler = Scheduler(self.cache)

    def add(self, length: int, *, n: int = 1, first: int = 0) -> list[Sequence]:
        """The sequences of a new request, queued; texts with the same first token begin alike."""
        asked = Request(tuple(range(first, first + length)), SamplingParams(n=n))
        handle = Handle(
            asked, room=CONTEXT, stop_ids=frozenset(), drive=lambda: None, finish=lambda ended: None
        )
        for sequence in handle.sequences:
            self.scheduler.add(sequence)
        return handle.sequences

    def compute(self, *batch: Sequence) -> list[Sequence]:
        """Put what is pending into the cache and let a token follow, where there is room: whose."""
        fitting = self.scheduler.fit(list(batch), [len(each.pending) for each in batch])
        for each in fitting:
            self.cache.append([each.row], [len(each.pending)])
            prompt = len(each.request.prompt_ids)
            self.cache.publish(each.row, each.handle.block_keys[: prompt // BLOCK])
            each.take(TokenEvent(each.choice, 1))
        return fitting

    def running(self) -> list[Sequence]:
        """Who holds a row once all who can be are admitted."""
        self.scheduler.admit()
        return self.scheduler.running


def test_sequences_start_in_the_order_in_which_they_came() -> None:
    desk = Desk(rows=2)
    first, second, third = (desk.add(length)[0] for length in (9, 1, 5))
    assert desk.running() == [first, second]
    desk.scheduler.end([first])
    assert desk.running() == [second, third]
    assert third.row == 0  # the row that became free


def test_a_short_prompt_does_not_overtake_one_that_finds_no_room() -> None:
    desk = Desk(blocks=4)
    [first] = desk.add(130)
    desk.scheduler.admit()
    desk.compute(first)
    [long], [short] = desk.add(140, first=9), desk.add(2)
    assert desk.running() == [first]
    desk.scheduler.end([first])
    assert desk.running() == [long, short]


def test_blocks_that_were_promised_are_not_given_twice() -> None:
    desk = Desk(blocks=4)
    [first], [second] = desk.add(130), desk.add(130, first=9)  # three blocks each
    assert desk.running() == [first]
    assert desk.compute(first) == [first]
    assert not desk.scheduler.num_preempted
    desk.scheduler.end([first])
    assert desk.running() == [second]


def test_a_sequence_that_ended_while_it_waited_is_passed_over() -> None:
    desk = Desk(rows=1)
    [first], [second] = desk.add(3), desk.add(3)
    first.finish_reason = "cancelled"
    desk.scheduler.end([first])
    assert desk.running() == [second]


def test_a_known_prompt_is_adopted_but_for_its_last_token() -> None:
    desk = Desk()
    [first] = desk.add(2 * BLOCK)
    desk.scheduler.admit()
    desk.compute(first)
    [again], [longer] = desk.add(2 * BLOCK), desk.add(2 * BLOCK + 1)
    desk.scheduler.admit()
    assert (again.num_cached, len(again.pending)) == (BLOCK, BLOCK)
    assert (longer.num_cached, len(longer.pending)) == (2 * BLOCK, 1)
    assert desk.cache.blocks.num_held == 2  # those of the first prompt, held by all three


def test_choices_wait_for_their_prompt_and_then_share_it() -> None:
    desk = Desk()
    one, two, three = desk.add(2 * BLOCK + 9, n=3)
    [other] = desk.add(3)
    assert desk.running() == [one, other]
    desk.compute(one, other)
    assert desk.running() == [one, other, two, three]
    tables = [desk.cache.table(each.row) for each in (one, two, three)]
    assert [table[:2] for table in tables] == [tables[0][:2]] * 3
    assert [len(each.pending) for each in (one, two, three)] == [1, 1, 1]


def test_a_choice_for_which_there_is_no_block_waits() -> None:
    desk = Desk(blocks=2)
    one, two = desk.add(BLOCK + 9, n=2)
    desk.scheduler.admit()
    desk.compute(one)
    assert desk.running() == [one]
    desk.scheduler.end([one])
    assert desk.running() == [two]
    assert (two.num_cached, len(two.pending)) == (BLOCK, 9)


def test_a_choice_waits_for_a_prompt_that_a_preempted_one_computes_again() -> None:
    desk = Desk(rows=2, blocks=2)
    [old], [one, two] = desk.add(BLOCK), desk.add(9, n=2, first=9)
    assert desk.running() == [old, one]
    desk.compute(old, one)
    assert desk.compute(old, one) == [old]
    desk.scheduler.end([old])
    assert desk.running() == [one]
    desk.compute(one)
    assert desk.running() == [one, two]


def crowded() -> tuple[Desk, list[Sequence]]:
    """Three sequences that fill a cache of three blocks, and the oldest needs another."""
    desk = Desk(blocks=3)
    sequences = [desk.add(length, first=length)[0] for length in (BLOCK, 7, 6)]
    assert desk.running() == sequences
    desk.compute(*sequences)
    assert desk.compute(*sequences) == sequences[:2]
    return desk, sequences


def test_the_youngest_gives_way_to_the_oldest() -> None:
    desk, [oldest, middle, youngest] = crowded()
    assert [each.row for each in (oldest, middle, youngest)] == [0, 1, -1]
    assert desk.scheduler.num_preempted == 1
    assert list(youngest.pending) == [*youngest.request.prompt_ids, *youngest.generated]


def test_who_gave_way_comes_back_before_those_who_came_later() -> None:
    desk, [oldest, middle, youngest] = crowded()
    [later] = desk.add(1)
    assert desk.running() == [oldest, middle]
    desk.scheduler.end([oldest])
    assert desk.running() == [middle, youngest]
    desk.scheduler.end([middle])
    assert desk.running() == [youngest, later]


def test_one_that_cannot_go_on_makes_room_for_older_ones_only() -> None:
    desk = Desk(blocks=3)
    [old], [young] = desk.add(BLOCK), desk.add(2 * BLOCK)
    desk.scheduler.admit()
    desk.compute(old)
    desk.compute(young)
    assert desk.compute(young) == []
    assert (old.row, young.row) == (0, -1)


def test_what_a_sequence_finds_of_its_own_was_not_cached_for_it() -> None:
    desk = Desk(blocks=4)
    [old], [young] = desk.add(BLOCK), desk.add(2 * BLOCK, first=1)
    desk.scheduler.admit()
    desk.compute(old, young)
    assert desk.compute(old, young) == [old]
    desk.scheduler.end([old])
    assert desk.running() == [young]
    assert len(young.pending) < len(young.request.prompt_ids), "it found some of its own"
    assert young.num_cached == 0
