"""Rows of files and of directories with splits: what was kept apart stays apart."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from stepwell.errors import DataError, UsageError
from stepwell.tasks import Pairs
from stepwell.tasks.rows import read_rows, split_named

SPLITS = {"train": range(40), "validation": range(40, 50), "test": range(50, 60)}


def pair(number: int) -> dict[str, str]:
    return {"prompt": f"{number}=", "answer": str(number)}


def write(file: Path, numbers: range) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(json.dumps(pair(number)) for number in numbers))


def saved(directory: Path, form: str) -> Path:
    """The splits in one of the forms in which they are found."""
    datasets = pytest.importorskip("datasets")
    parts = {split: [pair(n) for n in numbers] for split, numbers in SPLITS.items()}
    tables = {split: datasets.Dataset.from_list(rows) for split, rows in parts.items()}
    if form == "jsonl":
        for split, numbers in SPLITS.items():
            write(directory / f"{split}.jsonl", numbers)
    elif form == "named as others do":
        for name, split in (("my_training", "train"), ("dev", "validation"), ("test", "test")):
            write(directory / f"{name}-00000-of-00001.jsonl", SPLITS[split])
    elif form == "parquet":
        (directory / "data").mkdir(parents=True)
        for split, table in tables.items():
            table.to_parquet(directory / "data" / f"{split}-00000-of-00001.parquet")
    else:
        datasets.DatasetDict(tables).save_to_disk(directory)
    return directory


@pytest.mark.parametrize("form", ["jsonl", "named as others do", "parquet", "save_to_disk"])
def test_the_splits_of_a_directory_are_kept(tmp_path: Path, form: str) -> None:
    task = Pairs(path=saved(tmp_path / "data", form))
    for split, numbers in SPLITS.items():
        found = {task.example_in(split, i).answer for i in range(len(numbers))}
        assert found == {str(number) for number in numbers}


def test_a_split_without_a_file_is_taken_out_of_the_training_rows(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", range(400))
    write(tmp_path / "test.jsonl", range(400, 410))
    task = Pairs(path=tmp_path)
    assert [task.splits.count(split) for split in ("train", "test")] == [
        400 - task.splits.count("validation"),
        10,
    ]
    assert 5 < task.splits.count("validation") < 40


def test_a_row_of_two_splits_is_refused_with_both_places(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", range(20))
    write(tmp_path / "test.jsonl", range(19, 30))
    with pytest.raises(DataError, match=r"test.jsonl, line 1 asks the same as .*line 20"):
        Pairs(path=tmp_path).example_in("train", 0)
    write(tmp_path / "test.jsonl", range(20, 30))  # the control: without the one row it is fine
    assert Pairs(path=tmp_path).example_in("train", 0)


def test_the_fingerprint_is_of_rows_and_splits_wherever_they_lie(tmp_path: Path) -> None:
    one, two = (Pairs(path=saved(tmp_path / name, "jsonl")) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    (tmp_path / "two" / "test.jsonl").rename(tmp_path / "two" / "dev.jsonl")
    assert Pairs(path=tmp_path / "two").fingerprint != one.fingerprint


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no file of a split"):
        read_rows(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(DataError, match=r"train.parquet: not a Parquet file"):
        read_rows(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="not a data set that can be read"):
        read_rows(tmp_path)


@pytest.mark.parametrize("form", ["parquet", "save_to_disk"])
def test_a_missing_library_is_named(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "data", form)
    for name in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="not installed") as caught:
        read_rows(path)
    assert "stepwell[datasets]" in str(caught.value)


def test_names_of_files_tell_the_split() -> None:
    named = {"val.jsonl": "validation", "test-2.parquet": "test", "contest.jsonl": None}
    assert {name: split_named(Path(name)) for name in named} == named
