"""The paged cache beside lists of stamps: what a row returns is what was written to it, exactly.

Each position that is ever written gets a stamp of its own, and all its keys and values follow from
that. Padding is sent as NaN, so that one which is stored or read comes to light.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import Phase, settings, stateful
from hypothesis import strategies as st
from torch import Tensor

from stepwell.errors import CacheFullError
from stepwell.model.blocks import BLOCK, BlockPool
from stepwell.model.cache import KVCache
from stepwell.model.cache_view import CacheView, TileView
from stepwell.model.config import ModelConfig

LAYERS, HEADS, WIDTH = 2, 2, 2
CONTEXT = 200  # of four blocks, the last one not to the end
CONFIG = ModelConfig(context_length=CONTEXT, width=4, num_layers=LAYERS, num_heads=HEADS)
Method = Callable[..., Any]


def content(stamps: Sequence[int]) -> Tensor:
    """What positions with these stamps hold, [L, 2, G, positions, D]; whole numbers below 2**24."""
    digits = torch.arange(LAYERS * 2 * HEADS * WIDTH).view(LAYERS, 2, HEADS, 1, WIDTH)
    return torch.tensor(stamps, dtype=torch.float32)[:, None] * digits.numel() + digits


class Twin:
    """A cache, driven beside the lists of stamps that its rows should hold."""

    def __init__(self, num_blocks: int | None = None, max_rows: int = 4) -> None:
        self.cache = KVCache(CONFIG, max_rows, num_blocks=num_blocks)
        self.rows: dict[int, list[int]] = {}
        self.published: dict[bytes, list[int]] = {}
        self._stamps: Iterator[int] = count(1)

    def allocate(self, length: int = 0) -> int:
        row = self.cache.allocate()
        self.rows[row] = []
        if length:
            assert self.append({row: length})
        return row

    def append(self, step: Mapping[int, int]) -> bool:
        """Whether there was room; holds what comes back to the stamps."""
        return self._attempt(list(step), list(step.values()), self.cache.append)

    def append_tile(self, row: int, num_new: int) -> bool:
        """The same for a tile."""
        return self._attempt(
            [row], [num_new], lambda rows, counts: self.cache.append_tile(rows[0], counts[0])
        )

    def _attempt(self, rows: list[int], counts: list[int], append: Method) -> bool:
        has_room, before = self.cache.has_room(rows, counts), self.state()
        if not has_room:
            with pytest.raises(CacheFullError):
                append(rows, counts)
            assert self.state() == before
            return False
        view = append(rows, counts)
        for row, num_new in zip(rows, counts, strict=True):
            self.rows[row] = self.rows[row] + [next(self._stamps) for _ in range(num_new)]
        self._fill(view, rows)
        return True

    def _fill(self, view: CacheView, rows: list[int]) -> None:
        """Send the new stamps through a view, and hold what it returns to all stamps."""
        first = view.columns.start if isinstance(view, TileView) else 0
        shape = (len(rows), LAYERS, 2, HEADS, view.positions_BT.shape[1], WIDTH)
        sent = torch.full(shape, torch.nan)
        for at, (row, start, num_new) in enumerate(
            zip(rows, view.starts, view.counts, strict=True)
        ):
            columns = slice(first, first + num_new)
            sent[at, ..., columns, :] = content(self.rows[row][start:])
            assert view.positions_BT[at, columns].tolist() == [*range(start, start + num_new)]
        got = [
            torch.stack(view.update(layer, *sent[:, layer].unbind(1))) for layer in range(LAYERS)
        ]
        began = not any(view.starts) and not isinstance(view, TileView)
        for at, row in enumerate(rows):
            held, beyond = torch.stack(got)[:, :, at].split_with_sizes(
                [len(self.rows[row]), view.length - len(self.rows[row])], dim=3
            )
            assert torch.equal(held, content(self.rows[row]))
            assert began or torch.equal(beyond, torch.zeros_like(beyond))

    def truncate(self, row: int, length: int) -> None:
        self.cache.truncate(row, length)
        self.rows[row] = self.rows[row][:length]

    def fork(self, row: int) -> int:
        fork = self.cache.fork(row)
        self.rows[fork] = list(self.rows[row])
        return fork

    def release(self, row: int) -> None:
        self.cache.release(row)
        del self.rows[row]

    def publish(self, row: int) -> list[bytes]:
        """Publish all full blocks of a row; returns their keys."""
        keys = self.keys(row)
        self.cache.publish(row, keys)
        for at, key in enumerate(keys):
            self.published[key] = self.rows[row][at * BLOCK : (at + 1) * BLOCK]
        return keys

    def keys(self, row: int) -> list[bytes]:
        full = len(self.rows[row]) // BLOCK
        return [repr(self.rows[row][: (at + 1) * BLOCK]).encode() for at in range(full)]

    def adopt(self, keys: Sequence[bytes]) -> int:
        """A new row that begins with what is found."""
        row = self.allocate()
        length = self.cache.adopt(row, keys)
        stamps = [stamp for key in keys for stamp in self.published[key]]
        self.rows[row] = stamps[:length]
        return row

    def state(self) -> object:
        blocks, rows = self.cache.blocks, sorted(self.rows)
        lengths = [self.cache.length(row) for row in rows]
        tables = [self.cache.table(row) for row in rows]
        return lengths, tables, self.cache.num_free, blocks.num_free, blocks.num_cached

    def check(self) -> None:
        """Every row holds its stamps, and every block that is held is in a row's table."""
        blocks = self.cache.blocks
        assert blocks.num_free + blocks.num_cached + blocks.num_held == blocks.total
        tables = {row: self.cache.table(row) for row in self.rows}
        assert blocks.num_held == len({block for table in tables.values() for block in table})
        assert blocks.num_held <= len(self.cache.pool) <= blocks.total
        for row, stamps in self.rows.items():
            assert self.cache.length(row) == len(stamps)
            assert len(tables[row]) == -(-len(stamps) // BLOCK)
            if stamps:
                held = torch.cat([self.cache.pool[block] for block in tables[row]], dim=3)
                assert torch.equal(held[:, :, :, : len(stamps)], content(stamps))


# Sharing


def test_a_fork_shares_full_blocks_and_copies_the_last() -> None:
    twin = Twin()
    origin = twin.allocate(BLOCK + 5)
    fork = twin.fork(origin)
    ours, theirs = twin.cache.table(origin), twin.cache.table(fork)
    assert ours[0] == theirs[0]
    assert ours[1] != theirs[1]
    twin.check()


@pytest.mark.parametrize("kept", [1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_a_fork_never_sees_what_the_other_writes(kept: int) -> None:
    twin = Twin()
    origin = twin.allocate(2 * BLOCK)
    fork = twin.fork(origin)
    for row in (fork, origin):
        twin.truncate(row, kept)
    assert twin.append({fork: 3})
    twin.check()
    assert twin.append({origin: 4, fork: 2})
    twin.check()


def test_what_is_published_is_not_written_to() -> None:
    twin = Twin()
    row = twin.allocate(2 * BLOCK)
    keys = twin.publish(row)
    twin.truncate(row, BLOCK + 10)
    assert twin.append({row: BLOCK})
    again = twin.adopt(keys)
    assert len(twin.rows[again]) == 2 * BLOCK
    twin.check()


# Publishing and adopting


def test_published_blocks_outlive_their_row() -> None:
    twin = Twin()
    row = twin.allocate(2 * BLOCK + 7)
    keys = twin.publish(row)
    twin.release(row)
    again = twin.adopt(keys)
    assert len(twin.rows[again]) == 2 * BLOCK
    twin.check()
    assert twin.append({again: 9})


def test_blocks_are_evicted_from_the_end_of_the_row_that_was_released_first() -> None:
    twin = Twin(num_blocks=4)
    rows = [twin.allocate(2 * BLOCK), twin.allocate(2 * BLOCK)]
    early, late = [twin.publish(row) for row in rows]
    for row in rows:
        twin.release(row)
    filler = twin.allocate(1)
    twin.release(twin.adopt(late))
    assert [len(twin.rows[twin.adopt(keys)]) for keys in (early, late)] == [BLOCK, 2 * BLOCK]
    assert twin.rows[filler]
    twin.check()


# A full pool


def test_an_append_without_room_changes_nothing() -> None:
    twin = Twin(num_blocks=3)
    rows = [twin.allocate(BLOCK), twin.allocate(BLOCK)]
    assert not twin.append(dict.fromkeys(rows, 1))
    assert twin.append({rows[1]: 1})
    assert twin.append({rows[1]: BLOCK - 1})
    twin.check()


def test_a_copy_on_write_needs_room_too() -> None:
    twin = Twin(num_blocks=2)
    row = twin.allocate(2 * BLOCK)
    twin.publish(row)
    twin.truncate(row, BLOCK + 1)
    assert not twin.append({row: 1})
    twin.check()


# All verbs, in any order


class CacheMachine(stateful.RuleBasedStateMachine):
    """Four rows over a pool that holds less than half of what they could fill."""

    steps: ClassVar[list[int]] = [0]
    lengths = st.integers(1, 20) | st.integers(BLOCK - 2, BLOCK + 2) | st.integers(1, 2 * BLOCK)

    def __init__(self) -> None:
        super().__init__()
        self.twin = Twin(num_blocks=7)
        self.chains: list[list[bytes]] = []

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.twin.rows)))

    @stateful.precondition(lambda self: self.twin.cache.num_free)
    @stateful.rule(data=st.data())
    def allocate_or_adopt(self, data: st.DataObject) -> None:
        chains = [[], *self.chains]
        self.twin.adopt(data.draw(st.sampled_from(chains)))

    @stateful.precondition(lambda self: self.twin.rows)
    @stateful.rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        rows = st.lists(st.sampled_from(sorted(self.twin.rows)), min_size=1, unique=True)
        step = {row: data.draw(self.lengths) for row in data.draw(rows)}
        room = {row: CONTEXT - len(self.twin.rows[row]) for row in step}
        fitting = {row: min(step[row], room[row]) for row in step if room[row]}
        if fitting:
            self.twin.append(fitting)

    @stateful.precondition(lambda self: self.twin.rows)
    @stateful.rule(data=st.data())
    def append_tile(self, data: st.DataObject) -> None:
        row = self.pick(data)
        length = len(self.twin.rows[row])
        room = min(CONTEXT - length, BLOCK - length % BLOCK)
        if room:
            self.twin.append_tile(row, min(room, data.draw(self.lengths)))

    @stateful.precondition(lambda self: self.twin.rows)
    @stateful.rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        row = self.pick(data)
        self.twin.truncate(row, data.draw(st.integers(0, len(self.twin.rows[row]))))

    @stateful.precondition(lambda self: self.twin.rows and self.twin.cache.num_free)
    @stateful.rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        row, before = self.pick(data), self.twin.state()
        try:
            self.twin.fork(row)
        except CacheFullError:
            assert self.twin.state() == before
            assert len(self.twin.rows[row]) % BLOCK
            assert not self.twin.cache.blocks.num_available

    @stateful.precondition(lambda self: self.twin.rows)
    @stateful.rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.twin.release(self.pick(data))

    @stateful.precondition(lambda self: self.twin.rows)
    @stateful.rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        if keys := self.twin.publish(self.pick(data)):
            self.chains.append(keys)

    @stateful.invariant()
    def rows_hold_their_stamps(self) -> None:
        self.steps[0] += 1
        self.twin.check()


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
    CacheMachine.steps[0] = 0
    stateful.run_state_machine_as_test(CacheMachine, settings=chosen)
    return CacheMachine.steps[0]


def test_any_sequence_of_verbs_equals_lists() -> None:
    run_machine(40, 25)


@pytest.mark.slow
def test_any_long_sequence_of_verbs_equals_lists() -> None:
    assert run_machine(300, 60) > 10_000


# Negative controls: each breaks one method, given the sound one, and the machine notices.


def write_to_what_others_read(_: Method) -> Method:
    return lambda self, row: False


def share_the_last_block_too(_: Method) -> Method:
    def broken(self: KVCache, block: int) -> int:
        self.blocks.share(block)
        return block

    return broken


def leave_what_lies_beyond(_: Method) -> Method:
    return lambda self, gathered, beyond: None


def store_the_padding(locate: Method) -> Method:
    def broken(self: CacheView) -> Any:
        self._valid_BT = None
        return locate(self)

    return broken


def begin_without_room(reserve: Method) -> Method:
    return lambda self, count: reserve(self, min(count, self.blocks.num_available))


def free_while_it_can_be_found(drop: Method) -> Method:
    def broken(self: BlockPool, block: int) -> None:
        drop(self, block)
        if block in self._cached:
            del self._cached[block]
            self._free.append(block)

    return broken


@pytest.mark.parametrize(
    ("owner", "method", "sabotage"),
    [
        (KVCache, "_writes_to_others", write_to_what_others_read),
        (KVCache, "_copy", share_the_last_block_too),
        (CacheView, "_clear", leave_what_lies_beyond),
        (KVCache, "_reserve", begin_without_room),
        (CacheView, "_locate", store_the_padding),
        (BlockPool, "drop", free_while_it_can_be_found),
    ],
)
def test_the_machine_finds_a_broken_cache(
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    sabotage: Callable[[Method], Method],
) -> None:
    monkeypatch.setattr(owner, method, sabotage(getattr(owner, method)))
    with pytest.raises(AssertionError):
        run_machine(300, 30, phases=[Phase.generate], report_multiple_bugs=False)
