"""The key/value cache: the one place that knows which row is how long, and so every position.

    append    reserve the next positions of some rows; the view it returns goes through the model
    truncate  roll a row back
    fork      a new row with the same past
    release   give a row back

A layer writes through the view and never moves a length: whoever drives the model does, so that a
rollback is visible. Rows have lengths of their own.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepwell.errors import CacheError
from stepwell.model.config import ModelConfig

_SMALLEST_CAPACITY = 64


class KVCache:
    """Keys and values of up to `max_rows` rows, [rows, G, capacity, D] a layer, grown on demand."""

    def __init__(
        self,
        config: ModelConfig,
        max_rows: int,
        *,
        context_length: int | None = None,
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
        self._free = list(range(max_rows))  # a heap: the lowest row is handed out first
        self._lengths: dict[int, int] = {}  # of the rows in use
        shape = (max_rows, config.num_kv_heads, 0, config.head_dim)
        with torch.inference_mode(False):  # else only code in inference mode could write to it
            empty = torch.zeros(shape, dtype=dtype, device=device)
            self._keys = [empty.clone() for _ in range(config.num_layers)]
            self._values = [empty.clone() for _ in range(config.num_layers)]
        self.device = self._keys[0].device

    @property
    def num_free(self) -> int:
        """Rows that `allocate` can still hand out."""
        return len(self._free)

    @property
    def capacity(self) -> int:
        """Positions a row can hold before the cache grows."""
        return self._keys[0].shape[2]

    def length(self, row: int) -> int:
        """Number of positions in a row."""
        return self._lengths[self._used(row)]

    def allocate(self) -> int:
        """The lowest free row, empty. Raises CacheError where all are in use."""
        if not self._free:
            raise CacheError(
                f"All {self.max_rows} rows of the cache are in use.",
                fix="release one, or raise max_rows.",
            )
        row = heapq.heappop(self._free)
        self._lengths[row] = 0
        return row

    def append(self, rows: Sequence[int], num_new: Sequence[int]) -> CacheView:
        """Lengthen each row by its number of new positions and return the view that fills them.

        Raises CacheError, and changes nothing, where a row would outgrow the context, is named
        twice, or gets no position.
        """
        starts = [self.length(row) for row in rows]
        ends = [start + count for start, count in zip(starts, num_new, strict=True)]
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
        self._grow(max(ends))
        for row, end in zip(rows, ends, strict=True):
            self._lengths[row] = end
        return CacheView(self, tuple(rows), tuple(starts), tuple(num_new))

    def truncate(self, row: int, length: int) -> None:
        """Roll a row back to its first `length` positions."""
        if not 0 <= length <= self.length(row):
            held = self.length(row)
            raise CacheError(f"Row {row} holds {held} tokens and cannot be cut to {length}.")
        self._clear([row], length)
        self._lengths[row] = length

    def fork(self, row: int) -> int:
        """A new row with the same past."""
        length, copy = self.length(row), self.allocate()
        for stored in (*self._keys, *self._values):
            stored[copy, :, :length] = stored[row, :, :length]
        self._lengths[copy] = length
        return copy

    def release(self, *rows: int) -> None:
        """Give rows back; their content is gone."""
        self._clear(rows, 0)
        for row in rows:
            del self._lengths[self._used(row)]
            heapq.heappush(self._free, row)

    def _clear(self, rows: Sequence[int], start: int) -> None:
        """Zero what rows forget: a NaN left there would come back as 0 * NaN under the mask."""
        end = max((self.length(row) for row in rows), default=0)
        for stored in (*self._keys, *self._values) if end > start else ():
            stored[list(rows), :, start:end] = 0

    def _used(self, row: int) -> int:
        if row not in self._lengths:
            raise CacheError(f"Row {row} of the cache is not in use.", fix="allocate it first.")
        return row

    def _grow(self, length: int) -> None:
        if length <= self.capacity:
            return
        capacity = min(self.context_length, max(_SMALLEST_CAPACITY, length, 2 * self.capacity))
        for stored in (self._keys, self._values):
            for layer, old in enumerate(stored):
                with torch.inference_mode(False):
                    new = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
                new[:, :, : old.shape[2]] = old
                stored[layer] = new

    def _write(self, layer: int, index: _Index, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        for stored, new in ((self._keys[layer], k_BGTD), (self._values[layer], v_BGTD)):
            if index.cells is None:
                stored[index.rows, :, index.span] = new
            else:
                rows, positions = index.cells
                stored[rows, :, positions] = new.transpose(1, 2)[index.valid]

    def _read(self, layer: int, index: _Index, length: int) -> tuple[Tensor, Tensor]:
        keys, values = self._keys[layer][:, :, :length], self._values[layer][:, :, :length]
        return keys[index.rows], values[index.rows]


@dataclass(frozen=True)
class _Index:
    """Where the new positions of a view lie in the cache.

    `rows` selects the rows to read: a slice where they are neighbours, so that nothing is copied.
    `span` is set where they also share start and count; otherwise `cells` names the row and the
    position of each new token, and `valid` [B, T] says which tokens of the padded batch those are.
    """

    rows: slice | Tensor
    span: slice | None
    cells: tuple[Tensor, Tensor] | None
    valid: Tensor | None


class CacheView:
    """The new positions of some rows, on their way through the model.

    positions_BT: absolute position of each new token; padding on the right repeats a row's last.
    length: number of keys that the longest row attends to.
    """

    def __init__(
        self,
        cache: KVCache,
        rows: tuple[int, ...],
        starts: tuple[int, ...],
        counts: tuple[int, ...],
    ) -> None:
        self.rows, self.starts, self.counts = rows, starts, counts
        self.length = max(start + count for start, count in zip(starts, counts, strict=True))
        self.uniform = len(set(starts)) == 1 and len(set(counts)) == 1
        self._cache = cache
        first_B1 = torch.tensor(starts, device=cache.device)[:, None]
        offsets_T = torch.arange(max(counts), device=cache.device)
        if self.uniform:
            self.positions_BT = first_B1 + offsets_T
        else:
            last_B1 = torch.tensor(counts, device=cache.device)[:, None] - 1
            self.positions_BT = first_B1 + torch.minimum(offsets_T, last_B1)
        self._index = self._locate()

    def update(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of a layer; returns all of them, [B, G, S, D] each."""
        self._cache._write(layer, self._index, k_BGTD, v_BGTD)
        return self._cache._read(layer, self._index, self.length)

    def _locate(self) -> _Index:
        first, last, device = self.rows[0], self.rows[-1], self._cache.device
        neighbours = self.rows == tuple(range(first, last + 1))
        rows_B = torch.tensor(self.rows, device=device)
        rows = slice(first, last + 1) if neighbours else rows_B
        if self.uniform and neighbours:
            return _Index(rows, slice(self.starts[0], self.length), None, None)
        counts_B1 = torch.tensor(self.counts, device=device)[:, None]
        valid_BT = torch.arange(max(self.counts), device=device) < counts_B1
        rows_BT = rows_B[:, None].expand_as(valid_BT)
        return _Index(rows, None, (rows_BT[valid_BT], self.positions_BT[valid_BT]), valid_BT)
