"""Data sets on disk: loadable, whole or not there, and refused where they are not what they say."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from stepwell.errors import DataError, FormatError, UsageError
from stepwell.tasks import (
    Arithmetic,
    Corpus,
    Example,
    Facts,
    Task,
    VariableRenaming,
    check_leakage,
    read_dataset,
    task_from_plain,
    write_dataset,
)

COUNTS = {"train": 40, "validation": 7, "test": 5}


class Leaking(Task):
    """The control: splits that share everything, without being declared as memorised."""

    def example(self, index: int) -> Example:
        return Example.completion(f"leak {index}=", "1")

    def example_in(self, split: str, i: int) -> Example:
        return self.example(i)


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    (tmp_path / "text.txt").write_text("".join(f"{i} Stufen für dich. " for i in range(500)))
    return [
        VariableRenaming(renames=20),
        Arithmetic(),
        Facts(facts=20),
        Corpus(path=tmp_path / "text.txt", window=16, tokens="bpe", vocab_size=300),
    ]


def test_what_was_written_is_read_back(tasks: list[Task], tmp_path: Path) -> None:
    for task in tasks:
        directory = write_dataset(task, tmp_path / task.name, COUNTS)
        splits = read_dataset(directory, task)
        assert {split: len(examples) for split, examples in splits.items()} == COUNTS
        for split, examples in splits.items():
            assert examples == [task.example_in(split, i) for i in range(len(examples))]


def test_the_datasets_library_loads_it(
    tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    for task in tasks:
        directory = write_dataset(task, tmp_path / task.name, COUNTS)
        loaded = datasets.load_dataset(str(directory), cache_dir=str(tmp_path / "cache"))
        assert loaded.num_rows == COUNTS
        example = task.example_in("validation", 6)
        row = loaded["validation"][6]
        assert (row["text"], row["prompt"], row["answer"]) == (
            example.text,
            example.prompt,
            example.answer,
        )
        assert [target["depth"] for target in row["targets"]] == [t.depth for t in example.targets]


def test_the_manifest_makes_the_task_again(tasks: list[Task], tmp_path: Path) -> None:
    for task in tasks:
        directory = write_dataset(task, tmp_path / task.name, COUNTS)
        manifest = json.loads((directory / "manifest.json").read_text())
        assert task_from_plain(manifest["task"]).fingerprint == manifest["fingerprint"]
        assert manifest["format_version"] == 1
        assert manifest["counts"] == COUNTS


def test_another_task_is_refused(tmp_path: Path) -> None:
    directory = write_dataset(Arithmetic(), tmp_path / "sums", COUNTS)
    assert read_dataset(directory, Arithmetic(digits=3))
    for other in (Arithmetic(digits=2), Arithmetic(seed=1), Facts()):
        with pytest.raises(DataError, match="has the fingerprint"):
            read_dataset(directory, other)


def test_an_example_in_two_splits_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'leak 0=' is in the splits train and validation"):
        write_dataset(Leaking(), tmp_path / "leak", COUNTS)
    assert list(tmp_path.iterdir()) == []


def test_leakage_is_of_prompts_and_not_of_answers() -> None:
    train = [Example.completion("1+1=", "2"), Example.completion("1+1=", "2")]
    check_leakage({"train": train, "test": [Example.completion("1+2=", "2")]})
    with pytest.raises(DataError, match=r"'1\+1=' is in the splits train and test"):
        check_leakage({"train": train, "test": [Example.completion("1+1=", "3")]})


def test_a_directory_that_is_there_is_left_alone(tmp_path: Path) -> None:
    directory = write_dataset(Arithmetic(), tmp_path / "sums", COUNTS)
    before = (directory / "manifest.json").read_bytes()
    with pytest.raises(DataError, match="sums exists"):
        write_dataset(Arithmetic(seed=1), directory, COUNTS)
    assert (directory / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("step", range(7))
def test_a_write_that_fails_leaves_a_whole_data_set_or_nothing(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the step-th flush: of five files, of the directory, of its name."""
    flush, count = os.fsync, iter(range(100))

    def full(descriptor: int) -> None:
        if next(count) == step:
            raise OSError(28, "No space left on device")
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_dataset(Arithmetic(), tmp_path / "sums", COUNTS)
    left = [path.name for path in tmp_path.iterdir()]
    assert left == (["sums"] if step == 6 else [])
    if left:
        assert read_dataset(tmp_path / "sums", Arithmetic())


def test_damage_is_found(tmp_path: Path) -> None:
    whole = write_dataset(Arithmetic(), tmp_path / "whole", COUNTS)
    for name in ("train.jsonl", "test.jsonl"):
        damaged = tmp_path / "damaged"
        shutil.copytree(whole, damaged)
        content = bytearray((damaged / name).read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is damaged"):
            read_dataset(damaged)
        (damaged / name).unlink()
        with pytest.raises(DataError, match=f"{name}: No such file"):
            read_dataset(damaged)
        shutil.rmtree(damaged)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format_version": "x", "fingerprint": "", "files": {}}',
        '{"format_version": 1, "fingerprint": 3, "files": {}}',
        '{"format_version": 1, "fingerprint": "", "files": []}',
        '{"format_version": 1, "fingerprint": "", "files": {"../train": ""}}',
    ],
)
def test_a_manifest_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest.json is damaged"):
        read_dataset(tmp_path)


def test_a_directory_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest.json: No such file"):
        read_dataset(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    directory = write_dataset(Arithmetic(), tmp_path / "sums", COUNTS)
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"format_version": 2}))
    with pytest.raises(FormatError, match="format_version 2, this version reads up to 1"):
        read_dataset(directory)


def test_counts_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'train'"):
        write_dataset(Arithmetic(), tmp_path / "sums", {"trian": 3})
    with pytest.raises(UsageError, match="0 examples of the test split"):
        write_dataset(Arithmetic(), tmp_path / "sums", {"train": 3, "test": 0})
