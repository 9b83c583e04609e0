"""Examples that lie in a JSONL file of the user's, one or several a line.

Owns how such a file is read, which split an example is in, and the order of each epoch. What a line
means is the business of the task.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from stepwell.errors import DataError
from stepwell.tasks.corpus import FileTask
from stepwell.tasks.example import SPLITS, Example


class LinesTask(FileTask):
    """A task whose examples are listed in a file, in a new random order each epoch.

    The first indices of a split meet each of its examples once.
    """

    @property
    @abstractmethod
    def examples(self) -> list[Example]:
        """All examples in the file's order. Raises DataError that names the line."""

    def split_of(self, number: int) -> str:
        """The split of the example at this place in the file: that of its content."""
        return self.examples[number].split

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
                fix="give a file with more lines.",
            )
        epoch, position = divmod(i, len(members))
        return self.examples[members[self._order(split, epoch)[position]]]

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
        """The places of each split's examples in the file."""
        members: dict[str, list[int]] = {split: [] for split in SPLITS}
        for number in range(len(self.examples)):
            members[self.split_of(number)].append(number)
        return members


def json_lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """(file and line, value) of each line of JSONL that is not blank. Raises DataError."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise DataError(f"{where}: not valid JSON.", fix="correct the line.") from None
