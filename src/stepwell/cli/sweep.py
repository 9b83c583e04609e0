"""`stepwell sweep`: many runs of one training command, some of its flags varied.

Owns what is asked, said and shown. What a sweep does is in `stepwell.train.sweep`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Group, Parameter
from rich.text import Text

from stepwell.cli.configured import StartFlags, chosen_tasks, trainer_config, training_flags
from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.faults import INTERRUPTED
from stepwell.cli.flags import with_flags
from stepwell.cli.interrupt import stop_on_interrupt
from stepwell.cli.report_table import terminal_table
from stepwell.errors import UsageError
from stepwell.tasks import TASKS
from stepwell.train.config import TrainerConfig
from stepwell.train.sweep.axes import parse_axes

if TYPE_CHECKING:
    from stepwell.train.sweep.result import SweepResult

VARIED: Final = Group("What is varied", sort_key=5)
Axes = Annotated[
    tuple[str, ...],
    Parameter(metavar="FIELD=VALUES", negative=(), consume_multiple=True),
]


@Parameter(name="*", group=VARIED)
@dataclass(frozen=True)
class VariedFlags:
    """What is varied, and by what runs are compared."""

    grid: Axes = ()
    """Fields with the values to try in all combinations: num_layers=2,3,4 lr=1e-3,3e-3."""
    search: Axes = ()
    """Fields with values or ranges to search in: lr=log:1e-4..1e-2 num_layers=1..4."""
    trials: Annotated[int, Parameter(metavar="N")] = 20
    """How many runs a search takes."""
    metric: Annotated[str | None, Parameter(metavar="NAME")] = None
    """By which runs are compared, of their best weights; loss where nothing is given."""
    goal: Literal["min", "max"] | None = None
    """Whether the metric should be small or large; large for accuracies."""

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `stepwell.sweep`. Raises UsageError."""
        return {
            "grid": parse_axes(self.grid),
            "search": parse_axes(self.search),
            "trials": self.trials,
            "metric": self.metric or "loss",
            "goal": self.goal,
        }


def sweep_command(tokens: Sequence[str] | None) -> Callable[..., int]:
    """The command for the words that follow `sweep`: its flags are those of the task they name.

    None gives it the flags of all tasks.
    """
    kinds = list(TASKS.values()) if tokens is None else chosen_tasks(tokens)
    flags = [flag for flag in training_flags(kinds) if flag.field != ("run_name",)]

    def sweep(
        *,
        varied: VariedFlags = VariedFlags(),  # it is frozen
        workers: Annotated[int | None, Parameter(metavar="N")] = None,
        name: Annotated[str | None, Parameter(metavar="NAME")] = None,
        task: Annotated[str | None, Parameter(choices=tuple(TASKS))] = None,
        start: StartFlags = StartFlags(),  # noqa: B008
        fresh: Annotated[bool, Parameter(negative=())] = False,
        show: Annotated[Path | None, Parameter(metavar="DIR")] = None,
        output: OutputFlags = OutputFlags(),  # noqa: B008
        **given: Any,
    ) -> int:
        """Train a model many times with some fields varied. The same command goes on.

        Every flag of `stepwell train` is a flag of the runs, and every field can be varied.

            stepwell sweep --task facts --steps 20 --grid num_layers=1,2 num_heads=1,2 --workers 2
            stepwell sweep --task facts --steps 9 --search lr=log:1e-4..1e-2 --trials 3 --name rates
            stepwell sweep --show runs/rates --metric accuracy

        Parameters
        ----------
        workers
            Processes, each on its own cores or device; by default one, or one for each GPU.
        name
            Folder of the sweep under --runs; by default the task and a hash of what is varied.
        task
            What is learnt.
        fresh
            Remove what the sweep's folder holds, its runs too, and begin anew.
        show
            Show a sweep that there is, and draw its page anew.
        """
        with output.open() as opened:
            if show is not None:
                return show_sweep(show, varied.metric, opened)
            base = trainer_config(flags, given, start, task=task).changed(run_name=name or "")
            return run_sweep(base, varied.options(), opened, workers=workers, fresh=fresh)

    return with_flags(sweep, flags)


def show_sweep(directory: Path, metric: str | None, output: Output) -> int:
    """Shows what a sweep came to so far; the exit code."""
    from stepwell.train.sweep.page import write_sweep
    from stepwell.train.sweep.result import SweepResult

    result = SweepResult.read(directory, metric=metric)
    write_sweep(result)
    show_result(result, output)
    return 0


def run_sweep(config: TrainerConfig, varied: Mapping[str, Any], output: Output, **how: Any) -> int:
    """Sweeps to the end, or until Ctrl-C; the exit code."""
    from stepwell.cli.sweep_progress import SweepDisplay
    from stepwell.train.sweep.run import sweep

    if not varied["grid"] and not varied["search"]:
        raise UsageError(
            "What shall be varied?",
            fix="give --grid num_layers=1,2, or --search lr=log:1e-4..1e-2.",
        )
    stopping = "Stopping after this step; Ctrl-C again stops at once."
    try:
        with stop_on_interrupt(lambda: output.note(stopping)) as stop_requested:
            shown = SweepDisplay(output)
            result = sweep(config, **varied, **how, progress=shown, stop_requested=stop_requested)
    except KeyboardInterrupt:
        output.warn("interrupted. Every run is saved; the same command goes on from there.")
        return INTERRUPTED
    show_result(result, output)
    return 0


def show_result(result: SweepResult, output: Output) -> None:
    """Shows the table of a sweep, and says what can be done with its best run."""
    output.note("")
    output.result(result.plain(), terminal_table(result.table(), decimals=4))
    if result.open:
        output.note(f"{len(result.open)} runs are open; the same command goes on with them.")
    output.note(f"\n{result.directory / 'sweep.html'}")
    if result.best is not None:
        best = shlex.quote(str(result.directory / result.best.name))
        output.note(Text(f"best: {best}", style="cyan"))
