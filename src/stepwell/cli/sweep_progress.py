"""How far a sweep is: on a terminal a line for each worker, elsewhere a line for each run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from stepwell.cli.console import Output

if TYPE_CHECKING:
    from stepwell.train.sweep.folder import SweepFolder, Trial

LINE_EVERY_S: Final = 10.0


class SweepDisplay:
    """A `SweepProgress` on standard error; silent where the output is quiet."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._live: Progress | None = None
        self._tasks: dict[int, TaskID] = {}
        self._said: dict[int, float] = {}

    def start(self, folder: SweepFolder, workers: int) -> None:
        """Says how many runs there are, and opens the lines of a terminal."""
        trials = folder.trials()
        total = folder.plan().trials or len(trials)
        done = sum(bool(trial.outcome) for trial in trials)
        before = f", {done} of them before" if done else ""
        processes = "1 process" if workers == 1 else f"{workers} processes"
        self._output.note(f"{folder.directory}: {total} runs{before}, in {processes}")
        if self._output.quiet or not self._output.err.is_terminal:
            return
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[facts]}"),
            console=self._output.err,
            transient=True,
        )
        self._live.start()
        for worker in range(workers):
            self._tasks[worker] = self._live.add_task("waiting", total=None, facts="")

    def update(self, worker: int, trial: Trial, step: int, steps: int, loss: float | None) -> None:
        """Shows where a worker is; without a terminal now and then."""
        facts = f"{step:,}/{steps:,}" + ("" if loss is None else f"  loss {loss:.4f}")
        if self._live is not None:
            self._live.update(
                self._tasks[worker],
                description=trial.name,
                completed=step,
                total=steps,
                facts=facts,
            )
        elif step and time.monotonic() - self._said.setdefault(worker, 0.0) >= LINE_EVERY_S:
            self._said[worker] = time.monotonic()
            self._output.note(f"{trial.name}  {facts}")

    def ended(self, worker: int, trial: Trial) -> None:  # noqa: ARG002  # its line goes on
        """Leaves a line about a run that has an outcome."""
        if trial.outcome == "failed":
            self._output.note(f"{trial.name}  failed: {trial.reason}", style="red")
        else:
            self._output.note(f"{trial.name}  done, loss {trial.metric('loss'):.4f}")

    def replaced(self, worker: int) -> None:
        """Says that a process was killed."""
        self._output.warn(f"worker {worker + 1} was killed; another takes its run up again.")

    def finish(self) -> None:
        """Takes the lines of a terminal away."""
        if self._live is not None:
            self._live.stop()
