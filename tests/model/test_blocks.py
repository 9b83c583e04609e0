"""The bookkeeping of blocks, beside a model of it that counts holders and remembers the order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, settings, stateful
from hypothesis import strategies as st

from stepwell.errors import CacheError, CacheFullError
from stepwell.model.blocks import BlockPool

KEYS = [b"a", b"b", b"c", b"d", b"e"]
Method = Callable[..., Any]


def counts(pool: BlockPool) -> tuple[int, int, int]:
    return pool.num_free, pool.num_cached, pool.num_held


def pool_of_cached(*keys: bytes, num_blocks: int = 3) -> tuple[BlockPool, list[int]]:
    """A pool with blocks published and dropped in this order."""
    pool = BlockPool(num_blocks)
    blocks = [pool.take() for _ in keys]
    for block, key in zip(blocks, keys, strict=True):
        pool.publish(block, key)
        pool.drop(block)
    return pool, blocks


def test_a_block_goes_from_free_to_held_to_cached_and_back() -> None:
    pool = BlockPool(2)
    block = pool.take()
    assert counts(pool) == (1, 0, 1)
    pool.publish(block, b"a")
    pool.share(block)
    pool.drop(block)
    assert counts(pool) == (1, 0, 1)
    pool.drop(block)
    assert counts(pool) == (1, 1, 0)
    assert pool.find(b"a") == block
    assert counts(pool) == (1, 0, 1)


def test_an_unpublished_block_is_free_when_dropped() -> None:
    pool = BlockPool(1)
    pool.drop(pool.take())
    assert counts(pool) == (1, 0, 0)


def test_a_pool_without_available_blocks_hands_out_none() -> None:
    pool = BlockPool(2)
    held = [pool.take(), pool.take()]
    with pytest.raises(CacheFullError, match="needed: 1; available: 0 of the cache's 2"):
        pool.take()
    with pytest.raises(CacheError, match="needed: 3"):
        pool.require(3)
    assert counts(pool) == (0, 0, len(held))


def test_free_blocks_go_before_cached_ones() -> None:
    pool, [cached] = pool_of_cached(b"a")
    assert cached not in (pool.take(), pool.take())
    assert pool.take() == cached
    assert pool.find(b"a") is None


def test_the_block_that_was_dropped_longest_ago_is_evicted() -> None:
    pool, blocks = pool_of_cached(b"a", b"b", b"c")
    assert pool.find(b"a") == blocks[0]
    pool.drop(blocks[0])
    assert [pool.take() for _ in blocks] == [blocks[1], blocks[2], blocks[0]]


def test_ids_are_the_smallest_there_are() -> None:
    pool = BlockPool(100)
    first = [pool.take() for _ in range(5)]
    for block in first[1:4]:
        pool.drop(block)
    assert {*first, *(pool.take() for _ in range(3))} == set(range(5))


def test_a_known_key_stays_with_its_older_block() -> None:
    pool = BlockPool(2)
    older, newer = pool.take(), pool.take()
    pool.publish(older, b"a")
    pool.publish(newer, b"a")
    assert pool.is_private(newer)
    assert pool.find(b"a") == older
    pool.publish(older, b"b")
    assert pool.find(b"b") is None


def test_only_an_unpublished_block_of_one_holder_is_private() -> None:
    pool = BlockPool(2)
    shared, published = pool.take(), pool.take()
    assert pool.is_private(shared)
    assert pool.is_private(published)
    pool.share(shared)
    pool.publish(published, b"a")
    assert not pool.is_private(shared)
    assert not pool.is_private(published)
    pool.drop(shared)
    assert pool.is_private(shared)


@pytest.mark.parametrize("block", [0, 7, -1])
def test_a_block_that_nobody_holds_is_refused_by_every_verb(block: int) -> None:
    pool = BlockPool(2)
    pool.drop(pool.take())
    for verb in (pool.share, pool.drop, lambda one: pool.publish(one, b"a")):
        with pytest.raises(CacheError, match=f"Block {block} of the cache is held by nobody"):
            verb(block)
    assert not pool.is_private(block)
    assert counts(pool) == (2, 0, 0)


class PoolMachine(stateful.RuleBasedStateMachine):
    """Every verb in any order."""

    total = 4
    steps: ClassVar[list[int]] = [0]

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(self.total)
        self.holders: list[int] = []  # a block once for each holder
        self.keys: dict[bytes, int] = {}
        self.dropped: list[int] = []  # the cached ones

    @stateful.rule()
    def take(self) -> None:
        unused = set(range(self.total)) - {*self.holders, *self.dropped}
        if not unused and not self.dropped:
            with pytest.raises(CacheFullError):
                self.pool.take()
            return
        block = self.pool.take()
        assert block in unused if unused else block == self.dropped.pop(0)
        self.keys = {key: one for key, one in self.keys.items() if one != block}
        self.holders.append(block)

    @stateful.precondition(lambda self: self.holders)
    @stateful.rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.holders))
        self.pool.share(block)
        self.holders.append(block)

    @stateful.precondition(lambda self: self.holders)
    @stateful.rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.holders))
        self.pool.drop(block)
        self.holders.remove(block)
        if block not in self.holders and block in self.keys.values():
            self.dropped.append(block)

    @stateful.precondition(lambda self: self.holders)
    @stateful.rule(data=st.data(), key=st.sampled_from(KEYS))
    def publish(self, data: st.DataObject, key: bytes) -> None:
        block = data.draw(st.sampled_from(self.holders))
        self.pool.publish(block, key)
        if block not in self.keys.values():
            self.keys.setdefault(key, block)

    @stateful.rule(key=st.sampled_from(KEYS))
    def find(self, key: bytes) -> None:
        block = self.pool.find(key)
        assert block == self.keys.get(key)
        if block is not None:
            self.holders.append(block)
            self.dropped = [one for one in self.dropped if one != block]

    @stateful.invariant()
    def free_and_cached_and_held_make_the_total(self) -> None:
        self.steps[0] += 1
        free, cached, held = counts(self.pool)
        assert free + cached + held == self.pool.total == self.total
        assert (cached, held) == (len(self.dropped), len(set(self.holders)))
        assert self.pool.num_available == free + cached

    @stateful.invariant()
    def private_blocks_have_one_holder_and_no_key(self) -> None:
        for block in range(self.total):
            private = self.holders.count(block) == 1 and block not in self.keys.values()
            assert self.pool.is_private(block) == private


def run_machine(max_examples: int, steps: int, **options: Any) -> int:
    """The number of steps that were taken."""
    chosen = settings(
        max_examples=max_examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        **options,
    )
    PoolMachine.steps[0] = 0
    stateful.run_state_machine_as_test(PoolMachine, settings=chosen)
    return PoolMachine.steps[0]


def test_any_sequence_of_verbs_keeps_the_books() -> None:
    run_machine(60, 30)


@pytest.mark.slow
def test_any_long_sequence_of_verbs_keeps_the_books() -> None:
    assert run_machine(400, 100) > 10_000


# Negative controls: each breaks one method, given the sound one, and the machine notices.


def spare_the_oldest(take: Method) -> Method:
    def broken(self: BlockPool) -> int:
        if self._cached and not self._free:
            self._cached.move_to_end(next(iter(self._cached)))
        return take(self)

    return broken


def forget_the_key(drop: Method) -> Method:
    def broken(self: BlockPool, block: int) -> None:
        key = self._key_of.pop(block, None)
        drop(self, block)
        if key is not None:
            self._key_of[block] = key

    return broken


def let_the_newer_block_have_the_key(publish: Method) -> Method:
    def broken(self: BlockPool, block: int, key: bytes) -> None:
        publish(self, block, key)
        if self._key_of.get(block, key) == key:
            self._block_of[key] = block
            self._key_of[block] = key

    return broken


def find_without_holding(find: Method) -> Method:
    def broken(self: BlockPool, key: bytes) -> int | None:
        block = find(self, key)
        if block is not None:
            self.drop(block)
        return block

    return broken


@pytest.mark.parametrize(
    ("method", "sabotage"),
    [
        ("take", spare_the_oldest),
        ("drop", forget_the_key),
        ("publish", let_the_newer_block_have_the_key),
        ("find", find_without_holding),
    ],
)
def test_the_machine_finds_a_broken_pool(
    monkeypatch: pytest.MonkeyPatch, method: str, sabotage: Callable[[Method], Method]
) -> None:
    monkeypatch.setattr(BlockPool, method, sabotage(getattr(BlockPool, method)))
    with pytest.raises(AssertionError):
        run_machine(200, 40, phases=[Phase.generate], report_multiple_bugs=False)
