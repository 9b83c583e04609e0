"""Prompts and answers from a JSONL file of the user's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from stepwell.errors import DataError
from stepwell.tasks.example import Example
from stepwell.tasks.lines import LinesTask, json_lines

SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which JSON can spell and UTF-8 cannot


class Pairs(LinesTask):
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
        return [example.text for example in self.taught_examples()]

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
    examples = [_parse_pair(pair, where) for where, pair in json_lines(text, path)]
    if not examples:
        raise DataError(f"{path} holds no line.", fix='give lines {"prompt": ..., "answer": ...}.')
    return examples


def _parse_pair(pair: Any, where: str) -> Example:
    if not isinstance(pair, dict) or not {"prompt", "answer"} <= pair.keys():
        found = sorted(pair) if isinstance(pair, dict) else type(pair).__name__
        raise DataError(f"{where}: expected the keys prompt and answer, found {found}.")
    for key in ("prompt", "answer"):
        value = pair[key]
        if not isinstance(value, str) or not value or SURROGATE.search(value):
            raise DataError(f"{where}: {key} is {value!r}, expected text that is not empty.")
    return Example.completion(pair["prompt"], pair["answer"])
