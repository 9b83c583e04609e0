"""Tables, headline facts and plain text as HTML."""

from __future__ import annotations

import math
from collections.abc import Callable

from stepwell.report.figure import Cell, Column, Estimate, Facts, Preformatted, Table
from stepwell.report.markup import Markup, element, join
from stepwell.report.numerals import ABSENT, fixed, number, shared_decimals


def caption(title: str, note: str) -> Markup:
    """The caption above a figure: its title, and one line of explanation where there is one."""
    lines = [element("h3", title)] if title else []
    lines += [element("p", note)] if note else []
    return element("figcaption", *lines) if lines else Markup("")


def table_markup(table: Table) -> Markup:
    """A table with numbers to the right and the best cell of a column highlighted."""
    columns = table.columns
    shown = [
        _column(column, [row[place] for row in table.rows]) for place, column in enumerate(columns)
    ]
    heads = [_head(column, cells) for column, cells in zip(columns, shown, strict=True)]
    rows = [element("tr", *(cells[line] for cells in shown)) for line in range(len(table.rows))]
    grid = element("table", element("thead", element("tr", *heads)), element("tbody", *rows))
    inside = element(
        "div", grid, class_="scroll", tabindex=0, role="region", aria_label=table.title or "Table"
    )
    return element("figure", caption(table.title, table.note), inside, class_="table")


def facts_markup(facts: Facts) -> Markup:
    """Headline values, large, each under its name."""
    pairs = [
        element("div", element("dt", name), element("dd", value)) for name, value in facts.items
    ]
    return element("dl", *pairs, class_="facts")


def preformatted_markup(block: Preformatted) -> Markup:
    """Text whose spaces matter, in a box that scrolls."""
    text = element("pre", block.text, tabindex=0)
    return element("figure", caption(block.title, ""), text, class_="text")


def prose_markup(text: str) -> Markup:
    """Paragraphs, parted by blank lines; what stands between backticks is code."""
    return join(*(element("p", inline_code(part)) for part in text.split("\n\n") if part.strip()))


def inline_code(text: str) -> Markup:
    """One line of text in which what stands between backticks is code."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return join(text)
    return join(*(element("code", piece) if odd % 2 else piece for odd, piece in enumerate(pieces)))


def _head(column: Column, cells: list[Markup]) -> Markup:
    numeric = any('class="number' in cell for cell in cells)
    unit = element("small", column.unit) if column.unit else Markup("")
    return element("th", column.name, unit, scope="col", class_="number" if numeric else None)


def _column(column: Column, cells: list[Cell]) -> list[Markup]:
    """The cells of one column, with as many decimals in each as its largest number needs."""
    factor, sign = (100, "%") if column.percent else (1, "")
    values = [factor * _value(cell) for cell in cells]
    whole = all(isinstance(cell, int | str | None) for cell in cells)
    decimals = 0 if whole else shared_decimals(values, 3 if column.percent else 4)
    if decimals is not None and any(0 < abs(value) < 0.5 * 0.1**decimals for value in values):
        decimals = None  # it would read as zero

    def text(value: float) -> str:
        if not math.isfinite(value):
            return ABSENT
        return (number(value) if decimals is None else fixed(value, decimals)) + sign

    best = _best(column, values)
    return [_cell(cell, factor, text, place == best) for place, cell in enumerate(cells)]


def _cell(cell: Cell, factor: int, text: Callable[[float], str], best: bool) -> Markup:
    if cell is None or isinstance(cell, str):
        return element("td", cell or "")
    content = [Markup(text(factor * _value(cell)))]
    if isinstance(cell, Estimate):
        span = f"{text(factor * cell.low)} to {text(factor * cell.high)}"
        content.append(element("small", span))
    if best:
        content.append(element("span", " (best)", class_="spoken"))
    return element("td", *content, class_="number best" if best else "number")


def _value(cell: Cell) -> float:
    """The number in a cell; NaN where it holds none."""
    if cell is None or isinstance(cell, str):
        return math.nan
    return cell.value if isinstance(cell, Estimate) else float(cell)


def _best(column: Column, values: list[float]) -> int | None:
    """Which row holds the best value, where the column has a best and there is a choice."""
    seen = [place for place, value in enumerate(values) if math.isfinite(value)]
    if column.best is None or len(seen) < 2:
        return None
    choose = max if column.best == "max" else min
    return choose(seen, key=values.__getitem__)
