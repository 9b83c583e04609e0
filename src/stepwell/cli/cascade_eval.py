"""`stepwell cascade eval`: ladders against simpler rules, over tasks and training seeds.

Owns what is asked and said. What is done is in evals.protocol.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.faults import INTERRUPTED
from stepwell.cli.numbers import duration
from stepwell.cli.progress import Display, Nothing, make_display
from stepwell.cli.report_table import terminal_table
from stepwell.device import set_threads
from stepwell.errors import UsageError

if TYPE_CHECKING:
    from stepwell.evals.protocol import Evaluation
    from stepwell.evals.protocol_trial import Event

OUT: Final = Path("runs/cascade-eval")
ALL_TASKS: Final = "facts,sums,unpredictable,specialist"


def evaluate(
    ladder: Path | None = None,
    /,
    *,
    tasks: Annotated[str | None, Parameter(metavar="NAME,NAME")] = None,
    seeds: Annotated[int, Parameter(metavar="N")] = 5,
    num_questions: Annotated[int, Parameter(metavar="N")] = 10_000,
    out: Annotated[Path, Parameter(metavar="DIR")] = OUT,
    threads: Annotated[int | None, Parameter(metavar="N")] = None,
    output: OutputFlags = OutputFlags(),  # noqa: B008  # it is frozen
) -> int:
    """Hold ladders against simpler rules: cost, quality, calibration, live, over training seeds.

    Trains every stage anew for every seed. Writes report.html, tables.md, results.json and
    pictures. The same command goes on where it was stopped.

        stepwell cascade eval --tasks facts --seeds 1 --out runs/facts-eval
        stepwell cascade eval runs/demo/ladder.yaml --seeds 3

    Parameters
    ----------
    ladder
        A ladder file to evaluate in place of the tasks, on its own questions.
    tasks
        Of facts, sums, unpredictable and specialist; all of them where nothing is given.
    seeds
        How many times the stages of each task are trained.
    num_questions
        Of each trial; 4 of 10 teach beliefs, 2 the rule, 2 are for its certificate, 2 judge it.
    out
        The folder of the trials and the report.
    threads
        CPU threads.
    """
    if ladder is not None and tasks is not None:
        raise UsageError("A ladder file is in the place of --tasks.", fix="leave out one of them.")
    if threads:
        set_threads(threads)
    with output.open() as opened:
        from stepwell.evals.protocol import evaluate_cascade

        watcher = Watcher(opened)
        try:
            evaluation = evaluate_cascade(
                ladder,
                [name.strip() for name in (tasks or ALL_TASKS).split(",")],
                seeds,
                directory=out,
                num_questions=num_questions,
                on_event=watcher.hear,
                command=shlex.join(["stepwell", *sys.argv[1:]]),
            )
        except KeyboardInterrupt:
            watcher.close()
            opened.warn(f"interrupted. What is done is in {out}.")
            opened.note("The same command goes on from there.")
            return INTERRUPTED
        _show(opened, evaluation)
    return 0


class Watcher:
    """Says what an evaluation is at: a line a step, and a bar where a step counts."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._display: Display = Nothing()
        self._at: tuple[str, int, str] | None = None
        self._begun = time.monotonic()

    def hear(self, event: Event) -> None:
        """Says what an event tells."""
        where = f"{event.task}, seed {event.seed}: {event.step}"
        if event.state == "kept":
            self._output.note(f"{event.task}, seed {event.seed}: finished before", style="dim")
        elif event.state == "ended":
            self.close()
            said = f" ({event.text})" if event.text else ""
            elapsed = duration(time.monotonic() - self._begun)
            self._output.note(f"{where}  {event.seconds:.1f} s{said}   [{elapsed}]")
        elif event.state == "going on" and event.total:
            if self._at is None:
                self._at = (event.task, event.seed, event.step)
                self._display = make_display(self._output, where, event.total)
            self._display.show(event.done, event.text)

    def close(self) -> None:
        """Ends what is shown of a step."""
        self._display.close()
        self._display, self._at = Nothing(), None


def _show(output: Output, evaluation: Evaluation) -> None:
    """The verdicts and a line a task."""
    from stepwell.evals.protocol_tables import short_table, verdicts_table

    page = evaluation.directory / "report.html"
    output.result(
        {"directory": str(evaluation.directory), "report": str(page), **evaluation.plain()},
        terminal_table(verdicts_table(evaluation.verdicts)),
    )
    output.note(terminal_table(short_table(evaluation.tasks)))
    output.note(evaluation.in_words())
    output.note(f"\n{page}")
