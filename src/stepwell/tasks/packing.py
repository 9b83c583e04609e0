"""Which texts share a row: lengths in, members of rows out. Knows no tokens."""

from __future__ import annotations

from collections.abc import Sequence


def first_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """The places of the texts in each row, none of which is longer than `width` altogether.

    The longest text first, each into the first row that has room for it, so that the rows are at
    most 11/9 of the fewest possible, and one more (first-fit decreasing; Johnson 1973). Texts of
    length 0 are left out; one that is longer than `width` has a row of its own.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        length = lengths[place]
        if not length:
            continue
        row = next((number for number, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(place)
        room[row] -= length
    return rows
