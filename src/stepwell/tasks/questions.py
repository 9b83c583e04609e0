"""Questions with known answers: the held-out examples of a task, or the rows of a file.

Owns what is asked, when an answer is right, and what of it counts in a vote. Knows no model.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from stepwell.config import fingerprint
from stepwell.errors import DataError, PromptError, UsageError, suggest
from stepwell.tasks.base import Task
from stepwell.tasks.chats import Chats
from stepwell.tasks.example import Example
from stepwell.tasks.facts import Facts
from stepwell.tasks.rows import Row, read_rows
from stepwell.text.prompt_template import PromptTemplate

Check = Literal["exact", "number"]
NUMBER: Final = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?")
EXPECTED: Final = 'write lines like {"prompt": "2+3=", "answer": "5"}.'
NUM_EXAMPLES: Final = 100  # of a task, where nothing is said


@dataclass(frozen=True)
class Question:
    """A prompt, and when an answer to it is right.

    expected: the answer, as the source has it. final: what of an answer counts in a vote. weight:
    how often it is asked. depth: how hard it is, in the source's own measure.
    """

    prompt: str
    expected: str
    grade: Callable[[str], bool] = field(compare=False)
    final: Callable[[str], str] = field(default=str.strip, compare=False)
    weight: float = 1
    depth: int = 0


@dataclass(frozen=True)
class Questions:
    """What is asked, and `source`: where it is from, as plain values.

    spelled: answers are graded with their special tokens, as conversations need.
    """

    items: tuple[Question, ...]
    source: Mapping[str, Any]
    spelled: bool = False

    def __len__(self) -> int:
        return len(self.items)

    @classmethod
    def of_task(
        cls, task: Task, start: int = 0, end: int | None = None, *, split: str = "test"
    ) -> Self:
        """The examples [start, end) of a split of a task, 100 where the end is not given.

        Raises ConfigError, UsageError or DataError for a task without prompts and answers.
        """
        end = start + NUM_EXAMPLES if end is None else end
        _check_range(start, end)
        items = tuple(_of_example(task, task.example_in(split, i)) for i in range(start, end))
        source = {"task": task.plain(), "split": split, "start": start, "end": end}
        return cls(items, source, spelled=isinstance(task, Chats))

    @classmethod
    def of_facts(cls, task: Facts) -> Self:
        """Every fact once, frequent ones first, weighted with how often it is asked."""
        facts = task.all()
        items = tuple(replace(_of_example(task, fact), weight=fact.weight) for fact in facts)
        return cls(items, {"task": task.plain(), "split": "all"})

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        template: PromptTemplate | None = None,
        check: Check = "exact",
        answered: bool = True,
        start: int = 0,
        end: int | None = None,
    ) -> Self:
        """The rows [start, end) of a JSONL file, each with an "answer" and a "prompt".

        template: what the rows fill instead of having a prompt. check: "exact" compares the texts,
        white space around them aside; "number" the last number in each. answered: without it a row
        needs no answer, and nothing is right. Raises DataError or PromptError that names the line.
        """
        if check not in get_args(Check):
            raise UsageError(f"There is no check {check!r}. {suggest(check, get_args(Check))}")
        rows = read_rows(Path(path))
        end = len(rows) if end is None else min(end, len(rows))
        _check_range(start, end, f"{path} has {len(rows)} rows; ")
        made = _of_row if answered else _unanswered
        items = tuple(made(row, template, check) for row in rows[start:end])
        content = [[item.prompt, item.expected] for item in items]
        filled = None if template is None else template.fingerprint
        source = {"rows": fingerprint(content), "template": filled, "check": check}
        return cls(items, {**source, "start": start, "end": end})

    def distinct(self) -> tuple[Question, ...]:
        """Each question once, weighted with how often it comes, in the order of the first."""
        counts = Counter(self.items)
        return tuple(replace(item, weight=count) for item, count in counts.items())


def number_in(text: str) -> str:
    """The last number in a text, 1,200.50 as 1200.5, or "" where there is none."""
    found = NUMBER.findall(text)
    return f"{Decimal(found[-1].replace(',', '')).normalize() + 0:f}" if found else ""


def _check_range(start: int, end: int, where: str = "") -> None:
    if not 0 <= start < end:
        raise UsageError(
            f"{where}There are no questions from {start} up to {end}.",
            fix="count from 0, and end after the start.",
        )


def _of_example(task: Task, example: Example) -> Question:
    if task.is_text or len(example.targets) != 1 or example.targets[0].in_place:
        raise UsageError(
            f"Task {task.name} does not ask for one answer after a prompt.",
            fix="take another task, or give prompts and answers in a file.",
        )
    final = task.final if isinstance(task, Chats) else str.strip
    grade, depth = partial(task.grade, example), example.targets[0].depth
    return Question(example.prompt, example.answer, grade, final, depth=depth)


def _of_row(row: Row, template: PromptTemplate | None, check: Check) -> Question:
    if not isinstance(row.value, Mapping):
        raise DataError(f"{row.where}: expected an object.", fix=EXPECTED)
    expected = row.value.get("answer")
    if not isinstance(expected, str | int | float) or isinstance(expected, bool):
        kind = "nothing" if expected is None else json.dumps(expected)
        raise DataError(f'{row.where}: expected text or a number under "answer", found {kind}.')
    final = number_in if check == "number" else str.strip
    right = final(str(expected))
    if check == "number" and not right:
        raise DataError(f"{row.where}: there is no number in the answer {expected!r}.")
    return Question(_prompt(row, template), str(expected), lambda text: final(text) == right, final)


def _unanswered(row: Row, template: PromptTemplate | None, check: Check) -> Question:  # noqa: ARG001
    if not isinstance(row.value, Mapping):
        raise DataError(f"{row.where}: expected an object.", fix=EXPECTED)
    return Question(_prompt(row, template), "", lambda _: False)


def _prompt(row: Row, template: PromptTemplate | None) -> str:
    if template is None:
        prompt = row.value.get("prompt")
        if not isinstance(prompt, str):
            raise DataError(f'{row.where}: expected a text under "prompt".', fix=EXPECTED)
        return prompt
    try:
        return template.render(row.value)
    except PromptError as error:
        raise PromptError(f"{row.where}: {error.problem}", fix=error.fix) from None
