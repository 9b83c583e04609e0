"""What is kept of one row while it is generated: values at hook points, position by position.

A tape is filled by whoever computes a position, kernels or torch, and may be given a position
again: when a rejected draft is replaced, or when a row is computed anew. The last value counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Series
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import field_validator
from torch import Tensor

from stepwell.config import Config
from stepwell.model.config import ModelConfig
from stepwell.model.hooks import (
    HEAD_AXIS,
    LOGITS_LAYER,
    PATTERN,
    POINTS,
    QUERY_AXIS,
    Heads,
    check_heads,
    check_layer,
    check_point,
    width_of,
)
from stepwell.model.places import Places, Positions, absolute, covers, indexes

Chosen = Literal["all"] | tuple[int, ...]
Key = tuple[str, int]
Array = NDArray[np.float32]


class Record(Config):
    """What to keep of a row: which points, of which layers and heads, at which positions.

    Logits belong to no layer; they are kept under layer -1.
    """

    points: tuple[str, ...] = ("attention.pattern",)
    layers: Chosen = "all"
    heads: Chosen = "all"
    positions: Positions = "all"

    @field_validator("points")
    @classmethod
    def _known(cls, points: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(check_point(point) for point in points))

    def check(self, config: ModelConfig) -> None:
        """Raises HookError for a layer or head that the model lacks."""
        for layer in () if self.layers == "all" else self.layers:
            check_layer(layer, config)
        check_heads(() if self.heads == "all" else self.heads, config)

    def keys(self, config: ModelConfig) -> list[Key]:
        """(point, layer) of all that is kept, by layer in the order of the forward pass."""
        layers = range(config.num_layers) if self.layers == "all" else sorted(set(self.layers))
        points = [point for point in POINTS if point in self.points]
        found = [(point, layer) for layer in layers for point in points if point != "logits"]
        return [*found, *([("logits", LOGITS_LAYER)] if "logits" in points else [])]


class Tape:
    """The values of one row. num_prompt: tokens of its prompt, which positions may count by."""

    def __init__(self, record: Record, config: ModelConfig, num_prompt: int) -> None:
        self.record, self.num_prompt = record, num_prompt
        self.keys = record.keys(config)
        self._config = config
        self._pieces: dict[Key, list[tuple[Series[int], Array]]] = {key: [] for key in self.keys}

    def heads(self, point: str) -> Heads:
        """Which heads are kept at a point; None for all, or where it has none."""
        chosen = self.record.heads
        return None if chosen == "all" or point not in HEAD_AXIS else chosen

    def covers(self, position: int, token: int) -> bool:
        """Whether values at a position are kept; `token` is the id read there."""
        return bool(covers(self.record.positions, position, token, self.num_prompt))

    def make_room(self, key: Key, positions: Series[int], num_keys: int) -> Array:
        """Zeros [positions, heads, width] to be filled; a pattern's width is `num_keys`."""
        point, heads = key[0], self.heads(key[0])
        all_heads = self._config.num_heads if point in HEAD_AXIS else 1
        width = width_of(point, self._config) or num_keys
        shape = (len(positions), all_heads if heads is None else len(heads), width)
        piece = np.zeros(shape, np.float32)
        self._pieces[key].append((positions, piece))
        return piece

    def values(self, length: int) -> tuple[dict[Key, Tensor], tuple[int, ...]]:
        """What is held of the row's first `length` positions, and at which of them.

        Shapes are those of the hook points without the axis of rows, S = length.
        """
        pieces = (piece for pieces in self._pieces.values() for piece in pieces)
        held = {at for own, _ in pieces for at in own if at < length}
        numbered = indexes(self.record.positions)
        asked = None if numbered is None else [absolute(at, self.num_prompt) for at in numbered]
        positions = sorted(held) if asked is None else [at for at in asked if at in held]
        return {key: self._joined(key, positions, length) for key in self.keys}, tuple(positions)

    def _joined(self, key: Key, positions: Series[int], length: int) -> Tensor:
        point, pieces = key[0], self._pieces[key]
        place = {position: number for number, position in enumerate(positions)}
        all_heads = self._config.num_heads if point in HEAD_AXIS else 1
        heads = self.heads(point)
        num_heads = all_heads if heads is None else len(heads)
        width = width_of(point, self._config) or length
        joined = np.zeros((len(positions), num_heads, width), np.float32)
        for at, piece in pieces:
            kept = [number for number, position in enumerate(at) if position in place]
            keys = min(width, piece.shape[-1])
            joined[[place[at[number]] for number in kept], :, :keys] = piece[kept, :, :keys]
        value = torch.from_numpy(joined)
        if point == PATTERN:
            return value.transpose(0, 1)
        return value if point in HEAD_AXIS else value[:, 0]


class TapeRecorder:
    """Puts what passes in one forward of torch on the tapes of its rows; None where a row has none.

    columns: which tokens of each row are its own; the others are padding.
    """

    def __init__(self, tapes: Series[Tape | None], columns: Series[range]) -> None:
        self._tapes, self._columns = tapes, columns
        self._rows: dict[Key, list[int]] = {}
        for row, tape in enumerate(tapes):
            for key in () if tape is None else tape.keys:
                self._rows.setdefault(key, []).append(row)
        self._kept: tuple[Places, list[tuple[Tape, int, list[int], list[int]]]] | None = None

    def wants(self, point: str, layer: int) -> bool:
        """Whether a tape keeps this point."""
        return (point, layer) in self._rows

    def heads(self, point: str, layer: int) -> Heads:
        """Which heads the tapes keep there; None for all."""
        chosen = [
            tape.heads(point) for row in self._rows[point, layer] if (tape := self._tapes[row])
        ]
        if any(heads is None for heads in chosen):
            return None
        return tuple(sorted({head for heads in chosen for head in heads or ()}))

    def take(self, point: str, layer: int, value: Tensor, places: Places, heads: Heads) -> None:
        """Copies what the tapes of the rows keep of a value."""
        by_position = value.detach().movedim(QUERY_AXIS.get(point, 1), 1)
        for tape, row, columns, positions in self._where(places):
            if (point, layer) not in tape.keys:
                continue
            kept = by_position[row, columns]
            own = tape.heads(point)
            if own is not None:
                kept = kept[:, [head if heads is None else heads.index(head) for head in own]]
            room = tape.make_room((point, layer), positions, value.shape[-1])
            room[:] = kept.to("cpu", torch.float32).reshape(room.shape).numpy()

    def _where(self, places: Places) -> list[tuple[Tape, int, list[int], list[int]]]:
        """What is kept of the rows at these places: tape, row of the value, columns, positions."""
        if self._kept is None or self._kept[0] is not places:
            self._kept = places, list(self._find(places))
        return self._kept[1]

    def _find(self, places: Places) -> Iterator[tuple[Tape, int, list[int], list[int]]]:
        positions_BT, rows = places.positions_BT.tolist(), places.rows_B.tolist()
        for row, batch_row in enumerate(rows):
            tape = self._tapes[batch_row]
            if tape is None:
                continue
            chosen = places.chosen(tape.record.positions)[row].tolist()
            own = self._columns[batch_row] if places.rows is None else range(1)
            columns = [column for column in own if chosen[column]]
            if columns:
                yield tape, row, columns, [positions_BT[row][column] for column in columns]
