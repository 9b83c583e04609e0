"""A report's table on a terminal: numbers to the right, the best of a column in bold."""

from __future__ import annotations

import math

from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

from stepwell.report.figure import Cell, Column, Estimate, Table


def terminal_table(table: Table, *, decimals: int = 2) -> TerminalTable:
    """The table for a console; decimals: of numbers that are neither whole nor shares."""
    shown = TerminalTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    columns = table.columns
    for index, column in enumerate(columns):
        numeric = any(not isinstance(row[index], str) for row in table.rows)
        shown.add_column(column.name, justify="right" if numeric else "left")
    best = [
        _best(column, [row[index] for row in table.rows]) for index, column in enumerate(columns)
    ]
    for row in table.rows:
        cells = []
        for column, cell, top in zip(columns, row, best, strict=True):
            emphasis = "bold" if top is not None and cell == top else ""
            cells.append(Text(_text(cell, column, decimals), style=emphasis))
        shown.add_row(*cells)
    return shown


def _best(column: Column, cells: list[Cell]) -> float | None:
    numbers = [cell for cell in cells if isinstance(cell, int | float) and math.isfinite(cell)]
    if column.best is None or not numbers:
        return None
    return max(numbers) if column.best == "max" else min(numbers)


def _text(cell: Cell, column: Column, decimals: int) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Estimate):
        return f"{cell.value:+.3f} [{cell.low:+.3f}, {cell.high:+.3f}]"
    if isinstance(cell, float):
        if not math.isfinite(cell):
            return "–"
        return f"{cell:.1%}" if column.percent else f"{cell:.{decimals}f}"
    return f"{cell:,}" if isinstance(cell, int) else cell
