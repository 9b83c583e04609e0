"""One page a run: report.html and pictures, from the files of the run folder alone.

Owns what is on the page and when it is written anew. Nothing that training computes or goes on from
depends on it, and nothing that goes wrong here ends a run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import yaml

from stepwell.report import Chart, Facts, Page, Preformatted, Table, write_png
from stepwell.report.numerals import number, percent
from stepwell.train.history import DEPTH, RECORDS, RUN_FILE, History, Samples
from stepwell.train.report_charts import PACE, is_share, plain, run_charts

REPORT: Final = "report.html"
PICTURES: Final = ("loss", "accuracy", "accuracy_by_depth")
MANY_BYTES: Final = 2_000_000  # of records: reading them takes a tenth of a second
PAUSE_S: Final = 60.0  # between two drawings of a run with that many
SHOWN_TEXT: Final = 160  # characters of a sample

logger = logging.getLogger(__name__)


def write_report(directory: str | Path, *, pictures: bool = True) -> Path:
    """The path of a run's report.html, drawn anew; pictures: with PNGs of the main charts.

    Raises ConfigError where the directory is no run folder, DataError where a file is damaged.
    """
    history = History.read(directory)
    charts = run_charts(history)
    for name in PICTURES if pictures else ():
        if name in charts:
            write_png(charts[name], history.directory / f"{name}.png")
    return report_page(history, charts).write(history.directory / REPORT)


def refresh_report(directory: Path, *, ended: bool = False) -> None:
    """Draws the report of a run that is going on, or has ended: then with its pictures.

    A run of very many records is drawn at most once a minute. What fails is logged as a warning.
    """
    if not ended and _drawn_lately(directory):
        return
    try:
        write_report(directory, pictures=ended)
    except Exception as error:  # hours of training must not end for want of a picture
        logger.warning("%s was not drawn: %s", directory / REPORT, error)


def report_page(history: History, charts: Mapping[str, Chart]) -> Page:
    """The page of a run."""
    page = Page(history.name, lead=lead(history)).add(headline(history))
    learnt = [name for name in charts if name not in PACE]
    for title, names in (("Learning", learnt), ("Pace", [n for n in charts if n in PACE])):
        if names:
            page.section(title).add(*(charts[name] for name in names))
    samples = history.samples()
    if samples and samples.rows:
        page.section("Samples").add(samples_table(samples))
    configuration = yaml.safe_dump(dict(history.config), sort_keys=False, allow_unicode=True)
    page.section("Configuration").add(Preformatted(configuration.rstrip(), title=RUN_FILE))
    if history.sessions:
        page.section("Environment").add(*environment_blocks(history.sessions))
    return page


def lead(history: History) -> str:
    """What was learnt and how far it came, in a sentence or two."""
    total = f" of {history.steps:,}" if history.steps else ""
    sentence = f"Task {history.task or 'unknown'}, {history.step:,}{total} steps."
    if history.best_step is not None:
        sentence += f" The weights in this folder are those of step {history.best_step:,}."
    return sentence


def headline(history: History) -> Facts:
    """The main numbers: how good the best weights are, and how long it took."""
    facts = [
        (plain(name) if name != "loss" else "validation loss", text)
        for name, value in history.best.items()
        if (text := metric_text(name, value)) and DEPTH not in name
    ]
    if history.seconds is not None:
        facts.append(("time", str(timedelta(seconds=round(history.seconds)))))
    if history.tokens_per_s is not None:
        facts.append(("tokens a second", number(history.tokens_per_s)))
    return Facts(facts)


def metric_text(name: str, value: float) -> str:
    """A metric's value for people: a share as a percentage."""
    return percent(value) if is_share(name) else number(value)


def samples_table(samples: Samples) -> Table:
    """Validation examples, what was expected and what the model said; wrong ones are marked."""
    rows = [
        (
            shortened(row.get("text", "")),
            shortened(row.get("expected", "")),
            shortened(row.get("predicted", "")),
            "right" if row.get("expected") == row.get("predicted") else "✗ wrong",
        )
        for row in samples.rows
    ]
    right = sum(row[-1] == "right" for row in rows)
    return Table(
        ("text", "expected", "said", ""),
        rows,
        title=f"{right} of {len(rows)} right after step {samples.step:,}",
        note="Each token is said after the true ones before it.",
    )


def shortened(text: str) -> str:
    """The text on one line, its end left out where it is long."""
    line = text.replace("\n", "⏎")
    return line if len(line) <= SHOWN_TEXT else line[:SHOWN_TEXT] + " …"


def environment_blocks(sessions: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The environment of the newest session; where there were several, a table of all."""
    newest = [(name, value_text(value)) for name, value in sessions[-1].items()]
    blocks = [Table(("", "newest session"), newest)]
    if len(sessions) > 1:
        changing = [
            name
            for name in dict.fromkeys(key for session in sessions for key in session)
            if len({value_text(session.get(name)) for session in sessions}) > 1
        ]
        rows = [
            (str(number), *(value_text(session.get(name)) for name in changing))
            for number, session in enumerate(sessions, 1)
        ]
        note = "What was the same in all of them is left out."
        blocks.append(Table(("", *changing), rows, title=f"{len(sessions)} sessions", note=note))
    return blocks


def value_text(value: Any) -> str:
    """A plain value on one line: `commit: 5159328, changed: 2 files`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {value_text(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(value_text, value)) or "none"
    return "" if value is None else str(value)


def _drawn_lately(directory: Path) -> bool:
    records, report = directory / RECORDS, directory / REPORT
    if not report.exists() or records.stat().st_size < MANY_BYTES:
        return False
    return time.time() - report.stat().st_mtime < PAUSE_S
