"""Data sets on disk: examples of every split as a directory that `datasets.load_dataset` reads.

    DIRECTORY/
      train.jsonl validation.jsonl test.jsonl   # text, targets, weight; ids where needed
      README.md                                 # says which file is which split
      manifest.json                             # format_version, fingerprint, task, SHA-256s

Owns the format and the check that no content is in two splits. A data set is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stepwell.config import write_atomically, write_json
from stepwell.errors import DataError, FormatError, UsageError
from stepwell.tasks.base import Task
from stepwell.tasks.example import SPLITS, Example, Target

FORMAT_VERSION = 1

CARD = """\
---
configs:
- config_name: default
  data_files:
{files}
---

# {name}

Made by stepwell from the task `{name}`, version {version}, fingerprint `{fingerprint}`.
`manifest.json` holds its whole configuration.
"""


def write_dataset(task: Task, directory: str | Path, counts: Mapping[str, int]) -> Path:
    """The directory, in which `counts` says how many examples of each split are written.

    Written beside and renamed at the end, so that it is complete or not there. Raises DataError
    where it is there already, or where a content would be in two splits of a task that is not
    memorised.
    """
    directory = Path(directory)
    if directory.exists():
        raise DataError(
            f"{directory} exists.", fix="read it, remove it, or choose another directory."
        )
    for split, count in counts.items():
        task.check_split(split)
        if count < 1:
            raise UsageError(f"{count} examples of the {split} split: expected 1 or more.")
    splits = {
        split: [task.example_in(split, i) for i in range(count)] for split, count in counts.items()
    }
    if not task.memorised:
        check_leakage(splits)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        _fill(temporary, task, splits)
        temporary.chmod(0o755)
        _flush(temporary)
        temporary.rename(directory)
        _flush(directory.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return directory


def read_dataset(directory: str | Path, task: Task | None = None) -> dict[str, list[Example]]:
    """The examples of each split.

    Raises DataError where a file is missing, damaged, or made by another task than `task` (another
    configuration, code, tokenizer or seed), and FormatError where the format is newer.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if task is not None and manifest["fingerprint"] != task.fingerprint:
        raise DataError(
            f"{directory} has the fingerprint {manifest['fingerprint'][:12]}, expected "
            f"{task.fingerprint[:12]} of task {task.name}.",
            fix="write it anew: configuration, code, tokenizer or seed have changed.",
        )
    files = manifest["files"]
    return {split: _examples(directory / f"{split}.jsonl", files[split]) for split in files}


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """What manifest.json says.

    Raises DataError where it is missing or damaged, FormatError where the format is newer.
    """
    path = Path(directory) / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = int(manifest["format_version"])
        sound = isinstance(manifest["fingerprint"], str) and manifest["files"].keys() <= {*SPLITS}
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise DataError(f"{path}: {reason}.", fix="give the directory of a data set.") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        version, sound = 0, False
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{path} has format_version {version}, this version reads up to {FORMAT_VERSION}.",
            fix="update stepwell or write the data set anew.",
        )
    if not sound:
        raise DataError(f"{path} is damaged.", fix="write the data set anew.")
    return dict(manifest)


def check_leakage(splits: Mapping[str, Iterable[Example]]) -> None:
    """Nothing; raises DataError that names the first example whose content is in two splits."""
    home: dict[str, str] = {}
    for split, examples in splits.items():
        for example in examples:
            first = home.setdefault(example.content, split)
            if first != split:
                raise DataError(
                    f"The example {example.content[:60]!r} is in the splits {first} and {split}.",
                    fix="divide the examples by their content, as Task.example_in does.",
                )


def _fill(directory: Path, task: Task, splits: Mapping[str, list[Example]]) -> None:
    """Write the files of a data set into an empty directory, the manifest last."""
    files = {}
    for split, examples in splits.items():
        content = "".join(_line(example) for example in examples).encode()
        write_atomically(directory / f"{split}.jsonl", content)
        files[split] = hashlib.sha256(content).hexdigest()
    listing = "\n".join(f"  - split: {split}\n    path: {split}.jsonl" for split in splits)
    card = CARD.format(
        files=listing, name=task.name, version=task.version, fingerprint=task.fingerprint
    )
    write_atomically(directory / "README.md", card)
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": task.fingerprint,
        "task": task.plain(),
        "task_version": task.version,
        "tokenizer": task.tokenizer.fingerprint,
        "memorised": task.memorised,
        "counts": {split: len(examples) for split, examples in splits.items()},
        "files": files,
    }
    write_json(directory / "manifest.json", manifest)


def _line(example: Example) -> str:
    """An example as one line of JSON."""
    row: dict[str, Any] = {
        "prompt": example.prompt,
        "answer": example.answer,
        "text": example.text,
        "targets": [asdict(target) for target in example.targets],
        "weight": example.weight,
    }
    if example.ids is not None:
        row["ids"] = example.ids
    return json.dumps(row) + "\n"


def _examples(path: Path, digest: str) -> list[Example]:
    """The examples in a file. Raises DataError where it is missing or its SHA-256 is another."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}.") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"{path} is damaged: its SHA-256 is not the one in manifest.json.")
    return [_parse(line) for line in content.splitlines()]


def _parse(line: bytes) -> Example:
    """The example that `_line` wrote."""
    row = json.loads(line)
    ids = tuple(row["ids"]) if "ids" in row else None
    targets = tuple(Target(**target) for target in row["targets"])
    return Example(row["text"], targets, row["weight"], ids)


def _flush(directory: Path) -> None:
    """Make the names in `directory` outlast a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
