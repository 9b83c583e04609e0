"""A report's table on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from stepwell.cli.report_table import terminal_table
from stepwell.report.figure import Cell, Column, Estimate, Table


def shown(table: Table) -> list[str]:
    """The lines on a terminal that is wide enough."""
    console = Console(file=io.StringIO(), width=100)
    console.print(terminal_table(table))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_cells_are_written_by_their_kind() -> None:
    rows: list[list[Cell]] = [
        ["one", 0.1234, 0.5, 2048, Estimate(-0.25, -0.5, 0.125)],
        ["two", 1.0, None, 7, None],
        ["three", 0.5, float("nan"), 7, None],
    ]
    head, _, *lines = shown(Table(["rule", Column("right", percent=True), "cost", "n", "d"], rows))
    assert head.split() == ["rule", "right", "cost", "n", "d"]
    assert lines[0].split() == ["one", "12.3%", "0.50", "2,048", "-0.250", "[-0.500,", "+0.125]"]
    assert lines[1].split() == ["two", "100.0%", "7"]
    assert lines[2].split() == ["three", "50.0%", "–", "7"]


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    _, _, first, second = shown(Table(["rule", "cost"], [["a", 1.0], ["longer", 100.0]]))
    assert first.startswith("a ")
    assert len(first) == len(second)


def test_the_best_of_a_column_is_bold() -> None:
    columns = [Column("cost", best="min"), Column("right", best="max"), "plain"]
    table = terminal_table(
        Table(columns, [[0.5, 0.5, 0.5], [0.9, 0.9, 0.9], [None, float("nan"), 0.9]])
    )
    styles = [[getattr(cell, "style", "") for cell in column.cells] for column in table.columns]
    assert styles == [["bold", "", ""], ["", "bold", ""], ["", "", ""]]
