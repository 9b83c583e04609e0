"""Figures of a contest: medians, spreads, ratios, and the bar that a ratio should reach. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Literal

from stepwell.report.figure import Estimate


@dataclass(frozen=True)
class Figures:
    """What one contestant reached, a value for each turn that counts."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value in the middle."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Distance of the largest value from the smallest, as a share of the median."""
        return (max(self.values) - min(self.values)) / self.median


def ratio_of(ours: Figures, other: Figures) -> Estimate:
    """The ratio of the medians, between the smallest and the largest ratio of one round.

    Both sides of a round were measured in the same seconds, so what slows the machine down for a
    while moves both.
    """
    rounds = [mine / theirs for mine, theirs in zip(ours.values, other.values, strict=True)]
    return Estimate(ours.median / other.median, min(rounds), max(rounds))


@dataclass(frozen=True)
class Bar:
    """What should be reached: at least `value`, or at most, by the ratio or by our own median."""

    value: float
    kind: Literal["at least", "at most"] = "at least"
    of: Literal["ratio", "ours"] = "ratio"

    def is_met(self, reached: float) -> bool:
        """Whether the number is on the right side of the bar, or on it."""
        return reached >= self.value if self.kind == "at least" else reached <= self.value


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is ours over the other's; with seconds and bytes, less is better.

    case: the question in detail, such as "1 row, bf16". against: a peer, or a measure of our own.
    problem: why a side has no figures. note: what else there is to know about the case.
    """

    question: str
    case: str
    model: str
    unit: str
    ours: Figures | None = None
    against: str = ""
    other: Figures | None = None
    bar: Bar | None = None
    problem: str = ""
    note: str = ""

    @property
    def ratio(self) -> Estimate | None:
        """Ours over the other's; None where one of them is missing."""
        if self.ours is None or self.other is None:
            return None
        return ratio_of(self.ours, self.other)

    @property
    def meets_bar(self) -> bool | None:
        """Whether the bar is reached; None where there is none, or nothing to hold against it."""
        if self.bar is None:
            return None
        if self.bar.of == "ours":
            return None if self.ours is None else self.bar.is_met(self.ours.median)
        return None if self.ratio is None else self.bar.is_met(self.ratio.value)


def make_row(
    question: str,
    case: str,
    model: str,
    unit: str,
    ours: Figures | str,
    against: str = "",
    other: Figures | str | None = None,
) -> Row:
    """The row of two sides, either of which may be a sentence that says why it has no figures."""
    problems = [side for side in (ours, other) if isinstance(side, str)]
    return Row(
        question,
        case,
        model,
        unit,
        ours=None if isinstance(ours, str) else ours,
        against=against,
        other=None if isinstance(other, str) else other,
        problem=" ".join(problems),
    )
