"""Prompts and answers from a user's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepwell.errors import DataError
from stepwell.tasks import SPLITS, Pairs


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


ROWS = [(f"{i}²: ", str(i * i)) for i in range(300)]


def test_the_splits_are_the_lines_of_the_file_once_each(tmp_path: Path) -> None:
    task = Pairs(path=write(tmp_path / "a.jsonl", ROWS))
    members = {split: len(task._members[split]) for split in SPLITS}
    met = [task.example_in(split, i) for split in SPLITS for i in range(members[split])]
    assert sorted((e.prompt, e.answer) for e in met) == sorted(ROWS)


def test_each_epoch_meets_every_line_in_another_order(tmp_path: Path) -> None:
    task = Pairs(path=write(tmp_path / "a.jsonl", ROWS))
    count = len(task._members["train"])
    epochs = [
        [task.example_in("train", e * count + i).prompt for i in range(count)] for e in (0, 1, 0)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    assert epochs[0] == epochs[2]


def test_a_prompt_that_comes_twice_stays_in_one_split(tmp_path: Path) -> None:
    rows = [(prompt, answer + suffix) for prompt, answer in ROWS for suffix in ("", "!")]
    task = Pairs(path=write(tmp_path / "a.jsonl", rows))
    homes = [{task.examples[n].prompt for n in task._members[split]} for split in SPLITS]
    assert sum(map(len, homes)) == len(set().union(*homes)) == 300


def test_the_alphabet_is_that_of_the_texts_and_not_of_their_escapes(tmp_path: Path) -> None:
    task = Pairs(path=write(tmp_path / "a.jsonl", [("é\n", "ø")] * 3))
    assert "\\u00e9" in task.text
    assert [task.tokenizer.token(i) for i in range(4)] == ["\n", "é", "ø", "<eos>"]


def test_further_keys_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"prompt": "a", "answer": "b", "id": 3}\r\n\n', encoding="utf-8")
    assert [example.text for example in Pairs(path=path).examples] == ["ab"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "line 2: not valid JSON"),
        ("[" * 100_000, "line 2: not valid JSON"),
        ("[1]", "line 2: expected the keys prompt and answer, found list"),
        ('{"prompt": "a", "anwser": "b"}', "line 2: expected .* found .*anwser"),
        ('{"prompt": "a", "answer": 3}', "line 2: answer is 3"),
        ('{"prompt": "", "answer": "b"}', "line 2: prompt is ''"),
        ('{"prompt": "a", "answer": "\\ud800"}', "line 2: answer is"),
    ],
)
def test_a_malformed_line_is_an_error_that_names_file_and_line(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"a.jsonl, {message}"):
        Pairs(path=path).batch("train", [0])


def test_an_empty_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl is empty"):
        Pairs(path=tmp_path / "a.jsonl").batch("train", [0])


def test_a_split_without_a_line_is_an_error(tmp_path: Path) -> None:
    task = Pairs(path=write(tmp_path / "a.jsonl", [("a", "b")]))
    home = task.examples[0].split
    assert task.example_in(home, 17).answer == "b"
    for split in set(SPLITS) - {home}:
        with pytest.raises(DataError, match=f"none of 1 examples belongs to the {split} split"):
            task.example_in(split, 0)
