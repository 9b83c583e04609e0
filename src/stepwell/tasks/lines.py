"""Examples that the user has listed, one or several a row, in a file or a directory of splits.

Owns which split a row is in, that no content is in two, and the order of each epoch. How files are
read is the business of `rows`, what a row means that of the task.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import pydantic

from stepwell.errors import DataError
from stepwell.tasks.corpus import FileTask
from stepwell.tasks.example import SPLITS, Example, split_of
from stepwell.tasks.rows import Row, read_rows


class LinesTask(FileTask):
    """A task whose examples are listed in rows, in a new random order each epoch.

    The first indices of a split meet each of its examples once.
    """

    path: Path = pydantic.Field(
        description="a JSONL file, a directory of one for each split, or what `datasets` saves"
    )

    @property
    @abstractmethod
    def examples(self) -> list[Example]:
        """All examples in the order of the rows. Raises DataError that names the line."""

    @abstractmethod
    def contents(self) -> list[str]:
        """What each row asks: rows that ask the same are in one split."""

    def row_of(self, number: int) -> int:
        """The row that the example at this place is from."""
        return number

    @cached_property
    def rows(self) -> list[Row]:
        """All rows. Raises DataError that names the line; that of a row is in the row."""
        rows = read_rows(self.path)
        if not rows:
            raise DataError(f"{self.path} holds no row.", fix="give a file with lines of JSON.")
        return rows

    @cached_property
    def splits(self) -> list[str]:
        """The split of each row: that of its file, and by its content where files leave one out.

        Raises DataError where a content is in the files of two splits.
        """
        given = {row.split for row in self.rows}
        splits: list[str] = []
        home: dict[str, Row] = {}
        for row, content in zip(self.rows, self.contents(), strict=True):
            first = home.setdefault(content, row)
            if first.split != row.split:
                raise DataError(
                    f"{row.where} asks the same as {first.where}: {content[:60]!r} would be in the"
                    f" splits {first.split} and {row.split}.",
                    fix="leave one of them out: what is tested must not have been learnt.",
                )
            drawn = split_of(content)
            splits.append(drawn if row.split == "train" and drawn not in given else row.split)
        return splits

    def identity(self) -> dict[str, Any]:
        """The plain values, with the content of all rows in place of the path."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps([row.split, row.value], default=str).encode())
        return {**self.plain(), "path": digest.hexdigest()}

    def example(self, index: int) -> Example:
        """The example at `index`, beginning anew at the end of the file."""
        return self.examples[index % len(self.examples)]

    def example_in(self, split: str, i: int) -> Example:
        """The i-th example of a split, in an order that differs from epoch to epoch."""
        self.check_split(split)
        members = self._members[split]
        if not members:
            raise DataError(
                f"{self.path}: none of {len(self.examples)} examples belongs to the {split} split.",
                fix="give more rows, or a file for this split.",
            )
        epoch, position = divmod(i, len(members))
        return self.examples[members[self._order(split, epoch)[position]]]

    def epochs(self, count: int) -> dict[str, float]:
        """Examples taken over examples listed."""
        return {"epoch": count / max(1, len(self._members["train"]))}

    def taught_examples(self) -> list[Example]:
        """Those of the train split."""
        return [self.examples[number] for number in self._members["train"]]

    def _order(self, split: str, epoch: int) -> list[int]:
        """The order of a split's examples in one epoch; the latest of each split is kept."""
        kept = self._orders.get(split)
        if kept is None or kept[0] != epoch:
            order = list(range(len(self._members[split])))
            self.rng(f"{split}/{epoch}").shuffle(order)
            kept = self._orders[split] = (epoch, order)
        return kept[1]

    @cached_property
    def _orders(self) -> dict[str, tuple[int, list[int]]]:
        return {}

    @cached_property
    def _members(self) -> dict[str, list[int]]:
        """The places of each split's examples."""
        members: dict[str, list[int]] = {split: [] for split in SPLITS}
        for number in range(len(self.examples)):
            members[self.splits[self.row_of(number)]].append(number)
        return members
