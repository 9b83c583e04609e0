"""The evaluation of cascades: tasks and seeds, one trial each, and what they say together.

    evaluation = sw.evaluate_cascade(tasks=["facts"], seeds=5)

Owns the order of the trials and the folder that they end in: DIRECTORY/TASK/seed-N. A trial that is
finished is not run again, and one that was stopped goes on. A trial is protocol_trial's; intervals
and bars are protocol_summary's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stepwell.errors import UsageError
from stepwell.evals.protocol_report import as_markdown, in_words, plain, write_report
from stepwell.evals.protocol_summary import TaskSummary, Verdict, summarise
from stepwell.evals.protocol_tasks import TASKS, Arena, arena_of, arena_of_ladder
from stepwell.evals.protocol_trial import Event, OnEvent, Trial

NUM_QUESTIONS: Final = 10_000
SEEDS: Final = 5


@dataclass(frozen=True)
class Evaluation:
    """What all trials say, a summary a task."""

    tasks: tuple[TaskSummary, ...]
    directory: Path

    @property
    def verdicts(self) -> list[Verdict]:
        """Every bar of every task."""
        return [verdict for summary in self.tasks for verdict in summary.verdicts]

    def task(self, name: str) -> TaskSummary:
        """The summary of a task."""
        return next(summary for summary in self.tasks if summary.name == name)

    def plain(self) -> dict[str, Any]:
        """The numbers as JSON holds them."""
        return plain(self.tasks)

    def markdown(self) -> str:
        """All tables as Markdown."""
        return as_markdown(self.tasks)

    def in_words(self) -> str:
        """How many bars were met."""
        return in_words(self.tasks)

    def write(self, command: str = "") -> Path:
        """The page in the evaluation's folder, with pictures, tables.md and results.json."""
        return write_report(self.tasks, self.directory, command)


def evaluate_cascade(
    ladder: str | Path | None = None,
    tasks: Sequence[str] = TASKS,
    seeds: int = SEEDS,
    *,
    directory: str | Path = "runs/cascade-eval",
    num_questions: int = NUM_QUESTIONS,
    on_event: OnEvent = lambda event: None,  # noqa: ARG005
    command: str = "",
) -> Evaluation:
    """Train, collect, fit and measure each task's ladder for each seed, and write the report.

    ladder: a ladder file to evaluate in place of the tasks; of its stages those with `train:` are
    trained anew each seed. num_questions: of each trial, split into predictor, calibration,
    certification and test; facts have as many as there are. on_event hears each step begin and
    end. The report is written anew after each task. The same call goes on where it was stopped.
    Raises ConfigError for a task that there is not, CascadeError where the directory holds another
    evaluation.
    """
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}, expected 1 or more.")
    if ladder is None and not tasks:
        raise UsageError("There is no task to evaluate.", fix=f"take {', '.join(TASKS)}.")
    arenas = [arena_of(name) for name in dict.fromkeys(tasks)]
    if ladder is not None:
        arenas = [arena_of_ladder(ladder)]
    root = Path(directory)
    evaluation = Evaluation((), root)
    for arena in arenas:
        found = _summary(arena, seeds, root, num_questions, on_event)
        evaluation = Evaluation((*evaluation.tasks, found), root)
        evaluation.write(command)
    return evaluation


def _summary(
    arena: Arena, seeds: int, root: Path, num_questions: int, on_event: OnEvent
) -> TaskSummary:
    """All trials of a task, run or found."""
    trials = []
    for seed in range(seeds):
        folder = root / arena.name / f"seed-{seed}"
        trials.append(Trial(arena, seed, folder, num_questions, on_event).run())
    on_event(Event(arena.name, seeds - 1, "intervals", "begun"))
    return summarise(arena, trials)
