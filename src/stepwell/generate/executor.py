"""How tokens go through the model: three executors of the same weights over the same cache.

    native   the C++ kernels, on a CPU: every position by itself, whatever stands beside it
    torch    forwards over several rows, on any device
    tiles    torch with the bits of a single position: one row at a time, in tiles of fixed shape

The first computes all that it can: it is the fastest. The second does the rest. The first and the
last give a position the same bits in every company and however its row was cut into steps, which is
what strict generation is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stepwell.errors import DeviceError
from stepwell.generate.row_hooks import NO_HOOKS, RowHooks, torch_hooks, touches
from stepwell.model.blocks import BLOCK
from stepwell.model.cache import KVCache
from stepwell.model.cache_view import CacheView
from stepwell.model.hooks import Hooks
from stepwell.model.native import native_decoder
from stepwell.model.places import Places
from stepwell.model.transformer import Transformer
from stepwell.native.decoder import Decoder, Run
from stepwell.native.hooks import Touch

PADDING = 64
"""Positions that a forward in torch may waste on padding: more cost as much as another one."""
FEW_TOKENS = 128
"""More tokens at once are computed by torch where the kernels have no wide vectors."""


class Chunk(NamedTuple):
    """The next tokens of one row of the cache; logits are wanted after its last `wanted` tokens.

    hooks: what is read and changed in the row. read: of how many of its last tokens it is logits.
    """

    row: int
    ids: Sequence[int]
    wanted: int = 0
    hooks: RowHooks = NO_HOOKS
    read: int = 0

    @property
    def num_logits(self) -> int:
        """After how many of its last tokens logits are computed."""
        return max(self.wanted, self.read)


class Output(NamedTuple):
    """Logits [N, V], float32, of what was wanted, chunk by chunk.

    likeliest: the lowest id with the highest logit of each, where it is known already; None in the
    place of one whose logits are not finite.
    """

    logits: Tensor
    likeliest: list[int | None] | None = None


class Executor(Protocol):
    """Puts chunks behind their rows of the cache and computes them."""

    name: str

    def run(self, chunks: Sequence[Chunk]) -> Output:
        """What comes out of the model. Raises CacheError, and changes nothing, where none fits."""


class TorchExecutor:
    """Forwards over chunks of like length, padded on the right."""

    name = "torch"

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self._model, self._cache = model, cache

    def run(self, chunks: Sequence[Chunk]) -> Output:
        logits: dict[int, Tensor] = {}
        for group in _alike_in_length(chunks):
            together = self._forward(group)
            logits.update(zip((chunk.row for chunk in group), together, strict=True))
        return Output(torch.cat([logits[chunk.row] for chunk in chunks]))

    def _forward(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Logits [wanted, V] of each chunk."""
        lengths = [len(chunk.ids) for chunk in chunks]
        hooks = torch_hooks([chunk.hooks for chunk in chunks], [range(each) for each in lengths])
        view = self._cache.append([chunk.row for chunk in chunks], lengths)
        padded = [_padded(chunk.ids, max(lengths)) for chunk in chunks]
        ids_BT = torch.tensor(padded, device=self._model.device)
        hidden_BTC = self._model.hidden(ids_BT, view=view, hooks=hooks)
        logits_NV = self._logits(chunks, hidden_BTC, ids_BT, view, hooks)
        found = torch.split(logits_NV, [chunk.num_logits for chunk in chunks])
        return [
            logits[len(logits) - chunk.wanted :]
            for logits, chunk in zip(found, chunks, strict=True)
        ]

    def _logits(
        self,
        chunks: Sequence[Chunk],
        hidden_BTC: Tensor,
        ids_BT: Tensor,
        view: CacheView,
        hooks: Hooks | None,
    ) -> Tensor:
        """Logits [N, V], float32, of the positions that are wanted."""
        if hooks is None and view.uniform and all(chunk.num_logits == 1 for chunk in chunks):
            return self._model.logits(hidden_BTC[:, -1:])[:, 0].float()
        cells = [
            (index, len(chunk.ids) - back)
            for index, chunk in enumerate(chunks)
            for back in range(chunk.num_logits, 0, -1)
        ]
        cells_N2 = torch.tensor(cells, dtype=torch.int64, device=ids_BT.device).view(-1, 2)
        rows, columns = cells_N2.unbind(1)
        places = None
        if hooks is not None:
            assert hooks.prompt_lengths is not None
            prompts = torch.tensor(hooks.prompt_lengths, device=ids_BT.device)[:, None]
            places = Places(view.positions_BT, ids_BT, prompts).select(rows, columns)
        hidden_N1C = hidden_BTC[rows, columns][:, None]
        return self._model.logits(hidden_N1C, hooks=hooks, places=places)[:, 0].float()


class NativeExecutor:
    """The kernels, which compute each position on its own, and touch it where a hook says so."""

    name = "native"

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder, self._cache = decoder, cache

    def run(self, chunks: Sequence[Chunk]) -> Output:
        rows = [chunk.row for chunk in chunks]
        starts = self._cache.extend(rows, [len(chunk.ids) for chunk in chunks])
        runs = [
            Run(chunk.ids, start, self._cache.table(chunk.row), chunk.num_logits)
            for chunk, start in zip(chunks, starts, strict=True)
        ]
        logits, best, sound = self._decoder.step(runs, self._cache.pool, _touches(chunks, starts))
        likeliest = [id if fine else None for id, fine in zip(best, sound, strict=True)]
        return _wanted(chunks, Output(logits, likeliest))


class TileExecutor:
    """One row at a time, in forwards of exactly BLOCK positions on the grid of their multiples.

    All shapes that a position is computed in follow from the position, so that its bits do.
    """

    name = "tiles"

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self._model, self._cache = model, cache

    def run(self, chunks: Sequence[Chunk]) -> Output:
        return Output(torch.cat([self._run_row(chunk) for chunk in chunks]))

    def _run_row(self, chunk: Chunk) -> Tensor:
        """Logits [wanted, V] of one chunk."""
        parts, done = [], 0
        while done < len(chunk.ids):
            room = BLOCK - self._cache.length(chunk.row) % BLOCK
            ids = chunk.ids[done : done + room]
            done += len(ids)
            wanted = min(len(ids), max(0, chunk.wanted - (len(chunk.ids) - done)))
            parts.append(self._run_tile(chunk, ids, wanted))
        return torch.cat(parts)

    def _run_tile(self, chunk: Chunk, ids: Sequence[int], wanted: int) -> Tensor:
        view = self._cache.append_tile(chunk.row, len(ids))
        ids_1T = torch.zeros(1, BLOCK, dtype=torch.int64)
        ids_1T[0, view.columns] = torch.tensor(ids)
        hooks = torch_hooks([chunk.hooks], [range(view.columns.start, view.columns.stop)])
        hidden_1TC = self._model.hidden(ids_1T, view=view, hooks=hooks)
        prompt = torch.tensor([[chunk.hooks.num_prompt]])
        places = Places(view.positions_BT, ids_1T, prompt)
        logits_1TV = self._model.logits(hidden_1TC, hooks=hooks, places=places)
        return logits_1TV[0, view.columns.stop - wanted : view.columns.stop].float()


class Executors:
    """The executors that an engine has, and which of them computes what.

    Raises DeviceError where strict generation is asked for and cannot be had.
    """

    def __init__(self, model: Transformer, cache: KVCache, *, strict: bool) -> None:
        decoder = native_decoder(model)
        self._native = None if decoder is None else NativeExecutor(decoder, cache)
        self._wide = strict or (decoder is not None and decoder.wide)
        self._torch: Executor = TorchExecutor(model, cache)
        if strict:
            _check_strict(model)
            self._torch = TileExecutor(model, cache)

    def of(self, num_tokens: int) -> Executor:
        """What computes a forward over so many tokens."""
        if self._native is None:
            return self._torch
        return self._native if self._wide or num_tokens <= FEW_TOKENS else self._torch


def _touches(chunks: Sequence[Chunk], starts: Sequence[int]) -> list[Touch]:
    """What the kernels have to do beside computing these chunks."""
    found: list[Touch] = []
    first_row = 0
    for chunk, start in zip(chunks, starts, strict=True):
        if chunk.hooks is not NO_HOOKS:
            found += touches(chunk.hooks, chunk.ids, start, first_row)
        first_row += len(chunk.ids)
    return found


def _wanted(chunks: Sequence[Chunk], output: Output) -> Output:
    """The logits that are wanted, of those that were computed to be read."""
    if all(chunk.num_logits == chunk.wanted for chunk in chunks):
        return output
    kept: list[int] = []
    end = 0
    for chunk in chunks:
        end += chunk.num_logits
        kept += range(end - chunk.wanted, end)
    likeliest = output.likeliest
    return Output(output.logits[kept], likeliest and [likeliest[each] for each in kept])


def _check_strict(model: Transformer) -> None:
    if model.device.type != "cpu":
        raise DeviceError(
            f"strict generation runs on a CPU; the model is on {model.device}, whose kernels give"
            " a row other bits in other company.",
            fix='use device="cpu", or leave strict out.',
        )


def _alike_in_length(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """The chunks in groups that are each padded to one length, each in the order of its rows."""
    groups: list[list[Chunk]] = []
    longest = wasted = 0
    for chunk in sorted(chunks, key=lambda chunk: len(chunk.ids), reverse=True):
        wasted += longest - len(chunk.ids)
        if not groups or wasted > PADDING:
            groups.append([])
            longest, wasted = len(chunk.ids), 0
        groups[-1].append(chunk)
    return [sorted(group, key=lambda chunk: chunk.row) for group in groups]


def _padded(ids: Sequence[int], width: int) -> list[int]:
    return [*ids, *[0] * (width - len(ids))]
