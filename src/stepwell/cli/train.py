"""`stepwell train`: plan, train, go on where it stopped, and say what to type next.

Owns the order of these and what is asked and said. What a run does is the trainer's business; how
a command line becomes its configuration is in `configured`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.text import Text

from stepwell.cli.app import bare_app, execute, guarded, imported
from stepwell.cli.configured import StartFlags, chosen_tasks, trainer_config, training_flags
from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.faults import INTERRUPTED
from stepwell.cli.flags import with_flags
from stepwell.cli.interrupt import stop_on_interrupt
from stepwell.cli.metrics_view import metrics_table
from stepwell.cli.plan_view import expected_seconds, plan_as_plain, plan_table, shortages
from stepwell.cli.progress import TrainingProgress
from stepwell.cli.words import dashed
from stepwell.config import read_yaml
from stepwell.errors import CheckpointError
from stepwell.tasks import TASKS, Task
from stepwell.train.config import TrainerConfig, arithmetic_of, differences

if TYPE_CHECKING:
    from stepwell.train.trainer import Trainer

PROMPT_SHOWN = 24  # characters of an example in the commands that are suggested


def train_command(tokens: Sequence[str] | None) -> Callable[..., int]:
    """The command for the words that follow `train`: its flags are those of the task they name.

    None gives it the flags of all tasks.
    """
    return _command(list(TASKS.values()) if tokens is None else chosen_tasks(tokens))


def train_main(
    task: type[Task], trainer: type[Trainer] | None = None, argv: Sequence[str] | None = None
) -> int:
    """The exit code of a command line that trains a task, and a trainer, of one's own.

    It has the flags of `stepwell train`, those of the task included, and behaves like it.
    """
    tokens = dashed(sys.argv[1:] if argv is None else argv)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    usage = f"python -m {spec.name}" if spec else task.name
    app = bare_app(usage, help=task.__doc__)
    app.default(_command([task], own=task, trainer=trainer))
    return guarded(tokens, lambda: execute(app, tokens), usage=usage)


def _command(
    kinds: Sequence[type[Task]],
    own: type[Task] | None = None,
    trainer: type[Trainer] | None = None,
) -> Callable[..., int]:
    """The command with the flags of these tasks; with a task of one's own there is no --task."""
    flags = training_flags(kinds)

    def train(
        *,
        task: Annotated[str | None, Parameter(choices=tuple(TASKS))] = None,
        start: StartFlags = StartFlags(),  # noqa: B008  # it is frozen
        dry_run: Annotated[bool, Parameter(negative=())] = False,
        fresh: Annotated[bool, Parameter(negative=())] = False,
        output: OutputFlags = OutputFlags(),  # noqa: B008
        **given: Any,
    ) -> int:
        """Train a model on a task. The same command goes on where it stopped.

        `stepwell train --task NAME --help` shows the flags of that task too.

            stepwell train --task variable-renaming --preset tiny --steps 2000 --run-name rename
            stepwell train --task facts --num-layers 4 --lr 3e-4 --dry-run
            stepwell train --config runs/rename/run.yaml --set optimizer.lr=3e-4 --run-name slow

        Parameters
        ----------
        task
            What is learnt.
        dry_run
            Show the plan and stop.
        fresh
            Remove what the run's folder holds, and train anew.
        """
        with output.open() as opened:
            configuration = trainer_config(flags, given, start, task=own.name if own else task)
            make = trainer or imported("stepwell.train.trainer:Trainer")
            session = Session(make(configuration), opened)
            return session.show_plan() if dry_run else session.train(fresh=fresh)

    return with_flags(train, flags, without=("task",) if own else ())


class Session:
    """One call of the command: a trainer, and the output that it talks to."""

    def __init__(self, trainer: Trainer, output: Output) -> None:
        self.trainer, self.config, self.output = trainer, trainer.config, output

    def show_plan(self) -> int:
        """Shows the plan as the result; nothing is trained or written."""
        plan = self.trainer.plan()
        done = steps_done(self.config.directory)
        seconds = expected_seconds(self.trainer, plan, self.config.steps - done)
        self.output.result(
            plan_as_plain(plan, done, seconds), plan_table(self.trainer, plan, done, seconds)
        )
        for shortage in shortages(self.trainer, plan):
            self.output.warn(shortage)
        return 0

    def train(self, *, fresh: bool) -> int:
        """Trains to the end, or until Ctrl-C; the exit code."""
        changes = [] if fresh else changed_fields(self.config)
        if changes and self.output.interactive:
            if not self.confirm(changes):
                self.output.note("Nothing was changed. Another --run-name keeps both runs.")
                return 1
            fresh = True
        done = 0 if fresh else steps_done(self.config.directory)
        if fresh or not (changes or is_finished(self.config)):
            self.announce(done)
        return self.run(fresh=fresh)

    def confirm(self, changes: Sequence[str]) -> bool:
        """Whether the run of another configuration shall make room for this one."""
        self.output.err.print(f"{self.config.directory} is the run of another configuration:")
        for change in changes:
            self.output.err.print(f"  {change}", style="yellow")
        return self.output.confirm("Remove that run and train anew?")

    def announce(self, done: int) -> None:
        """Shows the plan of what is left, as a note."""
        if self.output.quiet:
            return
        plan = self.trainer.plan()
        seconds = expected_seconds(self.trainer, plan, self.config.steps - done)
        self.output.note(plan_table(self.trainer, plan, done, seconds))
        for shortage in shortages(self.trainer, plan):
            self.output.warn(shortage)
        self.output.note("")

    def run(self, *, fresh: bool) -> int:
        """The training itself, with its end said; Ctrl-C saves first."""
        progress = TrainingProgress(self.output)
        stopping = "Stopping after this step; Ctrl-C again stops at once."
        try:
            with stop_on_interrupt(lambda: self.output.note(stopping)) as stop_requested:
                run = self.trainer.train(
                    fresh=fresh, progress=progress, stop_requested=stop_requested
                )
        except KeyboardInterrupt:
            saved = steps_done(self.config.directory)
            what = f"Saved at step {saved:,}." if saved else "Nothing was saved yet."
            self.output.warn(f"interrupted. {what} The same command goes on from there.")
            return INTERRUPTED
        if not progress.step:
            self.output.note(f"{run.directory} is trained to its end already; --fresh begins anew.")
        if progress.step and steps_done(run.directory) < self.config.steps:
            self.output.note(
                f"Ended at step {steps_done(run.directory):,}: {self.config.patience} evaluations"
                " without a better loss. More --patience goes on."
            )
        self.output.note("")
        self.output.result(
            {"directory": str(run.directory), "step": run.step, "metrics": dict(run.metrics)},
            metrics_table(run),
        )
        self.suggest_next(run.directory)
        return 0

    def suggest_next(self, directory: Path) -> None:
        """Says what can be done with the model now."""
        example = self.trainer.task.example_in("test", 0)
        inspected = shlex.quote(example.text[:PROMPT_SHOWN])
        commands = [f"stepwell inspect {directory} {inspected} --out attention.html"]
        if not example.targets[0].in_place:
            prompt = shlex.quote(example.prompt or example.text[:PROMPT_SHOWN])
            commands.insert(0, f"stepwell generate {directory} {prompt} --temperature 0")
        if "chat_template" in self.trainer.task.tokenizer.settings:
            commands.insert(0, f"stepwell chat {directory} --temperature 0")
        self.output.note(f"\n{directory / 'report.html'}")
        self.output.note("\nNext:", style="dim")
        for command in (*commands, "stepwell models"):
            self.output.note(Text(f"  {command}", style="cyan"))


def steps_done(directory: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none."""
    from stepwell.train.checkpoint import checkpoints

    found = checkpoints(directory)
    return int(found[0].name.removeprefix("checkpoint-")) if found else 0


def is_finished(config: TrainerConfig) -> bool:
    """Whether the newest checkpoint is the end of the run."""
    from stepwell.train.checkpoint import checkpoints, read_state

    found = checkpoints(config.directory)
    try:
        return bool(found) and read_state(found[0]).is_end(config.steps, config.patience)
    except CheckpointError:  # the run passes it over, and says so
        return False


def changed_fields(config: TrainerConfig) -> list[str]:
    """`field: old -> new` for each field in which the run in the folder differs; maybe none."""
    path = config.directory / "run.yaml"
    stored = read_yaml(path) if path.exists() else None
    if not isinstance(stored, dict):
        return []
    return differences(arithmetic_of(stored), config.arithmetic())
