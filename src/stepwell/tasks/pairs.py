"""Prompts and answers from a JSONL file of the user's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from stepwell.errors import DataError
from stepwell.tasks.corpus import FileTask
from stepwell.tasks.example import SPLITS, Example

SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which JSON can spell and UTF-8 cannot


class Pairs(FileTask):
    """The lines {"prompt": ..., "answer": ...} of a file, in a new random order each epoch.

    A prompt that comes twice is in one split only. The first indices of a split meet each of its
    lines once.
    """

    @cached_property
    def examples(self) -> list[Example]:
        """All lines in the file's order. Raises DataError that names the line."""
        return parse_pairs(self.text, self.path)

    @property
    def context_length(self) -> int:
        """The longest prompt and the longest answer, so that every prompt can be answered."""
        return self._lengths[0] + self.max_answer_tokens

    @property
    def max_answer_tokens(self) -> int:
        """The longest answer and its end."""
        return self._lengths[1] + 1

    def texts(self) -> Sequence[str]:
        """Prompt and answer of every line."""
        return [example.text for example in self.examples]

    def taught(self) -> Sequence[str]:
        """Prompt and answer of the lines in the train split."""
        return [example.text for example in self._members["train"]]

    def example(self, index: int) -> Example:
        """The line at `index`, beginning anew at the end of the file."""
        return self.examples[index % len(self.examples)]

    def example_in(self, split: str, i: int) -> Example:
        """The i-th line of a split, in an order that differs from epoch to epoch."""
        self.check_split(split)
        members = self._members[split]
        if not members:
            raise DataError(
                f"{self.path}: none of {len(self.examples)} lines belongs to the {split} split.",
                fix="give a file with more lines.",
            )
        epoch, position = divmod(i, len(members))
        return members[self._order(split, epoch)[position]]

    def _order(self, split: str, epoch: int) -> list[int]:
        """The order of a split's lines in one epoch; the latest order of each split is kept."""
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
    def _members(self) -> dict[str, list[Example]]:
        """The lines of each split."""
        return {split: [e for e in self.examples if e.split == split] for split in SPLITS}

    @cached_property
    def _lengths(self) -> tuple[int, int]:
        """Tokens of the longest prompt and of the longest answer."""
        prompts = self.tokenizer.encode_batch([example.prompt for example in self.examples])
        answers = self.tokenizer.encode_batch([example.answer for example in self.examples])
        return max(map(len, prompts)), max(map(len, answers))


def parse_pairs(text: str, path: Path) -> list[Example]:
    """An example for each line of JSONL; blank lines are skipped.

    Raises DataError that names file and line where a line is not {"prompt": ..., "answer": ...}
    with two texts, or where there is no line at all. Other keys are passed over.
    """
    examples = [
        _parse_pair(line, f"{path}, line {number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not examples:
        raise DataError(f"{path} holds no line.", fix='give lines {"prompt": ..., "answer": ...}.')
    return examples


def _parse_pair(line: str, where: str) -> Example:
    try:
        pair = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise DataError(f"{where}: not valid JSON.", fix="correct the line.") from None
    if not isinstance(pair, dict) or not {"prompt", "answer"} <= pair.keys():
        found = sorted(pair) if isinstance(pair, dict) else type(pair).__name__
        raise DataError(f"{where}: expected the keys prompt and answer, found {found}.")
    for key in ("prompt", "answer"):
        value = pair[key]
        if not isinstance(value, str) or not value or SURROGATE.search(value):
            raise DataError(f"{where}: {key} is {value!r}, expected text that is not empty.")
    return Example.completion(pair["prompt"], pair["answer"])
