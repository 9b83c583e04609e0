"""What is read and changed in one row, and how each executor is told of it.

A forward in torch takes `Hooks`, the kernels take `Touch`es. Both come from the same edits and
tapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Series
from dataclasses import dataclass

import numpy as np

from stepwell.generate.tape import Tape, TapeRecorder
from stepwell.model.hooks import Edit, Hooks
from stepwell.model.places import absolute, covers, indexes
from stepwell.native.hooks import Touch


@dataclass(frozen=True)
class RowHooks:
    """The edits of one row, in order, and the tape that it is recorded on.

    num_prompt: tokens of its prompt, which positions may count by.
    """

    edits: Series[Edit] = ()
    num_prompt: int = 0
    tape: Tape | None = None

    def num_logits(self, ids: Series[int], start: int) -> int:
        """After how many of the last of these tokens, the first at `start`, logits are kept."""
        if self.tape is None or "logits" not in self.tape.record.points:
            return 0
        kept = (self.tape.covers(position, token) for position, token in enumerate(ids, start))
        return next((len(ids) - offset for offset, keeps in enumerate(kept) if keeps), 0)


NO_HOOKS = RowHooks()


def torch_hooks(rows: Series[RowHooks], columns: Series[range]) -> Hooks | None:
    """Hooks of a forward over these rows, None where nothing is read or changed.

    columns: which tokens of each row are new; the others are padding.
    """
    tapes = [row.tape for row in rows]
    recorders = [TapeRecorder(tapes, columns)] if any(tapes) else []
    if not recorders and not any(row.edits for row in rows):
        return None
    prompts = [row.num_prompt for row in rows]
    return Hooks.by_row([row.edits for row in rows], recorders, prompt_lengths=prompts)


def touches(row: RowHooks, ids: Series[int], start: int, first_row: int) -> Iterator[Touch]:
    """What the kernels have to do to tokens `ids` of a row, the first of them at position `start`.

    first_row: the number that the first has among all positions of the step.
    """
    for edit in row.edits:
        for begin, end in spans(edit, row.num_prompt, ids, start):
            yield from _edit(edit, row.num_prompt, start + begin, first_row + begin, end - begin)
    if row.tape is not None:
        yield from _keep(row.tape, ids, start, first_row)


def spans(edit: Edit, num_prompt: int, ids: Series[int], start: int) -> list[tuple[int, int]]:
    """The neighbouring tokens that an edit covers, as begin and end among `ids`."""
    if edit.positions == "all":
        return [(0, len(ids))]
    covered = [
        covers(edit.positions, position, token, num_prompt)
        for position, token in enumerate(ids, start)
    ]
    return _runs(covered)


def _runs(flags: Series[bool]) -> list[tuple[int, int]]:
    """Begin and end of each run of neighbours that are true."""
    edges = np.flatnonzero(np.diff([False, *flags, False]))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _edit(edit: Edit, num_prompt: int, position: int, row: int, count: int) -> Iterator[Touch]:
    """An edit of `count` positions from one on, all of which it covers."""
    values = None if edit.values is None else edit.values.numpy()
    touch = Touch(edit.point, edit.layer, edit.action, row, count, edit.number, edit.heads, values)
    if values is None or len(values) == 1:
        yield touch
        return
    places = {
        absolute(index, num_prompt): at for at, index in enumerate(indexes(edit.positions) or ())
    }
    for offset in range(count):
        at = places[position + offset]
        yield touch._replace(first_row=row + offset, rows=1, values=values[at : at + 1])


def _keep(tape: Tape, ids: Series[int], start: int, first_row: int) -> Iterator[Touch]:
    """What a tape keeps of these tokens."""
    covered = [tape.covers(position, token) for position, token in enumerate(ids, start)]
    for begin, end in _runs(covered):
        positions = range(start + begin, start + end)
        for key in tape.keys:
            point, layer = key
            room = tape.make_room(key, positions, positions.stop)
            row, count = first_row + begin, end - begin
            yield Touch(point, layer, "keep", row, count, heads=tape.heads(point), to=room)
