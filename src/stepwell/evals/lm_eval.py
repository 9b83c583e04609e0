"""lm-evaluation-harness in this process: its tasks, with a model of ours.

    import lm_eval
    lm_eval.simple_evaluate(model=sw.lm_eval_model(gen, interventions=[...]), tasks=["gsm8k"])

Owns the door to it, which stays shut where lm-eval is not installed, and what `stepwell eval` runs.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stepwell.errors import ConfigError, DataError
from stepwell.evals.evaluate import EvalResult, interval_of_mean
from stepwell.evals.frontier import Interval
from stepwell.evals.likelihood import BATCH_SIZE
from stepwell.generate.text import TextGenerator
from stepwell.model.interventions import Intervention

if TYPE_CHECKING:
    from stepwell.evals.harness import StepwellLM

RESAMPLES: Final = 1000  # for the errors of metrics that are no mean


def check_installed() -> None:
    """Nothing; raises ConfigError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "lm-evaluation-harness is not installed.",
            fix='pip install "stepwell[eval]", or write a task file for --tasks.',
        )


def lm_eval_model(
    generator: TextGenerator,
    *,
    interventions: Sequence[Intervention] = (),
    batch_size: int = BATCH_SIZE,
) -> StepwellLM:
    """The generator as a model that `lm_eval.simple_evaluate(model=...)` takes.

    Raises ConfigError where lm-eval is not installed.
    """
    check_installed()
    from stepwell.evals.harness import StepwellLM

    return StepwellLM(generator, interventions=interventions, batch_size=batch_size)


def run_lm_eval(
    model: StepwellLM,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
) -> dict[str, Any]:
    """What lm-eval's simple_evaluate gives, with samples, for tasks by name.

    include_path: a folder with task files of one's own. apply_chat_template: ask in a conversation,
    each solved example a turn of it. Raises ConfigError for a task that there is not, DataError for
    one whose documents cannot be read.
    """
    import lm_eval  # type: ignore[import-untyped]

    manager = _manager(tasks, include_path)
    try:
        found: dict[str, Any] = lm_eval.simple_evaluate(
            model=model,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=apply_chat_template,
            bootstrap_iters=RESAMPLES,
        )
    except OSError as error:  # of `datasets`: no file, no network
        raise DataError(
            f"The documents of {', '.join(tasks)} cannot be read: {error}.",
            fix="check data_files in the task's file; those of the Hub need a network once.",
        ) from None
    return found


def results_of(found: Mapping[str, Any]) -> list[EvalResult]:
    """What `run_lm_eval` gave, as results of ours without samples.

    Intervals are bootstrapped as those of local tasks; NaN for a metric that is no mean.
    """
    return [
        EvalResult(name, dict(_metrics(values, samples)), found["n-samples"][name]["effective"], ())
        for name, samples in found["samples"].items()
        if (values := found["results"].get(name))
    ]


def _metrics(
    values: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Interval]]:
    """Name and interval of each metric of a task; lm-eval's names end in ",none" or a filter."""
    for key, value in values.items():
        name, comma, kind = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        scores = [sample.get(name) for sample in samples if sample["filter"] == kind]
        shown = name if kind == "none" else f"{name} ({kind})"
        yield shown, _interval(float(value), scores)


def _interval(value: float, scores: Sequence[Any]) -> Interval:
    """The interval of a mean; NaN to NaN where the value is not that of the scores."""
    numbers = [float(score) for score in scores if isinstance(score, int | float)]
    if not numbers or not math.isclose(value, sum(numbers) / len(numbers), abs_tol=1e-9):
        return Interval(value, math.nan, math.nan)
    return interval_of_mean(numbers)


def _manager(tasks: Sequence[str], include_path: str | Path | None) -> Any:
    """What finds the tasks: in the folder alone where it has them all, as lm-eval's are many.

    Raises ConfigError for a task that is nowhere.
    """
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

    folder = None if include_path is None else str(include_path)
    if folder is not None:
        own = TaskManager(include_path=folder, include_defaults=False)
        if set(tasks) <= set(own.all_subtasks):
            return own
    manager = TaskManager(include_path=folder)
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise ConfigError(
            f"lm-eval has no task {unknown[0]!r}.",
            fix="`lm-eval ls tasks` lists them; --include-path names a folder with files of yours.",
        )
    return manager
