"""Several examples in a row: none is lost, none is cut, and none is changed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.tasks import IGNORE, Batch, Encoded
from stepwell.tasks.packing import first_fit

LENGTHS = st.lists(st.integers(1, 30), max_size=40)


@given(LENGTHS, st.integers(1, 60))
def test_every_text_is_in_one_row_that_has_room_for_it(lengths: list[int], width: int) -> None:
    rows = first_fit(lengths, width)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[place] for place in row) <= width or len(row) == 1


@given(LENGTHS)
def test_no_two_rows_could_be_one(lengths: list[int]) -> None:
    """What first fit promises, and one text a row (the padded batch) does not."""
    full = sorted(sum(lengths[place] for place in row) for row in first_fit(lengths, 30))
    assert all(left + right > 30 for left, right in pairwise(full))
    assert any(left + right <= 30 for left, right in pairwise([10, 12]))


def test_the_longest_go_first() -> None:
    assert first_fit([3, 7, 5, 4, 0, 1], 10) == [[1, 0], [2, 3, 5]]
    assert first_fit([12, 3], 10) == [[0], [1]]


def random_rows(lengths: list[int]) -> list[Encoded]:
    """Rows whose tokens are all different, labelled at every second place."""
    rows, token = [], 1
    for length in lengths:
        ids = list(range(token, token + length))
        labels = [token if place % 2 == 0 else IGNORE for place, token in enumerate(ids)]
        rows.append(Encoded(ids, labels, [0] * length))
        token += length
    return rows


def documents(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(ids, labels) of each document of a batch, padding left out."""
    assert batch.segments is not None
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, columns in enumerate(batch.ids.tolist()):
        for column, token in enumerate(columns):
            if token:
                number = int(batch.segments[row, column])
                label = int(batch.labels[row, column])
                found.setdefault((row, number), []).append((token, label))
    return [tuple(zip(*pairs, strict=True)) for pairs in found.values()]  # type: ignore[misc]


@settings(deadline=None)
@given(LENGTHS.filter(bool))
def test_packing_moves_documents_and_changes_none(lengths: list[int]) -> None:
    padded = Batch.of(random_rows(lengths))
    packed = Batch.packed(padded.rows(), width=padded.ids.shape[1])
    expected = Counter((tuple(row.ids), tuple(row.labels)) for row in padded.rows())
    assert Counter(documents(packed)) == expected
    assert packed.ids.shape[1] <= padded.ids.shape[1]
    assert packed.ids.numel() <= padded.ids.numel()


def test_what_follows_the_last_label_is_left_out() -> None:
    rows = [
        Encoded([5, 6, 7], [IGNORE, 9, IGNORE], [0, 2, 0]),
        Encoded([8, 9, 1], [IGNORE] * 3, [0] * 3),
        Encoded([3, 4, 2], [4, 2, 1], [1, 1, 1]),
    ]
    batch = Batch.of(rows)
    assert [row.ids for row in batch.rows()] == [[5, 6], [], [3, 4, 2]]
    packed = Batch.packed(batch.rows(), width=8)
    assert packed.ids.tolist() == [[3, 4, 2, 5, 6]]
    assert packed.labels.tolist() == [[4, 2, 1, IGNORE, 9]]
    assert packed.depths.tolist() == [[1, 1, 1, 0, 2]]
    assert packed.segments is not None
    assert packed.segments.tolist() == [[0, 0, 0, 1, 1]]


def test_packing_what_is_packed_keeps_every_border() -> None:
    rows = random_rows([3, 5, 1, 7])
    once = Batch.packed(rows, width=8)
    again = Batch.packed(once.rows(), width=20)
    assert len(again.ids) == 1
    assert sorted(documents(again)) == sorted(documents(once))
    assert len(documents(again)) == 4


@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_parts_keep_the_segments(num_parts: int) -> None:
    batch = Batch.packed(random_rows([3, 5, 2, 4, 6]), width=8)
    parts = batch.parts(num_parts)
    assert len(parts) == num_parts
    assert [pair for part in parts for pair in documents(part)] == documents(batch)
    moved = batch.to("cpu").segments
    assert moved is not None
    assert moved.equal(batch.segments)  # type: ignore[arg-type]
