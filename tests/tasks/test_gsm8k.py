"""GSM8K as chats: the steps are thought, the number is answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepwell.errors import DataError
from stepwell.tasks import GSM8K

PUBLISHED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ROW = {
    "question": "Ann has 1,000 eggs and gets 24/2 more. How many?",
    "answer": "She gets 24/2=<<24/2=12>>12.\nThat is 1000+12=<<1000+12=1012>>1012.\n#### 1,012",
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_steps_are_thought_and_the_number_is_answered(tmp_path: Path) -> None:
    task = GSM8K(path=write(tmp_path / "a.jsonl", ROW))
    (example,) = task.examples
    assert example.prompt == ROW["question"] + "<|reply|>"
    steps = "She gets 24/2=12.\nThat is 1000+12=1012."
    assert example.answer == f"<think>{steps}</think>1,012<|end|>"


def test_a_number_is_right_however_it_is_written(tmp_path: Path) -> None:
    task = GSM8K(path=write(tmp_path / "a.jsonl", ROW))
    (example,) = task.examples
    for said in ("<think>?</think>1012<|end|>", "1,012", "1012<|end|>"):
        assert task.grade(example, said)
    for said in ("<think>1012</think>12<|end|>", "<think>1012", ""):
        assert not task.grade(example, said)


@pytest.mark.parametrize("row", [["x"], {"question": "a"}, {"question": "a", "answer": "5"}])
def test_another_row_is_named(tmp_path: Path, row: object) -> None:
    with pytest.raises(DataError, match=r"line 2: expected .*question"):
        GSM8K(path=write(tmp_path / "a.jsonl", ROW, row)).example_in("train", 0)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not at hand")
def test_the_published_files_do_not_leak(tmp_path: Path) -> None:
    task = GSM8K(path=PUBLISHED)
    counts = {split: task.splits.count(split) for split in ("train", "validation", "test")}
    assert (counts["test"], counts["train"] + counts["validation"]) == (1319, 7473)
    assert counts["validation"] > 300
