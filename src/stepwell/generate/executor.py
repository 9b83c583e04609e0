"""How tokens go through the model: three executors of the same weights over the same cache.

    native   the C++ kernels, on a CPU: every position by itself, whatever stands beside it
    torch    forwards over several rows: any device, any intervention
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
from stepwell.model.blocks import BLOCK
from stepwell.model.cache import KVCache
from stepwell.model.cache_view import CacheView
from stepwell.model.hooks import Hooks, Intervention
from stepwell.model.native import native_decoder
from stepwell.model.transformer import Transformer
from stepwell.native.decoder import Decoder, Run

PADDING = 64
"""Positions that a forward in torch may waste on padding: more cost as much as another one."""
FEW_TOKENS = 128
"""More tokens at once are computed by torch where the kernels have no wide vectors."""


class Chunk(NamedTuple):
    """The next tokens of one row of the cache; logits are wanted after its last `wanted` tokens."""

    row: int
    ids: Sequence[int]
    wanted: int = 0


class Output(NamedTuple):
    """Logits [N, V], float32, of what was wanted, chunk by chunk.

    likeliest: the lowest id with the highest logit of each, where it is known already; None in the
    place of one whose logits are not finite.
    """

    logits: Tensor
    likeliest: list[int | None] | None = None


class Executor(Protocol):
    """Puts chunks behind their rows of the cache and computes them."""

    def run(self, chunks: Sequence[Chunk], interventions: Sequence[Intervention] = ()) -> Output:
        """What comes out of the model. Raises CacheError, and changes nothing, where none fits."""


class TorchExecutor:
    """Forwards over chunks of like length, padded on the right."""

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self._model, self._cache = model, cache

    def run(self, chunks: Sequence[Chunk], interventions: Sequence[Intervention] = ()) -> Output:
        hooks = Hooks(interventions) if interventions else None
        logits: dict[int, Tensor] = {}
        for group in _alike_in_length(chunks):
            together = self._forward(group, hooks)
            logits.update(zip((chunk.row for chunk in group), together, strict=True))
        return Output(torch.cat([logits[chunk.row] for chunk in chunks]))

    def _forward(self, chunks: Sequence[Chunk], hooks: Hooks | None) -> tuple[Tensor, ...]:
        """Logits [wanted, V] of each chunk."""
        lengths = [len(chunk.ids) for chunk in chunks]
        view = self._cache.append([chunk.row for chunk in chunks], lengths)
        ids_BT = torch.tensor([_padded(chunk.ids, max(lengths)) for chunk in chunks])
        hidden_BTC = self._model.hidden(ids_BT.to(self._model.device), view=view, hooks=hooks)
        logits_NV = self._logits(chunks, hidden_BTC, view, hooks)
        return torch.split(logits_NV, [chunk.wanted for chunk in chunks])

    def _logits(
        self, chunks: Sequence[Chunk], hidden_BTC: Tensor, view: CacheView, hooks: Hooks | None
    ) -> Tensor:
        """Logits [N, V], float32, of the positions that are wanted."""
        if view.uniform and all(chunk.wanted == 1 for chunk in chunks):
            wanted_N1C = hidden_BTC[:, -1:]
            positions_N1 = view.positions_BT[:, -1:]
        else:
            cells = [
                (index, len(chunk.ids) - back)
                for index, chunk in enumerate(chunks)
                for back in range(chunk.wanted, 0, -1)
            ]
            rows = [row for row, _ in cells]
            columns = [column for _, column in cells]
            wanted_N1C = hidden_BTC[rows, columns][:, None]
            positions_N1 = view.positions_BT[rows, columns][:, None]
        logits_N1V = self._model.logits(wanted_N1C, hooks=hooks, positions_BT=positions_N1)
        return logits_N1V[:, 0].float()


class NativeExecutor:
    """The kernels, which compute each position on its own. They know no interventions."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder, self._cache = decoder, cache

    def run(self, chunks: Sequence[Chunk], interventions: Sequence[Intervention] = ()) -> Output:
        assert not interventions, "the kernels know no interventions"
        rows = [chunk.row for chunk in chunks]
        starts = self._cache.extend(rows, [len(chunk.ids) for chunk in chunks])
        runs = [
            Run(chunk.ids, start, self._cache.table(chunk.row), chunk.wanted)
            for chunk, start in zip(chunks, starts, strict=True)
        ]
        logits, best, sound = self._decoder.step(runs, self._cache.pool)
        likeliest = [id if fine else None for id, fine in zip(best, sound, strict=True)]
        return Output(logits, likeliest)


class TileExecutor:
    """One row at a time, in forwards of exactly BLOCK positions on the grid of their multiples.

    All shapes that a position is computed in follow from the position, so that its bits do.
    """

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self._model, self._cache = model, cache

    def run(self, chunks: Sequence[Chunk], interventions: Sequence[Intervention] = ()) -> Output:
        hooks = Hooks(interventions) if interventions else None
        logits = [self._run_row(chunk, hooks) for chunk in chunks]
        return Output(torch.cat(logits))

    def _run_row(self, chunk: Chunk, hooks: Hooks | None) -> Tensor:
        """Logits [wanted, V] of one chunk."""
        parts, done = [], 0
        while done < len(chunk.ids):
            room = BLOCK - self._cache.length(chunk.row) % BLOCK
            ids = chunk.ids[done : done + room]
            done += len(ids)
            wanted = min(len(ids), max(0, chunk.wanted - (len(chunk.ids) - done)))
            parts.append(self._run_tile(chunk.row, ids, wanted, hooks))
        return torch.cat(parts)

    def _run_tile(self, row: int, ids: Sequence[int], wanted: int, hooks: Hooks | None) -> Tensor:
        view = self._cache.append_tile(row, len(ids))
        ids_1T = torch.zeros(1, BLOCK, dtype=torch.int64)
        ids_1T[0, view.columns] = torch.tensor(ids)
        hidden_1TC = self._model.hidden(ids_1T, view=view, hooks=hooks)
        logits_1TV = self._model.logits(hidden_1TC, hooks=hooks, positions_BT=view.positions_BT)
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

    def of(self, num_tokens: int, hooked: bool) -> Executor:
        """What computes a forward over so many tokens."""
        if hooked or self._native is None:
            return self._torch
        return self._native if self._wide or num_tokens <= FEW_TOKENS else self._torch


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
