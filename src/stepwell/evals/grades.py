"""When an answer that a model wrote is right: by a task file's match, or by the task itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import Final, NamedTuple

from stepwell.errors import ConfigError
from stepwell.evals.local_task import Generate, OpenQuestion, OwnTask
from stepwell.evals.math_answer import MathChecker, last_number
from stepwell.evals.math_expression import NotReadError, TooHardError, exact, read_expression
from stepwell.tasks import Task


class Graded(NamedTuple):
    """Whether an answer is right, and why, where that is not plain."""

    right: bool
    reason: str = ""


Grade = Callable[[str, OpenQuestion], Graded]


def grade_of(task: Generate | OwnTask, checker: MathChecker) -> tuple[str, Grade]:
    """The name of a task's metric, and what decides it."""
    if isinstance(task, OwnTask):
        return "accuracy", partial(_by_task, task.task)
    if task.match == "math":
        return "math", partial(_by_checker, checker)
    return _GRADES[task.match]


def _by_task(task: Task, answer: str, asked: OpenQuestion) -> Graded:
    assert asked.example is not None, "questions of a task of ours come with their examples"
    return Graded(task.grade(asked.example, answer))


def _by_checker(checker: MathChecker, answer: str, asked: OpenQuestion) -> Graded:
    verdict = checker.check(answer, asked.target)
    found = "" if verdict.extracted is None else f": {verdict.extracted}"
    return Graded(verdict.equal, verdict.reason + found)


def _exact(answer: str, asked: OpenQuestion) -> Graded:
    return Graded(answer.strip() == asked.target.strip())


def _contains(answer: str, asked: OpenQuestion) -> Graded:
    return Graded(asked.target.strip() in answer)


def _same_number(answer: str, asked: OpenQuestion) -> Graded:
    """Whether the last number of an answer is the last one of the target."""
    found, expected = number_in(answer), number_in(asked.target)
    if expected is None:
        raise ConfigError(
            f"The target {asked.target!r} holds no number to compare with.",
            fix="give it one, or use match: exact.",
        )
    return Graded(found == expected, "no number" if found is None else f"number: {found}")


def number_in(text: str) -> Fraction | None:
    """The last number of a text, None where there is none that can be computed."""
    try:
        return exact(read_expression((last_number(text) or "").replace(",", "")))
    except (NotReadError, TooHardError):
        return None


_GRADES: Final[Mapping[str, tuple[str, Grade]]] = {
    "exact": ("exact_match", _exact),
    "contains": ("contains", _contains),
    "number": ("number", _same_number),
}
