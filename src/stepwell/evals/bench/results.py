"""What was measured, for people: cells of a table, a chart of ratios, and the page that is kept.

Owns the words and the layout. The machine, the date and the command line are told by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

from stepwell.config import write_atomically
from stepwell.evals.bench.figures import Bar, Figures, Row
from stepwell.evals.bench.peer import KINDS
from stepwell.report import Chart, Series, write_png

HEADS: Final = ("question", "case", "model", "ours", "against", "theirs", "ratio", "bar")
SIGNS: Final = {True: "✓", False: "✗", None: ""}
PICTURED: Final[Mapping[str, str]] = {
    "decode": "Decoding",
    "train": "Training",
    "hooks": "Generating under hooks",
}
"""Questions whose ratios to peers are drawn, and what the picture calls them."""
STEP_ASIDE: Final = 0.12  # of the distance between two places on the chart


@dataclass(frozen=True)
class Setting:
    """Where and how it was measured. versions: of programs and libraries, by name."""

    day: date
    machine: str
    threads: int
    repetitions: int
    command: str
    versions: Mapping[str, str]


def cells(row: Row) -> tuple[str, ...]:
    """The row as text, under HEADS. A missing side's problem stands in the place of its figures."""
    missing = row.problem or "–"
    return (
        row.question,
        f"{row.case} ({row.note})" if row.note else row.case,
        row.model,
        shown(row.ours, row.unit) or missing,
        row.against,
        (shown(row.other, row.unit) or (missing if row.ours else "–")) if row.against else "",
        "" if row.ratio is None else f"{row.ratio.value:.2f}",
        bar_text(row.bar, row.unit, row.meets_bar),
    )


def shown(figures: Figures | None, unit: str) -> str:
    """A median with its unit; nothing where there is none."""
    return "" if figures is None else f"{number(figures.median)} {unit}"


def number(value: float) -> str:
    """Three digits that count: 1,038, 38.2, 0.84."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{decimals}f}"


def bar_text(bar: Bar | None, unit: str, met: bool | None) -> str:
    """The bar and whether it is met: "≥ 1.7 ✓"."""
    if bar is None:
        return ""
    sign = "≥" if bar.kind == "at least" else "≤"
    limit = f"{bar.value:g} {unit}" if bar.of == "ours" else f"{bar.value:g}"
    return f"{sign} {limit} {SIGNS[met]}".strip()


def plain(rows: Sequence[Row], setting: Setting) -> dict[str, Any]:
    """Everything that was measured, as JSON can hold it."""
    return {
        "day": setting.day.isoformat(),
        "machine": setting.machine,
        "threads": setting.threads,
        "versions": dict(setting.versions),
        "rows": [_plain_row(row) for row in rows],
    }


def _plain_row(row: Row) -> dict[str, Any]:
    ratio = row.ratio
    return {
        "question": row.question,
        "case": row.case,
        "model": row.model,
        "unit": row.unit,
        "ours": None if row.ours is None else row.ours.values,
        "against": row.against,
        "theirs": None if row.other is None else row.other.values,
        "ratio": None if ratio is None else ratio.value,
        "ratio_range": None if ratio is None else (ratio.low, ratio.high),
        "bar": None if row.bar is None else row.bar.value,
        "meets_bar": row.meets_bar,
        "problem": row.problem,
        "note": row.note,
    }


def write_page(rows: Sequence[Row], setting: Setting, folder: Path) -> Path:
    """The page YYYY-MM-machine.md that is now in `folder`, with its pictures beside it."""
    path = folder / f"{setting.day:%Y-%m}-{slug(setting.machine)}.md"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = ""
    for question in PICTURED:
        chart = ratio_chart(rows, setting, question)
        if chart is not None:
            file = f"{path.stem}-{question}.png"
            write_png(chart, folder / file)
            pictures += f"![{chart.title}]({file})\n\n"
    write_atomically(path, f"{_preface(setting)}\n{pictures}{_table(rows)}\n")
    return path


def slug(text: str) -> str:
    """The text as a part of a file's name: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _preface(setting: Setting) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in setting.versions.items())
    return f"""\
# {setting.machine}, {setting.day:%B %Y}

{setting.day.isoformat()}; {setting.threads} threads for all; {versions}.

    {setting.command}

Medians of {setting.repetitions} turns, taken in rotation after one that does not count. Behind each
is the spread, the distance of the largest from the smallest as a share of the median. A ratio is
ours over theirs, with the smallest and the largest of one round. With s, ms, µs and MiB, less
is better.
"""


def _table(rows: Sequence[Row]) -> str:
    lines = [HEADS, tuple("---" for _ in HEADS), *(_spread_cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)


def _spread_cells(row: Row) -> tuple[str, ...]:
    """The cells of the table, medians with their spread and ratios with their range."""
    *names, ours, against, theirs, ratio, bar = cells(row)
    if row.ours is not None:
        ours += f" ± {row.ours.spread:.0%}"
    if row.other is not None:
        theirs += f" ± {row.other.spread:.0%}"
    if row.ratio is not None:
        ratio += f" [{row.ratio.low:.2f}, {row.ratio.high:.2f}]"
    return (*names, ours, against, theirs, ratio, bar)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def ratio_chart(rows: Sequence[Row], setting: Setting, question: str = "decode") -> Chart | None:
    """Our speed as a multiple of each peer's; None where no peer was measured."""
    compared = [
        row
        for row in rows
        if row.question == question
        and row.unit == "tokens/s"
        and row.against in KINDS
        and row.ratio is not None
    ]
    if not compared:
        return None
    places = list(dict.fromkeys(_place(row) for row in compared))
    peers = list(dict.fromkeys(row.against for row in compared))
    series = [
        _series([row for row in compared if row.against == peer], places, STEP_ASIDE * index)
        for index, peer in enumerate(peers)
    ]
    level = Series("as fast", [-0.5, len(places) - 0.5], [1.0, 1.0], style="reference")
    return Chart(
        f"{PICTURED[question]} against other programs, {setting.machine}",
        x_label="model and case",
        y_label="our tokens a second over theirs",
        series=[*series, level],
        categories=places,
        y_log=True,
        note="Medians; the whiskers are the smallest and the largest ratio of one round.",
    )


def _place(row: Row) -> str:
    return f"{row.model} {row.case}"


def _series(rows: Sequence[Row], places: Sequence[str], aside: float) -> Series:
    """The ratios to one peer; its points stand beside those of the peers before it."""
    ratios = [row.ratio for row in rows if row.ratio is not None]
    return Series(
        rows[0].against,
        [places.index(_place(row)) + aside for row in rows],
        [ratio.value for ratio in ratios],
        [ratio.low for ratio in ratios],
        [ratio.high for ratio in ratios],
        style="points",
    )
