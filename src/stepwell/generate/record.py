"""Recordings: what passed chosen hook points, for chosen layers, heads and positions.

`record` makes one in a single forward over prompts; a request that asks for one gets it with its
answer. `recording_files` keeps them on disk, `statistics` sums them up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Series
from typing import NamedTuple

import torch
from torch import Tensor

from stepwell.errors import HookError, PromptError
from stepwell.generate.tape import Key, Record, Tape, TapeRecorder
from stepwell.model.hooks import Hooks
from stepwell.model.interventions import Intervention
from stepwell.model.places import indexes
from stepwell.model.transformer import Transformer


class RecordedRow(NamedTuple):
    """One text's values, without an axis of rows; its length, and the positions that were kept."""

    values: Mapping[Key, Tensor]
    length: int
    positions: tuple[int, ...]


class Recording(Mapping[tuple[str, int], Tensor]):
    """Recorded values by (point, layer), float32 on the CPU; logits are under layer -1.

    Under a key all rows lie in one tensor, padded with zeros on the right to the longest. `row`
    gives one row's values without padding; `lengths` and `positions` say how long each is, and
    which of its positions were kept.
    """

    def __init__(self, rows: Series[RecordedRow]) -> None:
        self.rows = tuple(rows)
        self.lengths = tuple(row.length for row in self.rows)
        self.positions = tuple(row.positions for row in self.rows)

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        return _padded([self._of(row, key) for row in self.rows])

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.rows[0].values)

    def __len__(self) -> int:
        return len(self.rows[0].values)

    def row(self, row: int) -> dict[tuple[str, int], Tensor]:
        """The values of one row, without the axis of rows and without padding."""
        return dict(self.rows[row].values)

    def _of(self, row: RecordedRow, key: tuple[str, int]) -> Tensor:
        if key not in row.values:
            recorded = ", ".join(f"{point} of layer {layer}" for point, layer in row.values)
            raise HookError(f"{key} was not recorded, only {recorded}.")
        return row.values[key]


def recorded(tape: Tape, length: int) -> RecordedRow:
    """What a tape holds of a row's first `length` positions."""
    values, positions = tape.values(length)
    return RecordedRow(values, length, positions)


def record(
    model: Transformer,
    prompts: Series[Series[int]],
    spec: Record,
    interventions: Series[Intervention] = (),
) -> Recording:
    """The values at the chosen points in one forward over token ids, padded on the right.

    Raises PromptError where a prompt is missing, empty or too long, HookError for a layer, head or
    position that is not there.
    """
    lengths = [len(prompt) for prompt in prompts]
    _check(lengths, spec)
    spec.check(model.config)
    tapes = [Tape(spec, model.config, length) for length in lengths]
    hooks = Hooks(
        interventions,
        [TapeRecorder(tapes, [range(length) for length in lengths])],
        prompt_lengths=lengths,
    )
    rows = [[*prompt, *[0] * (max(lengths) - len(prompt))] for prompt in prompts]
    ids_BT = torch.tensor(rows, device=model.device)
    with torch.inference_mode():
        if "logits" in spec.points:
            model(ids_BT, hooks=hooks)
        else:
            model.hidden(ids_BT, hooks=hooks)
    return Recording([recorded(*pair) for pair in zip(tapes, lengths, strict=True)])


def _check(lengths: Series[int], spec: Record) -> None:
    if not lengths or not min(lengths):
        raise PromptError("There is nothing to record: no prompt, or one without a token.")
    for position in indexes(spec.positions) or ():
        if not -min(lengths) <= position < min(lengths):
            last = min(lengths) - 1
            raise HookError(f"The shortest prompt has positions 0..{last}, not {position}.")


def _padded(values: Series[Tensor]) -> Tensor:
    """Values of several rows in one tensor, [B, ...], with zeros behind the shorter ones."""
    shape = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]
    padded = values[0].new_zeros(len(values), *shape)
    for row, value in zip(padded, values, strict=True):
        row[tuple(slice(size) for size in value.shape)] = value
    return padded
