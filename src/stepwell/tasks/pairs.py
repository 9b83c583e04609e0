"""Prompts and answers from the user's files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from stepwell.errors import DataError
from stepwell.tasks.example import Example
from stepwell.tasks.lines import LinesTask
from stepwell.tasks.rows import SURROGATE, Row


class Pairs(LinesTask):
    """The rows {"prompt": ..., "answer": ...} of a file, in a new random order each epoch.

    A prompt that comes twice is in one split only. The first indices of a split meet each of its
    rows once.
    """

    @cached_property
    def examples(self) -> list[Example]:
        """All rows in their order. Raises DataError that names the line."""
        return [_pair(row) for row in self.rows]

    def contents(self) -> list[str]:
        """The prompts."""
        return [example.content for example in self.examples]

    @property
    def context_length(self) -> int:
        """The longest prompt and the longest answer, so that every prompt can be answered."""
        return self._lengths[0] + self.max_answer_tokens

    @property
    def max_answer_tokens(self) -> int:
        """The longest answer and its end."""
        return self._lengths[1] + 1

    def texts(self) -> Sequence[str]:
        """Prompt and answer of every row."""
        return [example.text for example in self.examples]

    def taught(self) -> Sequence[str]:
        """Prompt and answer of the rows in the train split."""
        return [example.text for example in self.taught_examples()]

    @cached_property
    def _lengths(self) -> tuple[int, int]:
        """Tokens of the longest prompt and of the longest answer."""
        prompts = self.tokenizer.encode_batch([example.prompt for example in self.examples])
        answers = self.tokenizer.encode_batch([example.answer for example in self.examples])
        return max(map(len, prompts)), max(map(len, answers))


def _pair(row: Row) -> Example:
    """The example of a row with the two texts prompt and answer; other keys are passed over."""
    pair = row.value
    if not isinstance(pair, dict) or not {"prompt", "answer"} <= pair.keys():
        found = sorted(pair) if isinstance(pair, dict) else type(pair).__name__
        raise DataError(f"{row.where}: expected the keys prompt and answer, found {found}.")
    for key in ("prompt", "answer"):
        value = pair[key]
        if not isinstance(value, str) or not value or SURROGATE.search(value):
            raise DataError(f"{row.where}: {key} is {value!r}, expected text that is not empty.")
    return Example.completion(pair["prompt"], pair["answer"])
