"""MMLU in a cache that the datasets library wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepwell.errors import DataError
from stepwell.evals.mmlu import is_letter, mmlu_questions

datasets = pytest.importorskip("datasets")

ROWS = [
    {"question": " What is 1+1?", "choices": ["1", "2", "3", "4"], "answer": 1},
    {"question": "And 2+2?\n", "choices": ["1", "2", "3", "4"], "answer": 3},
]


def put(cache: Path, subject: str, rows: list[dict[str, Any]], split: str = "test") -> None:
    """Rows where the library keeps those of a subject."""
    folder = cache / "cais___mmlu" / subject / "0.0.0" / "abc"
    folder.mkdir(parents=True, exist_ok=True)
    with datasets.arrow_writer.ArrowWriter(path=str(folder / f"mmlu-{split}.arrow")) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()


def test_a_question_offers_letters_and_is_right_by_one(tmp_path: Path) -> None:
    put(tmp_path, "sums", ROWS)
    put(tmp_path, "sums", ROWS[:1], split="validation")
    found = mmlu_questions(tmp_path)
    assert found is not None
    first, second = found.items
    assert first.prompt == "What is 1+1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    assert (first.expected, second.expected) == ("B", "D")
    assert first.grade(" B")
    assert not first.grade(" D")


def test_subjects_come_one_after_the_other_and_all_of_them_are_not_asked_twice(
    tmp_path: Path,
) -> None:
    put(tmp_path, "b", ROWS[:1])
    put(tmp_path, "a", ROWS[1:])
    put(tmp_path, "all", ROWS)
    found = mmlu_questions(tmp_path)
    assert found is not None
    assert [item.expected for item in found.items] == ["D", "B"]


def test_the_whole_set_alone_will_do(tmp_path: Path) -> None:
    put(tmp_path, "all", ROWS)
    found = mmlu_questions(tmp_path)
    assert found is not None
    assert len(found) == 2


def test_without_files_there_are_no_questions(tmp_path: Path) -> None:
    assert mmlu_questions(tmp_path) is None


def test_what_is_no_mmlu_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "sums", [{"question": "?", "choices": ["1"], "answer": 0}])
    with pytest.raises(DataError, match="4 choices"):
        mmlu_questions(tmp_path)


@pytest.mark.parametrize(
    ("text", "right"), [("B", True), (" B.", True), ("B) 2", True), ("Bad", False), ("", False)]
)
def test_a_letter_is_no_word(text: str, right: bool) -> None:
    assert is_letter("B", text) is right
