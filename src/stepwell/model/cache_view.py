"""The new positions of some rows on their way through the model: what is stored, what is read.

A view belongs to one step. It knows where its rows lie in the pool of blocks; how long they are,
and which blocks are whose, is the cache's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stepwell.model.blocks import BLOCK, blocks_for


@dataclass(frozen=True)
class _Index:
    """Where the positions of a view lie in the pool.

    cells: block, and offset in it, of each new token, [B, T] each; where `valid` [B, T] says that
        some tokens of the batch are padding, of the others, in order.
    lines: what a layer reads, [2 * B * G * S]; None where all of that is new. A line is one head's
        key or value at one position; they are counted from the layer's first, so that the same
        numbers serve every layer.
    beyond: which of the lines come after the end of their row; None where none do.
    """

    cells: tuple[Tensor, Tensor]
    valid: Tensor | None
    lines: Tensor | None
    beyond: Tensor | None


class CacheView:
    """The new positions of some rows, on their way through the model.

    length: number of keys that the longest row attends to.
    uniform: whether all rows have the same positions, and no column is padding.
    """

    def __init__(
        self,
        pool: Tensor,
        tables: Sequence[Sequence[int]],
        starts: tuple[int, ...],
        counts: tuple[int, ...],
    ) -> None:
        self.starts, self.counts = starts, counts
        self.length = max(start + count for start, count in zip(starts, counts, strict=True))
        self.uniform = len(set(starts)) == 1 and len(set(counts)) == 1
        self._pool, self._tables = pool, tables
        self._reads = any(starts)  # else all that there is to read is new

    # Made when first needed: a kernel that reads the rows' tables needs no tensors.

    @cached_property
    def positions_BT(self) -> Tensor:  # noqa: N802
        """Absolute position of each new token; padding on the right repeats a row's last."""
        device = self._pool.device
        first_B1 = torch.tensor(self.starts, device=device)[:, None]
        offsets_T = torch.arange(max(self.counts), device=device)
        if len(set(self.counts)) == 1:
            return first_B1 + offsets_T
        last_B1 = torch.tensor(self.counts, device=device)[:, None] - 1
        return first_B1 + torch.minimum(offsets_T, last_B1)

    @cached_property
    def _valid_BT(self) -> Tensor | None:  # noqa: N802
        """Which tokens of the batch are no padding; None where none is."""
        if len(set(self.counts)) == 1:
            return None
        counts_B1 = torch.tensor(self.counts, device=self._pool.device)[:, None]
        return torch.arange(max(self.counts), device=self._pool.device) < counts_B1

    def update(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of a layer; returns all of them, [B, G, S, D] each.

        Where every row begins with this step these are the new ones as they came, padding included.
        Otherwise what lies beyond a row's length is zero.
        """
        dtype = self._pool.dtype
        k_BGTD, v_BGTD = k_BGTD.to(dtype), v_BGTD.to(dtype)
        self._write(layer, k_BGTD, v_BGTD)
        return self._read(layer) if self._reads else (k_BGTD, v_BGTD)

    def _write(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        new_BT2GD = torch.stack((k_BGTD, v_BGTD), 1).movedim(3, 1)
        (blocks, offsets), valid = self._index.cells, self._index.valid
        stored = new_BT2GD if valid is None else new_BT2GD[valid]
        self._pool[:, layer][blocks, :, :, offsets] = stored

    def _read(self, layer: int) -> tuple[Tensor, Tensor]:
        lines, beyond = self._index.lines, self._index.beyond
        assert lines is not None
        _, _, _, num_kv_heads, _, head_dim = self._pool.shape
        first = layer * 2 * num_kv_heads * BLOCK  # the layer's first line in block 0
        gathered = self._pool.view(-1, head_dim)[first:].index_select(0, lines)
        if beyond is not None:
            self._clear(gathered, beyond)
        keys, values = gathered.view(2, -1, num_kv_heads, self.length, head_dim)
        return keys, values

    def _clear(self, gathered: Tensor, beyond: Tensor) -> None:
        """Zero what no row holds: a NaN left there would come back as 0 * NaN under the mask."""
        gathered.index_fill_(0, beyond, 0)

    @cached_property
    def _index(self) -> _Index:
        return self._locate()

    def _locate(self) -> _Index:
        width = blocks_for(self.length)
        padded = [[*table, *[0] * (width - len(table))] for table in self._tables]
        table_BN = torch.tensor(padded, device=self._pool.device)
        blocks_BT = table_BN.gather(1, self.positions_BT // BLOCK)
        offsets_BT, valid = self.positions_BT % BLOCK, self._valid_BT
        cells = (blocks_BT, offsets_BT) if valid is None else (blocks_BT[valid], offsets_BT[valid])
        if not self._reads:
            return _Index(cells, valid, None, None)
        lines_2BGS = self._lines(table_BN)
        return _Index(cells, valid, lines_2BGS.flatten(), self._beyond(lines_2BGS.shape))

    def _lines(self, table_BN: Tensor) -> Tensor:
        """The lines that hold the positions of all rows, [2, B, G, S]."""
        _, num_layers, _, num_kv_heads, _, _ = self._pool.shape
        first_BN = table_BN * (num_layers * 2 * num_kv_heads * BLOCK)
        within = torch.arange(2 * num_kv_heads * BLOCK, device=self._pool.device)
        lines_2BGNP = first_BN[:, None, :, None] + within.view(2, 1, num_kv_heads, 1, BLOCK)
        return lines_2BGNP.flatten(3)[..., : self.length]

    def _beyond(self, shape: torch.Size) -> Tensor | None:
        """Which of the gathered lines, in a tensor of this shape, are beyond their row's end."""
        ends = [start + count for start, count in zip(self.starts, self.counts, strict=True)]
        if min(ends) == self.length:
            return None
        ends_B11 = torch.tensor(ends, device=self._pool.device)[:, None, None]
        beyond_B1S = torch.arange(self.length, device=self._pool.device) >= ends_B11
        return beyond_B1S.expand(shape).flatten().nonzero()[:, 0]


class TileView(CacheView):
    """New positions of one row, shown as the tile of BLOCK positions that they lie in.

    The tile stands on the absolute grid of multiples of BLOCK, and so does the end of the keys:
    what a position is computed from does not depend on how its row was cut into steps.

    columns: the new positions among those; nothing else is stored.
    length: where the tile ends. Keys and values beyond the row's end are zero.
    """

    def __init__(
        self, pool: Tensor, table: Sequence[int], start: int, num_new: int, context_length: int
    ) -> None:
        super().__init__(pool, [table], (start,), (num_new,))
        self._last = context_length - 1
        first = start - start % BLOCK
        self.columns = slice(start - first, start - first + num_new)
        self.length = first + BLOCK
        self.uniform = False
        self._reads = True

    @cached_property
    def positions_BT(self) -> Tensor:  # noqa: N802
        """Those of the tile, [1, BLOCK]; beyond the context its last position is repeated."""
        tile = range(self.length - BLOCK, self.length)
        return torch.tensor([[min(position, self._last) for position in tile]]).to(
            self._pool.device
        )

    @cached_property
    def _valid_BT(self) -> Tensor:  # noqa: N802
        columns_BT = torch.arange(BLOCK, device=self._pool.device)[None]
        return (columns_BT >= self.columns.start) & (columns_BT < self.columns.stop)
