"""`stepwell eval`: how good a model is at tasks of yours, or at those of lm-evaluation-harness."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Group, Parameter
from rich import box
from rich.table import Table
from rich.text import Text

from stepwell.cli.compute import ComputeFlags
from stepwell.cli.console import Output, OutputFlags, finite
from stepwell.cli.interventions import InterventionFlags
from stepwell.cli.progress import GenerationProgress
from stepwell.config import write_atomically, write_json
from stepwell.errors import UsageError

if TYPE_CHECKING:
    from stepwell.evals.evaluate import EvalResult
    from stepwell.evals.frontier import Interval
    from stepwell.generate.text import TextGenerator
    from stepwell.model.interventions import Intervention

HARNESS_GROUP: Final = Group("Tasks of lm-evaluation-harness", sort_key=10)
Samples = list[dict[str, Any]]


@Parameter(name="*", group=HARNESS_GROUP)
@dataclass(frozen=True)
class HarnessFlags:
    """Tasks that lm-eval knows, run in this process."""

    lm_eval: Annotated[str | None, Parameter(metavar="TASKS")] = None
    """Names of its tasks, such as gsm8k,arc_easy; `pip install "stepwell[eval]"` brings it."""
    include_path: Annotated[Path | None, Parameter(metavar="DIR")] = None
    """A folder with task files of yours in its form."""
    apply_chat_template: Annotated[bool, Parameter(negative=())] = False
    """Ask in a conversation, by the model's chat template."""

    @property
    def names(self) -> list[str]:
        """The names of its tasks."""
        return _names(self.lm_eval)

    def check(self) -> None:
        """Nothing; raises UsageError for flags that need a task of lm-eval's and have none."""
        for name, is_given in (
            ("--include-path", self.include_path is not None),
            ("--apply-chat-template", self.apply_chat_template),
        ):
            if is_given and not self.names:
                raise UsageError(f"{name} needs --lm-eval.", fix="name tasks, or leave it out.")


@Parameter(name="*")
@dataclass(frozen=True)
class EvalFlags:
    """What is asked, and where it goes."""

    limit: Annotated[int | None, Parameter(metavar="N")] = None
    """Only the first so many questions of each task."""
    num_fewshot: Annotated[int | None, Parameter(metavar="N")] = None
    """Solved examples before each question; what the task says where it is not given."""
    batch_size: Annotated[int, Parameter(metavar="N")] = 16
    """Choices that are scored at the same time."""
    out: Path | None = None
    """Write the results to this JSON file too."""
    log_samples: Annotated[Path | None, Parameter(metavar="FILE")] = None
    """Write each question with its answer and scores, a line of JSON each."""
    cache: Path | None = None
    """Keep generated answers in this file; a second run makes only those that it lacks."""

    def check(self) -> None:
        """Nothing; raises UsageError for a number that is too small."""
        for name, value, least in (
            ("--limit", self.limit, 1),
            ("--num-fewshot", self.num_fewshot, 0),
            ("--batch-size", self.batch_size, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}, expected {least} or more.")


def evaluate(
    model: str,
    /,
    *,
    tasks: Annotated[str | None, Parameter(metavar="FILES")] = None,
    harness: HarnessFlags = HarnessFlags(),  # it is frozen
    options: EvalFlags = EvalFlags(),
    inside: InterventionFlags = InterventionFlags(),  # noqa: B008
    compute: ComputeFlags = ComputeFlags(),  # noqa: B008
    output: OutputFlags = OutputFlags(),  # noqa: B008
) -> None:
    """Measure how good a model is at tasks, with 95% intervals.

        stepwell eval runs/facts --tasks facts.yaml
        stepwell eval runs/story --tasks words.yaml,lines.yaml --limit 50 --out scores.json

    Parameters
    ----------
    model
        A run folder, a model directory, or a name on the Hugging Face Hub.
    tasks
        Task files (YAML), with commas between them.
    """
    local = _names(tasks)
    if not local and not harness.names:
        raise UsageError(
            "There is nothing to be measured.", fix="give --tasks FILE.yaml, or --lm-eval NAME."
        )
    harness.check()
    options.check()
    interventions = inside.parsed
    with output.open() as opened:
        from stepwell.evals.lm_eval import check_installed
        from stepwell.model.interventions import plain_interventions

        if harness.names:
            check_installed()
        work = Work(opened, options, interventions)
        asked = work.read(local)
        generator = compute.load(model)
        results, samples = work.run_local(generator, asked)
        if harness.names:
            more, lines = work.run_harness(generator, harness)
            results, samples = [*results, *more], [*samples, *lines]
        plain = {
            "model": model,
            "limit": options.limit,
            "num_fewshot": options.num_fewshot,
            "interventions": plain_interventions(interventions),
            "tasks": [result.plain() for result in results],
        }
        opened.result(plain, table_of(results))
        work.write(plain, samples)


class Work:
    """The tasks of one command, with what it was told about all of them."""

    def __init__(
        self, output: Output, options: EvalFlags, interventions: Sequence[Intervention]
    ) -> None:
        self.output, self.options, self.interventions = output, options, interventions

    def read(self, files: Sequence[str]) -> list[tuple[Any, Any]]:
        """The tasks of files and their questions, before any model is loaded."""
        from stepwell.evals.evaluate import questions_of
        from stepwell.evals.local_task import read_local_task

        tasks = [read_local_task(file, num_fewshot=self.options.num_fewshot) for file in files]
        return [(task, questions_of(task, self.options.limit)) for task in tasks]

    def run_local(
        self, generator: TextGenerator, asked: Sequence[tuple[Any, Any]]
    ) -> tuple[list[EvalResult], Samples]:
        """The results of local tasks, and a line for each sample."""
        from stepwell.evals.evaluate import Asking, evaluate_task, num_answers

        results = []
        with self._cache() as cache:
            for task, questions in asked:
                total = num_answers(questions)
                with GenerationProgress(self.output, task.name, total) as progress:
                    asking = Asking(self.interventions, self.options.batch_size, cache, progress)
                    results.append(evaluate_task(generator, task, questions, asking))
        lines = [
            {"task": result.task, **asdict(sample)}
            for result in results
            for sample in result.samples
        ]
        return results, lines

    def run_harness(
        self, generator: TextGenerator, harness: HarnessFlags
    ) -> tuple[list[EvalResult], Samples]:
        """The results of lm-eval's tasks, and its own record of each sample."""
        from stepwell.evals.lm_eval import lm_eval_model, results_of, run_lm_eval

        options = self.options
        model = lm_eval_model(
            generator, interventions=self.interventions, batch_size=options.batch_size
        )
        with _silent() if self.output.quiet else contextlib.nullcontext():
            found = run_lm_eval(
                model,
                harness.names,
                include_path=harness.include_path,
                limit=options.limit,
                num_fewshot=options.num_fewshot,
                apply_chat_template=harness.apply_chat_template,
            )
        samples = found["samples"].items()
        lines = [{"task": name, **sample} for name, each in samples for sample in each]
        return results_of(found), lines

    def write(self, plain: dict[str, Any], samples: Samples) -> None:
        """Writes the files that are asked for, and says where."""
        out, log = self.options.out, self.options.log_samples
        if out is not None:
            write_json(out, finite(plain))
            self.output.note(Text.assemble(("Results: ", "dim"), str(out)))
        if log is not None:
            lines = [json.dumps(finite(line), ensure_ascii=False, default=str) for line in samples]
            write_atomically(log, "".join(line + "\n" for line in lines))
            self.output.note(Text.assemble(("Samples: ", "dim"), str(log)))

    @contextlib.contextmanager
    def _cache(self) -> Iterator[Any]:
        if self.options.cache is None:
            yield None
            return
        from stepwell.generate.response_cache import ResponseCache

        with ResponseCache(self.options.cache) as cache:
            yield cache


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """While this lasts what others write to standard error is dropped; errors are still raised."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def _names(text: str | None) -> list[str]:
    """The names between commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def table_of(results: Sequence[EvalResult]) -> Table:
    """The results for people: a line for each metric, with its 95% interval."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for head in ("value", "95% interval", "questions"):
        table.add_column(head, justify="right", no_wrap=True)
    for result in results:
        for place, (name, interval) in enumerate(result.metrics.items()):
            first = (result.task, f"{result.num:,}") if place == 0 else ("", "")
            table.add_row(first[0], name, f"{interval.estimate:.4f}", _range(interval), first[1])
    return table


def _range(interval: Interval) -> str:
    if interval.low != interval.low:  # NaN: there is none
        return "-"
    return f"{interval.low:.4f} to {interval.high:.4f}"
