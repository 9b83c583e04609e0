"""MMLU in a cache that the datasets library wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.mmlu_cache import put_mmlu

from stepwell.errors import DataError
from stepwell.tasks.mmlu import is_letter, mmlu_questions

pytest.importorskip("datasets")

ROWS = [
    {"question": " What is 1+1?", "choices": ["1", "2", "3", "4"], "answer": 1},
    {"question": "And 2+2?\n", "choices": ["1", "2", "3", "4"], "answer": 3},
]


def test_a_question_offers_letters_and_is_right_by_one(tmp_path: Path) -> None:
    put_mmlu(tmp_path, "sums", ROWS)
    put_mmlu(tmp_path, "sums", ROWS[:1], split="validation")
    found = mmlu_questions(tmp_path)
    first, second = sorted(found.items, key=lambda item: item.expected)
    assert first.prompt == "What is 1+1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    assert (first.expected, second.expected) == ("B", "D")
    assert first.grade(" B")
    assert not first.grade(" D")


def test_subjects_are_mixed_and_all_of_them_are_not_asked_twice(tmp_path: Path) -> None:
    """The first questions are a fair sample, in an order that does not change."""
    rows = [{**ROWS[0], "question": f"What is {number}?"} for number in range(100)]
    put_mmlu(tmp_path, "low", rows[:50])
    put_mmlu(tmp_path, "high", rows[50:])
    put_mmlu(tmp_path, "all", rows)
    prompts = [item.prompt for item in mmlu_questions(tmp_path).items]
    assert len(set(prompts)) == len(prompts) == 100
    low = {f"What is {number}?" for number in range(50)}
    assert 15 <= sum(prompt.split("\n")[0] in low for prompt in prompts[:50]) <= 35
    assert [item.prompt for item in mmlu_questions(tmp_path).items] == prompts


def test_the_whole_set_alone_will_do(tmp_path: Path) -> None:
    put_mmlu(tmp_path, "all", ROWS)
    found = mmlu_questions(tmp_path)
    assert len(found) == 2


def test_without_files_it_is_said_where_they_should_lie(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cais___mmlu holds no test questions") as caught:
        mmlu_questions(tmp_path)
    assert "HF_DATASETS_CACHE" in str(caught.value.fix)


def test_what_is_no_mmlu_is_refused(tmp_path: Path) -> None:
    put_mmlu(tmp_path, "sums", [{"question": "?", "choices": ["1"], "answer": 0}])
    with pytest.raises(DataError, match="4 choices"):
        mmlu_questions(tmp_path)


@pytest.mark.parametrize(
    ("text", "right"), [("B", True), (" B.", True), ("B) 2", True), ("Bad", False), ("", False)]
)
def test_a_letter_is_no_word(text: str, right: bool) -> None:
    assert is_letter("B", text) is right
