"""A question that every contestant can be asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stepwell.evals.bench.plan import Question
from stepwell.evals.bench.turns import Contestant


def nothing(_name: str) -> str:
    """No note about a contestant."""
    return ""


@dataclass(frozen=True)
class Work:
    """A question for every contestant.

    length: tokens of the longest sequence in it. note: what has been found out about the contestant
    of a name by the time that it is measured.
    """

    question: Question
    case: str
    unit: str
    length: int
    figure: Callable[[Contestant, int], float]
    note: Callable[[str], str] = nothing
