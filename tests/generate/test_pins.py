"""Pins: what is kept for later stays while there is room, and never stands in a row's way."""

from __future__ import annotations

from support.promises import BLOCK_BYTES, answers, request, strict

from stepwell.model.blocks import BLOCK


def cached(engine, asked):
    [answer] = [engine.submit(asked)]
    events = list(answer)
    return events[-1].usage.cached_tokens


def balanced(engine) -> bool:
    """Whether every block is free, cached or held, and by as many as hold it."""
    blocks = engine._cache.blocks
    return blocks.num_free + blocks.num_cached + blocks.num_held == blocks.total


def test_a_pinned_text_outlives_others_that_are_only_cached() -> None:
    engine = strict(max_rows=1, blocks=6)
    kept, others = request(130, seed=1), [request(130, seed=number) for number in range(2, 8)]
    answers(engine, [kept])
    pin = engine.pins.add(kept.prompt_ids)
    assert pin.num_tokens == 2 * BLOCK
    assert pin.num_bytes == 2 * BLOCK_BYTES
    for other in others:
        answers(engine, [other])
    assert cached(engine, kept) == 2 * BLOCK
    assert cached(engine, others[0]) == 0, "a control: unpinned, it was evicted meanwhile"
    engine.pins.drop(pin)
    assert pin.num_tokens == 0
    assert engine._cache.blocks.num_held == 0
    assert balanced(engine)


def test_pins_give_way_to_running_rows_the_oldest_first() -> None:
    engine = strict(max_rows=2, blocks=6)
    texts = [request(130, seed=number) for number in range(2)]
    pins = []
    for text in texts:
        answers(engine, [text])
        pins.append(engine.pins.add(text.prompt_ids))
    alone = answers(strict(max_rows=1), [request(190, seed=9)])
    assert answers(engine, [request(190, seed=9)]) == alone
    assert [pin.num_tokens for pin in pins] == [0, 2 * BLOCK]
    long = [request(200, seed=10), request(150, seed=11)]
    assert answers(engine, long) == answers(strict(max_rows=2), long)
    assert [pin.num_tokens for pin in pins] == [0, 0]
    assert balanced(engine)


def test_dropping_twice_and_pinning_what_is_not_there_do_nothing() -> None:
    engine = strict(max_rows=1, blocks=6)
    nothing = engine.pins.add(range(100))
    assert nothing.num_tokens == 0
    engine.pins.drop(nothing)
    answers(engine, [request(70, seed=1)])
    pin = engine.pins.add(request(70, seed=1).prompt_ids)
    engine.pins.drop(pin)
    engine.pins.drop(pin)
    assert balanced(engine)
    assert engine.pins.num_cached(request(70, seed=1).prompt_ids) == BLOCK
