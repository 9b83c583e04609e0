"""What `stepwell patch` and `stepwell heads` share: how effects are shown, and how far they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from rich.console import Group
from rich.text import Text

from stepwell.cli.console import Output
from stepwell.cli.drawing import Drawing, write_drawing
from stepwell.cli.numbers import duration
from stepwell.cli.progress import Display, Nothing, make_display
from stepwell.cli.report_table import terminal_table
from stepwell.errors import UsageError
from stepwell.report.figure import Cell, Table

if TYPE_CHECKING:
    from stepwell.study.effects import EffectTable

DECIMALS: Final = 4


class StudyProgress:
    """How many texts a study has read, for as long as a `with` block lasts; called with both."""

    def __init__(
        self, output: Output, description: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._output, self._description, self._clock = output, description, clock
        self._display: Display | None = None
        self._begun = clock()

    def __enter__(self) -> Self:
        self._begun = self._clock()
        return self

    def __exit__(self, *_error: object) -> None:
        (self._display or Nothing()).close()

    def __call__(self, done: int, total: int) -> None:
        """So many of all texts have been read."""
        if self._display is None:
            self._display = make_display(self._output, self._description, total)
        left = (self._clock() - self._begun) / done * (total - done)
        self._display.show(done, f"{duration(left)} left" if done < total else "")


def check_top(top: int) -> None:
    """Nothing; raises UsageError for a number of rows that is none."""
    if top < 1:
        raise UsageError(f"--top is {top}, expected 1 or more.")


def show_effects(
    plain: dict[str, Any],
    tables: Iterable[EffectTable],
    drawing: Drawing,
    output: Output,
    *,
    out: Path | None,
    top: int,
) -> None:
    """Writes the drawing and prints the result: `plain`, or the strongest parts of each table."""
    if out is not None:
        write_drawing(drawing, out)
    result = {**plain, "out": None if out is None else str(out)}
    if output.json:
        output.result(result, "")
        return
    for table in tables:
        output.result(result, strongest(table, top))
        facts = "; ".join(f"{name}: {value}" for name, value in table.facts)
        output.note(Text("\n".join(filter(None, (facts, table.note, ""))), style="dim"))
    if out is not None:
        output.note(Text.assemble(("Drawn: ", "dim"), str(out)))


def strongest(table: EffectTable, top: int) -> Group:
    """The parts of the greatest effects for people, with standard errors where they are known."""
    rows: list[list[Cell]] = []
    for row in table.rows[:top]:
        cells: list[Cell] = [str(row["layer"]), row["column"], row["effect"]]
        rows.append([*cells, row["standard_error"]] if table.has_errors else cells)
    heads = ["layer", "part", "effect", *["standard error"] * table.has_errors]
    title = Text(f"{table.title}: {table.value_label}", style="bold")
    return Group(title, terminal_table(Table(heads, rows), decimals=DECIMALS))
