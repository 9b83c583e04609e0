"""`stepwell experiment`: studies of a model. Owns what is asked, said and shown of them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Group, Parameter

from stepwell.cli.compute import ComputeFlags
from stepwell.cli.configured import chosen_tasks, configured_task, task_flags
from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.faults import INTERRUPTED
from stepwell.cli.flags import Flag, given_values, model_flags, with_flags
from stepwell.cli.interventions import InterventionFlags
from stepwell.cli.progress import GenerationProgress
from stepwell.cli.prompts import TemplateFlags
from stepwell.cli.report_table import terminal_table
from stepwell.errors import UsageError
from stepwell.generate.request import GREEDY_BELOW, SamplingParams
from stepwell.report.figure import Cell, Column, Table
from stepwell.report.numerals import fixed
from stepwell.tasks import TASKS

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable

    from stepwell.evals.frontier import Interval
    from stepwell.evals.temperature import TemperatureStudy
    from stepwell.generate.text import TextGenerator
    from stepwell.tasks.questions import Questions

ASKED: Final = Group("What is asked", sort_key=5)
VARIED: Final = Group("How it is answered", sort_key=6)
SAMPLING: Final = Group(
    "Sampling", "What is not given is as the model's generation_config.json says.", sort_key=20
)
FLAGS: Final = model_flags(
    SamplingParams,
    SAMPLING,
    without=("temperature", "n", "logprobs", "do_sample"),
    show_defaults=False,
)
CACHE: Final = "answers.sqlite"


@Parameter(name="*", group=ASKED)
@dataclass(frozen=True)
class AskedFlags:
    """Where the questions are from, and which of them are asked."""

    task: Annotated[str | None, Parameter(choices=tuple(TASKS))] = None
    """A task whose examples are asked, as the model's run has it; its fields are flags."""
    config: Annotated[Path | None, Parameter(metavar="PATH")] = None
    """A run.yaml that has the task; by default that of the model's run."""
    split: Literal["train", "validation", "test"] = "test"
    """Which of the task's examples; take validation to choose a temperature by."""
    source: Annotated[Path | None, Parameter(name="--input", metavar="FILE")] = None
    """Instead of a task, a file with a line {"prompt": "...", "answer": "..."} a question."""
    templates: TemplateFlags = TemplateFlags()  # noqa: RUF009  # it is frozen
    check: Literal["exact", "number"] | None = None
    """How answers to a file are compared: as texts (exact), or by the last number in them."""
    input_start: Annotated[int, Parameter(metavar="N")] = 0
    """The first question that is asked, from 0."""
    input_end: Annotated[int | None, Parameter(metavar="N")] = None
    """The question before which to end; by default 100 of a task, all of a file."""


@Parameter(name="*", group=VARIED)
@dataclass(frozen=True)
class VariedFlags:
    """The temperatures, how many answers, and what counts as confident."""

    temperatures: Annotated[str, Parameter(metavar="X,X")] = "0,0.3,0.6,1.0"
    """Temperatures to compare; 0 takes the likeliest token."""
    samples: Annotated[int, Parameter(metavar="N")] = 8
    """Answers to each question at each temperature; one at 0, where all are the same."""
    threshold: Annotated[str, Parameter(metavar="P,P")] = "0.9"
    """A token is confident where the model gives its likeliest one more than this."""
    batch_size: Annotated[int, Parameter(metavar="N")] = 64
    """Answers that are computed at the same time."""


def temperature_command(tokens: Sequence[str] | None) -> Callable[..., int]:
    """The command for the words that follow `experiment temperature`: its flags are those of the
    task that they name. None gives it the flags of all tasks."""
    kinds = list(TASKS.values()) if tokens is None else chosen_tasks(tokens)
    flags = [*task_flags(kinds), *FLAGS]

    def temperature(
        model: str,
        /,
        *,
        asked: AskedFlags = AskedFlags(),  # it is frozen
        varied: VariedFlags = VariedFlags(),
        inside: InterventionFlags = InterventionFlags(),  # noqa: B008
        out: Annotated[Path | None, Parameter(metavar="DIR")] = None,
        cache: Annotated[Path | None, Parameter(metavar="FILE")] = None,
        compute: ComputeFlags = ComputeFlags(),  # noqa: B008
        output: OutputFlags = OutputFlags(),  # noqa: B008
        **given: Any,
    ) -> int:
        """Measure accuracy, agreement, entropy and confidence at several temperatures.

        Writes results.json, answers.jsonl, report.html and pictures. The same command goes on
        where it was stopped: answers are kept as they finish.

            stepwell experiment temperature runs/facts --samples 4 --input-end 20
            stepwell experiment temperature runs/facts --task facts --temperatures 0,0.7 --seed 1
            stepwell experiment temperature runs/base --input sums.jsonl --check number --out sums

        Parameters
        ----------
        model
            A run folder, a model directory, or a name on the Hugging Face Hub.
        out
            The folder of the results; by default the model's name with -temperature.
        cache
            Where answers are kept; by default answers.sqlite among the results.
        """
        numbers = {
            "temperatures": parse_numbers(varied.temperatures, "--temperatures"),
            "thresholds": parse_numbers(varied.threshold, "--threshold"),
            "samples": varied.samples,
        }
        if varied.batch_size < 1:
            raise UsageError(f"--batch-size is {varied.batch_size}, expected 1 or more.")
        with output.open() as opened:
            questions = asked_questions(asked, flags, given, model)
            generator = compute.load(model, max_rows=varied.batch_size)
            folder = out or Path(f"{Path(model).resolve().name}-temperature")
            how = {**numbers, **given_values(FLAGS, given), "interventions": inside.parsed}
            return run_study(generator, questions, how, folder, cache or folder / CACHE, opened)

    return with_flags(temperature, flags)


def parse_numbers(text: str, flag: str) -> list[float]:
    """The numbers in "0,0.3,1". Raises UsageError that names the flag."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} {text!r}: expected numbers, such as {flag} 0.5,0.9.") from None


def asked_questions(
    asked: AskedFlags, flags: Sequence[Flag], given: Mapping[str, Any], model: str
) -> Questions:
    """The questions that the flags ask for. Raises UsageError where they contradict each other."""
    from stepwell.tasks.questions import Questions

    span = asked.input_start, asked.input_end
    if asked.source is not None:
        if asked.task or asked.config:
            raise UsageError("--input is in the place of a task.", fix="leave out one of the two.")
        template = asked.templates.chosen(model)
        start, end = span
        return Questions.read(
            asked.source, template=template, check=asked.check or "exact", start=start, end=end
        )
    if asked.check or asked.templates != TemplateFlags():
        raise UsageError(
            "--check and --template are for the rows of --input.", fix="leave them out."
        )
    own = Path(model) / "run.yaml"
    file = asked.config or (own if own.is_file() else None)
    if file is None and asked.task is None:
        raise UsageError("What shall be asked?", fix="give --task, or a file with --input.")
    task = configured_task(flags, given, name=asked.task, file=file)
    return Questions.of_task(task, *span, split=asked.split)


def run_study(
    generator: TextGenerator,
    questions: Questions,
    how: Mapping[str, Any],
    folder: Path,
    cache: Path,
    output: Output,
) -> int:
    """Does the study and writes its folder; the exit code. Ctrl-C keeps what is answered."""
    from stepwell.evals.temperature import temperature_study
    from stepwell.generate.response_cache import ResponseCache

    cache.parent.mkdir(parents=True, exist_ok=True)
    with ResponseCache(cache) as kept:
        try:
            with StudyProgress(output, len(questions.distinct()), how) as progress:
                study = temperature_study(
                    generator,
                    questions,
                    **how,
                    cache=kept,
                    progress=progress,
                    on_temperature=progress.next_temperature,
                )
        except KeyboardInterrupt:
            output.warn(f"interrupted. {len(kept)} answers are kept in {cache}.")
            output.note("The same command goes on from there.")
            return INTERRUPTED
        found = kept.statistics.hits
    if found:
        output.note(f"{found} answers were there already.", style="dim")
    study.write(folder, shlex.join(["stepwell", *sys.argv[1:]]))
    output.result({"directory": str(folder), **study.plain()}, short_table(study))
    output.note(f"\n{folder / 'report.html'}")
    return 0


class StudyProgress(GenerationProgress):
    """The progress of a study over all its temperatures, for as long as a `with` block lasts."""

    def __init__(self, output: Output, num_questions: int, how: Mapping[str, Any]) -> None:
        greedy = sum(each < GREEDY_BELOW for each in how["temperatures"])
        sampled = len(how["temperatures"]) - greedy
        super().__init__(output, "answering", num_questions * (greedy + sampled * how["samples"]))

    def next_temperature(self, _params: SamplingParams) -> None:
        """The answers at another temperature begin."""
        self.next_batch()


def short_table(study: TemperatureStudy) -> TerminalTable:
    """The study for a terminal: means with their intervals, a temperature a row."""
    heads = [Column(name) for name in ("temperature", "accuracy", "majority", "agreement")]
    heads += [Column("entropy"), Column("log-prob."), Column("tokens")]
    heads += [Column(f"above {each.threshold:g}") for each in study.rows[0].confident]
    rows: list[list[Cell]] = []
    for row in study.rows:
        shares = [_share(each) for each in (row.accuracy, row.majority)]
        agreement = f"{row.agreement.estimate:.1%}"
        means = [fixed(each.estimate, 3) for each in (row.entropy, row.logprob)]
        confident = [f"{each.count:,} = {each.share.estimate:.1%}" for each in row.confident]
        line = [f"{row.temperature:g}", *shares, agreement, *means]
        rows.append([*line, row.num_tokens, *confident])
    return terminal_table(Table(heads, rows))


def _share(interval: Interval) -> str:
    low, high = 100 * interval.low, 100 * interval.high
    return f"{interval.estimate:.1%} [{low:.1f}, {high:.1f}]"
