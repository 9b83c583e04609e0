"""Rows of the user's files: a JSONL file, or a directory with a file for each split.

Owns which files of a directory hold which split, and how each kind is read. What a row means is the
business of the task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from stepwell.errors import DataError, UsageError
from stepwell.tasks.example import SPLITS

NAMES: Final = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
"""Splits by the words that stand for them in names of files, as `datasets` knows them."""

SURROGATE: Final = re.compile("[\ud800-\udfff]")
"""Half a character, which JSON can spell and UTF-8 cannot."""

KINDS: Final = (".jsonl", ".parquet")
SAVED: Final = ("dataset_dict.json", "state.json")  # what `datasets` writes with save_to_disk

_FORMS: Final = "give a JSONL file, or a directory of train.jsonl, validation.jsonl and test.jsonl."


class Row(NamedTuple):
    """A row as it was read, the place that errors name, and the split of the file that it is from.

    A row from a file of its own is in "train".
    """

    value: Any
    where: str
    split: str


def read_rows(path: Path) -> list[Row]:
    """All rows of a file or a directory. Raises DataError that names the file and the line."""
    if not path.is_dir():
        return list(_rows(path, "train"))
    if any((path / name).is_file() for name in SAVED):
        return list(_saved(path))
    files = _files(path)
    if not files:
        raise DataError(f"{path} holds no file of a split.", fix=_FORMS)
    return [row for file, split in files for row in _rows(file, split)]


def read_text(path: Path) -> str:
    """The text of a file in UTF-8. Raises DataError where it is missing, empty or another."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, byte {error.start}: not UTF-8.") from None
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise DataError(f"{path}: {reason}.", fix="give the path of a text file.") from None
    if not text.strip():
        raise DataError(f"{path} is empty.", fix="give a file with text in it.")
    return text


def split_named(file: Path) -> str | None:
    """The split that a file's name speaks of: dev-00000-of-00003.parquet; None where of none."""
    words = re.split(r"[^a-z]+", file.stem.lower())
    return next((NAMES[word] for word in words if word in NAMES), None)


def _files(directory: Path) -> list[tuple[Path, str]]:
    """Files and their splits, in this directory or, as on the Hub, in data/ below it."""
    for home in (directory, directory / "data"):
        found = [
            (file, split)
            for file in sorted(home.glob("*"))
            if file.suffix in KINDS and (split := split_named(file)) is not None
        ]
        if found:
            return sorted(found, key=lambda each: SPLITS.index(each[1]))
    return []


def _rows(file: Path, split: str) -> Iterator[Row]:
    if file.suffix == ".parquet":
        values = _parquet(file)
    else:
        values = json_lines(enumerate(read_text(file).split("\n"), start=1), file)
    return (Row(value, where, split) for where, value in values)


def json_lines(lines: Iterable[tuple[int, str]], path: Path) -> Iterator[tuple[str, Any]]:
    """(file and line, value) of each numbered line that is not blank. Raises DataError."""
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise DataError(f"{where}: not valid JSON.", fix="correct the line.") from None


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise _missing(file) from None
    try:
        values = parquet.read_table(file).to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{file}: not a Parquet file that can be read: {error}.") from None
    return ((f"{file}, row {number}", value) for number, value in enumerate(values, start=1))


def _saved(directory: Path) -> Iterator[Row]:
    """The rows of what `datasets` saved: one data set, or one for each split."""
    try:
        import datasets
    except ImportError:
        raise _missing(directory) from None
    try:
        found = datasets.load_from_disk(str(directory))
    except (OSError, ValueError) as error:
        raise DataError(f"{directory}: not a data set that can be read: {error}.") from None
    parts = found if isinstance(found, dict) else {"train": found}
    for name, rows in parts.items():
        split = split_named(Path(name))
        if split is None:
            raise DataError(
                f"{directory} has a split {name!r}; known: {', '.join(NAMES)}.",
                fix="save it under another name.",
            )
        for number, value in enumerate(rows, start=1):
            yield Row(value, f"{directory}, {name} row {number}", split)


def _missing(path: Path) -> UsageError:
    return UsageError(
        f"{path} is read by the library `datasets`, which is not installed.",
        fix='pip install "stepwell[datasets]", or give JSONL.',
    )
