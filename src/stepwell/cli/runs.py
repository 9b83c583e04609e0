"""`stepwell runs`: the training runs here, how far and how good each is, and some side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from stepwell.cli.console import Output, OutputFlags, finite
from stepwell.cli.models import RUN, model_directories, runs_folder
from stepwell.cli.numbers import short
from stepwell.cli.report_table import terminal_table
from stepwell.errors import StepwellError, UsageError

if TYPE_CHECKING:
    from stepwell.train.history import History

SortKey = Literal["name", "task", "step", "loss", "accuracy", "tokens-per-s", "state", "when"]
LARGEST_FIRST: Final = ("step", "accuracy", "tokens-per-s", "when")
COLOURS: Final = {"running": "green", "stopped": "yellow", "stopped early": "yellow"}


@dataclass(frozen=True)
class ListedRun:
    """A run; loss and accuracy are those of its best weights, `problem` is what is wrong."""

    directory: str
    name: str
    task: str = ""
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    accuracy: float | None = None
    tokens_per_s: float | None = None
    state: str = ""
    when: str = ""
    problem: str = ""


def runs(
    *compared: Annotated[str, Parameter(metavar="RUN")],
    runs: Annotated[Path | None, Parameter(metavar="PATH")] = None,
    sort: SortKey = "name",
    out: Annotated[Path | None, Parameter(metavar="PATH")] = None,
    output: OutputFlags = OutputFlags(),  # noqa: B008  # it is frozen
) -> None:
    """List training runs, or lay some side by side.

        stepwell runs
        stepwell runs --sort loss --json
        stepwell runs facts-small facts-large --out compare.html

    Parameters
    ----------
    compared
        Runs to compare, two or more: their folders, or their names under --runs.
    runs
        The folder to look in; by default STEPWELL_RUNS, or ./runs.
    sort
        What the list is ordered by; the largest accuracy, pace, step and time come first.
    out
        Write the comparison as a page, with a PNG of the losses beside it.
    """
    with output.open() as opened:
        if compared:
            compare(found_runs(compared, runs), out, opened)
            return
        if out is not None:
            raise UsageError("--out is for a comparison.", fix="name two runs or more.")
        show_list(runs_folder(runs), sort, opened)


def show_list(folder: Path, sort: SortKey, output: Output) -> None:
    """Lists the runs at or below a folder."""
    directories = [path for path in model_directories(folder) if (path / RUN).is_file()]
    found = ordered([listed(directory, folder) for directory in directories], sort)
    output.result([asdict(each) for each in found], runs_table(found))
    if not found:
        output.note(f"No run in {folder} yet; `stepwell train --task facts` makes one.")


def compare(histories: Sequence[History], out: Path | None, output: Output) -> None:
    """Shows runs side by side, and writes the page where one is asked for."""
    from stepwell.report import write_png
    from stepwell.train.compare import comparison_page, fields_table, losses_chart, metrics_table

    fields, metrics = fields_table(histories), metrics_table(histories)
    plain = {
        "runs": [
            {"directory": str(each.directory), "state": each.state, "metrics": dict(each.best)}
            for each in histories
        ],
        "differences": {str(row[0]): list(row[1:]) for row in fields.rows},
    }
    output.result(plain, Group(terminal_table(metrics, decimals=4), "", terminal_table(fields)))
    if out is not None:
        comparison_page(histories).write(out)
        chart = losses_chart(histories)
        if chart is not None:
            write_png(chart, out.with_suffix(".png"))
        output.note(f"\n{out}")


def found_runs(words: Sequence[str], folder: Path | None) -> list[History]:
    """The histories of runs that are given by folder or by name. Raises UsageError."""
    from stepwell.train.history import History

    if len(words) < 2:
        raise UsageError(
            f"There is nothing to compare {words[0]} with.",
            fix="name another run; the page of one run is its report.html.",
        )
    directories = []
    for word in words:
        inside = runs_folder(folder) / word if not Path(word).is_dir() else Path(word)
        directories.append(inside)
    return [History.read(directory) for directory in directories]


def listed(directory: Path, folder: Path) -> ListedRun:
    """What a run's files say of it; a fault in them is a problem to show."""
    from stepwell.train.history import History

    name = str(directory.relative_to(folder)) if directory != folder else directory.name
    try:
        history = History.read(directory)
    except StepwellError as error:
        return ListedRun(str(directory), name, problem=error.problem)
    return ListedRun(
        directory=str(directory),
        name=name,
        task=history.task,
        step=history.step,
        steps=history.steps,
        loss=finite(history.best.get("loss")),
        accuracy=finite(history.best.get("accuracy")),
        tokens_per_s=history.tokens_per_s,
        state=history.state,
        when=history.changed.isoformat(timespec="seconds"),
    )


def ordered(found: Sequence[ListedRun], sort: SortKey) -> list[ListedRun]:
    """The runs in an order; those that lack what it goes by come last."""
    field = sort.replace("-", "_")
    known = [each for each in found if getattr(each, field) is not None]
    unknown = [each for each in found if getattr(each, field) is None]
    by_name = sorted(known, key=lambda each: each.name)
    by_field = sorted(by_name, key=lambda each: getattr(each, field), reverse=sort in LARGEST_FIRST)
    return by_field + sorted(unknown, key=lambda each: each.name)


def runs_table(found: Sequence[ListedRun]) -> Table:
    """The list for people."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    left = ("run", "task")
    for name in (*left, "step", "loss", "accuracy", "tokens/s", "state", "when"):
        numeric = name in ("step", "loss", "accuracy", "tokens/s")
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for each in found:
        table.add_row(*_cells(each))
    return table


def _cells(each: ListedRun) -> list[Any]:
    name = Text(each.name, style="cyan")
    if each.problem:
        return [name, Text(each.problem, style="red")]
    return [
        name,
        each.task,
        f"{each.step:,}" + (f" of {each.steps:,}" if each.steps else ""),
        "" if each.loss is None else f"{each.loss:.4f}",
        "" if each.accuracy is None else f"{each.accuracy:.1%}",
        "" if each.tokens_per_s is None else short(each.tokens_per_s),
        Text(each.state, style=COLOURS.get(each.state, "")),
        each.when[:16].replace("T", " "),
    ]
