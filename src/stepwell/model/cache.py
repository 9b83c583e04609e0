"""The key/value cache: the one place that knows which row is how long, and so every position.

    append    reserve the next positions of some rows; the view it returns goes through the model
    extend    the same for a kernel that needs no view, as it reads the rows' tables
    truncate  roll a row back
    fork      a new row with the same past
    release   give a row back
    publish   let a row's full blocks be found by their keys
    adopt     begin a row with blocks that were published
    pin       hold published blocks without a row, so that they stay; unpin lets them go

A layer writes through the view and never moves a length: whoever drives the model does, so that a
rollback is visible. Rows have lengths of their own. They lie in blocks of BLOCK positions, shared
between rows that begin alike; a block that others may read is copied before it is written to. What
lies in a block beyond its row's length is never read, and so never cleared. Who holds which block
is kept in `blocks`.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

import torch

from stepwell.errors import CacheError
from stepwell.model.blocks import BLOCK, BlockPool, blocks_for
from stepwell.model.cache_view import CacheView, TileView
from stepwell.model.config import ModelConfig
from stepwell.model.memory import zeros


class KVCache:
    """Keys and values of up to `max_rows` rows in at most `num_blocks` blocks.

    pool: [blocks, L, 2, G, BLOCK, D], keys before values. Grows on demand, and is then another
        tensor. By default every row can fill the context.
    blocks: the states of those blocks.
    """

    def __init__(
        self,
        config: ModelConfig,
        max_rows: int,
        *,
        context_length: int | None = None,
        num_blocks: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.context_length = context_length or config.context_length
        if config.position == "learned" and self.context_length > config.context_length:
            raise CacheError(
                f"The model has learned {config.context_length} positions; a cache of "
                f"{self.context_length} would go beyond them."
            )
        self.max_rows = max_rows
        if num_blocks is None:
            num_blocks = max_rows * blocks_for(self.context_length)
        self.blocks = BlockPool(num_blocks)
        self._free = list(range(max_rows))  # a heap: the lowest row is handed out first
        self._lengths: dict[int, int] = {}  # of the rows in use
        self._tables: dict[int, list[int]] = {}  # their blocks, in order
        shape = (0, config.num_layers, 2, config.num_kv_heads, BLOCK, config.head_dim)
        with torch.inference_mode(False):  # else only code in inference mode could write to it
            self.pool = torch.zeros(shape, dtype=dtype, device=device)
        self.device = self.pool.device

    @property
    def num_free(self) -> int:
        """Rows that `allocate` can still hand out."""
        return len(self._free)

    @property
    def capacity(self) -> int:
        """Positions, over all rows, that fit before the pool grows."""
        return len(self.pool) * BLOCK

    def length(self, row: int) -> int:
        """Number of positions in a row."""
        return self._lengths[self._used(row)]

    def table(self, row: int) -> list[int]:
        """The row's blocks, in the order of its positions."""
        return list(self._tables[self._used(row)])

    def allocate(self) -> int:
        """The lowest free row, empty. Raises CacheError where all are in use."""
        self._check_rows()
        row = heapq.heappop(self._free)
        self._lengths[row], self._tables[row] = 0, []
        return row

    def append(self, rows: Sequence[int], num_new: Sequence[int]) -> CacheView:
        """Lengthen each row by its number of new positions and return the view that fills them.

        Raises CacheError, and changes nothing, where a row would outgrow the context, is named
        twice, or gets no position; CacheFullError where `has_room` says no.
        """
        starts = self.extend(rows, num_new)
        tables = [self._tables[row] for row in rows]
        return CacheView(self.pool, tables, starts, tuple(num_new))

    def extend(self, rows: Sequence[int], num_new: Sequence[int]) -> tuple[int, ...]:
        """Lengthen rows as `append` does; returns their lengths before."""
        starts = tuple(self.length(row) for row in rows)
        ends = [start + count for start, count in zip(starts, num_new, strict=True)]
        self._check_step(rows, num_new, ends)
        shared = [row for row in rows if self._writes_to_others(row)]
        self._reserve(self._missing(rows, ends) + len(shared))
        for row in shared:
            self._copy_shared(row)
        for row, end in zip(rows, ends, strict=True):
            table = self._tables[row]
            while len(table) < blocks_for(end):
                table.append(self.blocks.take())
            self._lengths[row] = end
        return starts

    def append_tile(self, row: int, num_new: int) -> TileView:
        """`append` to one row, with a view of the whole tile that the new positions lie in.

        Raises CacheError, and changes nothing, where they reach beyond that tile.
        """
        room = BLOCK - self.length(row) % BLOCK
        if num_new > room:
            raise CacheError(
                f"{num_new} tokens do not fit the tile that row {row} is in; {room} do.",
                fix="append up to the multiple of the tile's width first.",
            )
        [start] = self.extend([row], [num_new])
        return TileView(self.pool, self._tables[row], start, num_new, self.context_length)

    def has_room(self, rows: Sequence[int], num_new: Sequence[int]) -> bool:
        """Whether there are blocks enough for such an append."""
        if 2 * len(rows) + sum(num_new) // BLOCK <= self.blocks.num_available:
            return True  # for each row a block to copy, and one begun
        ends = [self.length(row) + count for row, count in zip(rows, num_new, strict=True)]
        copied = map(self._writes_to_others, rows)
        return self._missing(rows, ends) + sum(copied) <= self.blocks.num_available

    def truncate(self, row: int, length: int) -> None:
        """Roll a row back to its first `length` positions."""
        if not 0 <= length <= self.length(row):
            held = self.length(row)
            raise CacheError(f"Row {row} holds {held} tokens and cannot be cut to {length}.")
        table = self._tables[row]
        while len(table) > blocks_for(length):  # the last first: a prefix is evicted from its end
            self.blocks.drop(table.pop())
        self._lengths[row] = length

    def fork(self, row: int) -> int:
        """A new row with the same past. Raises CacheError, and changes nothing, where none fits."""
        length, table = self.length(row), self._tables[row]
        full, partial = table[: length // BLOCK], table[length // BLOCK :]
        self._check_rows()
        self._reserve(len(partial))
        fork = self.allocate()
        for block in full:
            self.blocks.share(block)
        self._tables[fork] = full + [self._copy(block) for block in partial]
        self._lengths[fork] = length
        return fork

    def release(self, *rows: int) -> None:
        """Give rows back. Of their content, published blocks may still be adopted."""
        for row in rows:
            self._used(row)
        for row in rows:
            self.truncate(row, 0)
            del self._lengths[row], self._tables[row]
            heapq.heappush(self._free, row)

    def publish(self, row: int, keys: Sequence[bytes]) -> None:
        """Let the row's first len(keys) blocks be found under these keys.

        A key must stand for all that decides the block's content: the model, what was done to it,
        and the text up to the block's end. Where it is known, the block that has it keeps it.
        Raises CacheError where fewer blocks are full.
        """
        full = self.length(row) // BLOCK
        if len(keys) > full:
            raise CacheError(f"Row {row} has {full} full blocks, but {len(keys)} keys are given.")
        for block, key in zip(self._tables[row], keys, strict=False):
            self.blocks.publish(block, key)

    def adopt(self, row: int, keys: Sequence[bytes]) -> int:
        """Begin an empty row with the longest run of blocks that are found under these keys.

        Returns its number of positions. Raises CacheError where the row is not empty.
        """
        if held := self.length(row):
            raise CacheError(
                f"Row {row} holds {held} tokens; only an empty row can adopt blocks.",
                fix="truncate it to 0, or allocate another.",
            )
        table = self._tables[row]
        for key in keys[: self.context_length // BLOCK]:
            block = self.blocks.find(key)
            if block is None:
                break
            table.append(block)
        self._lengths[row] = len(table) * BLOCK
        return self._lengths[row]

    def num_known(self, keys: Sequence[bytes]) -> int:
        """Positions that `adopt` would find under these keys."""
        known = itertools.takewhile(self.blocks.knows, keys[: self.context_length // BLOCK])
        return BLOCK * sum(1 for _ in known)

    def pin(self, keys: Sequence[bytes]) -> tuple[int, ...]:
        """Hold the longest run of blocks that are found under these keys; to be unpinned once."""
        found = (self.blocks.find(key) for key in keys[: self.num_known(keys) // BLOCK])
        return tuple(block for block in found if block is not None)

    def unpin(self, blocks: Sequence[int]) -> None:
        """Let pinned blocks go: the last first, as a prefix is evicted from its end."""
        for block in reversed(blocks):
            self.blocks.drop(block)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.pool[0:0].element_size() * math.prod(self.pool.shape[1:])

    def _used(self, row: int) -> int:
        if row not in self._lengths:
            raise CacheError(f"Row {row} of the cache is not in use.", fix="allocate it first.")
        return row

    def _check_rows(self) -> None:
        if not self._free:
            raise CacheError(
                f"All {self.max_rows} rows of the cache are in use.",
                fix="release one, or raise max_rows.",
            )

    def _copy_shared(self, row: int) -> None:
        """Give the row a copy of its own of the block that it writes to next."""
        table, at = self._tables[row], self._lengths[row] // BLOCK
        block, table[at] = table[at], self._copy(table[at])
        self.blocks.drop(block)

    def _check_step(self, rows: Sequence[int], num_new: Sequence[int], ends: list[int]) -> None:
        if len(set(rows)) != len(rows):
            raise CacheError(f"Row {max(rows, key=list(rows).count)} is named twice in one step.")
        if min(num_new, default=0) < 1:
            raise CacheError(f"A step appends at least one token to each row, not {list(num_new)}.")
        if max(ends) > self.context_length:
            row = rows[ends.index(max(ends))]
            raise CacheError(
                f"Row {row} would reach {max(ends)} tokens; {self.context_length} fit the context.",
                fix="shorten the prompt or ask for fewer new tokens.",
            )

    def _missing(self, rows: Sequence[int], ends: Sequence[int]) -> int:
        """Blocks that the tables of some rows lack, so that each could reach its end."""
        pairs = zip(rows, ends, strict=True)
        return sum(blocks_for(end) - len(self._tables[row]) for row, end in pairs)

    def _writes_to_others(self, row: int) -> bool:
        """Whether the row's next position lies in a block that others hold or may find."""
        table, at = self._tables[row], self._lengths[row] // BLOCK
        return at < len(table) and not self.blocks.is_private(table[at])

    def _reserve(self, count: int) -> None:
        """Make sure that `count` blocks can be taken, and that the pool has them."""
        self.blocks.require(count)
        # The smallest ids are handed out first, so that none goes beyond this number of blocks.
        needed = min(self.blocks.total, self.blocks.num_held + self.blocks.num_cached + count)
        have = len(self.pool)
        if needed > have:
            size = min(self.blocks.total, max(needed, 2 * have))
            with torch.inference_mode(False):
                grown = zeros((size, *self.pool.shape[1:]), self.pool.dtype, self.device)
            grown[:have] = self.pool
            self.pool = grown

    def _copy(self, block: int) -> int:
        """A new block with the same content."""
        copy = self.blocks.take()
        self.pool[copy] = self.pool[block]
        return copy
