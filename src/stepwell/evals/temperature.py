"""The study of temperature and confidence: what a model answers, how often right, and how sure.

For each temperature some samples to each question, and at each token that came the distribution
that the model had. Owns the order of the work and the folder that it ends in; the arithmetic is in
`temperature_rows`, the pictures are in `temperature_figures`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from stepwell.config import write_atomically, write_json
from stepwell.errors import ConfigError, LogitsError, UsageError
from stepwell.evals.certainty import certainty
from stepwell.evals.temperature_figures import charts, study_page
from stepwell.evals.temperature_rows import Sample, TemperatureRow, summarise
from stepwell.generate.batch import Progress
from stepwell.generate.request import Completion, SamplingParams
from stepwell.generate.response_cache import ResponseCache
from stepwell.generate.text import TextGenerator
from stepwell.model.fingerprint import model_fingerprint
from stepwell.model.interventions import Intervention, plain_interventions
from stepwell.report import Chart, Page, write_png
from stepwell.tasks import Task
from stepwell.tasks.questions import Question, Questions
from stepwell.train.environment import environment

FORMAT_VERSION: Final = 1
TEMPERATURES: Final = (0.0, 0.3, 0.6, 1.0)
VARIED: Final = ("temperature", "n", "num_return_sequences", "do_sample")


@dataclass(frozen=True, eq=False)
class TemperatureStudy:
    """What came of each temperature, in the order asked for, and every answer.

    `questions` are those asked, each once, with its weight. `configuration` is all that shapes the
    result, `environment` where it was computed.
    """

    rows: tuple[TemperatureRow, ...]
    samples: tuple[Sample, ...]
    questions: tuple[Question, ...]
    configuration: dict[str, Any]
    environment: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """All but the answers, as JSON holds it."""
        return {
            "format_version": FORMAT_VERSION,
            "rows": [row.plain() for row in self.rows],
            "configuration": self.configuration,
            "environment": self.environment,
        }

    def answers(self) -> Iterator[dict[str, Any]]:
        """Each answer as a row: with its question, so that no place in a list tells it."""
        for sample in self.samples:
            question, sure = self.questions[sample.question], sample.certainty
            yield {
                "prompt": question.prompt,
                "expected": question.expected,
                "weight": question.weight,
                "temperature": sample.temperature,
                "sample": sample.number,
                "text": sample.text,
                "final": sample.final,
                "correct": sample.correct,
                "tokens": len(sure),
                "mean_entropy": float(sure.entropy.mean()),
                "mean_logprob": float(sure.logprob.mean()),
                "confident": {
                    f"{each.threshold:g}": sure.num_confident(each.threshold)
                    for each in self.rows[0].confident
                },
            }

    def charts(self) -> dict[str, Chart]:
        """The pictures by name: accuracy, entropy, confident."""
        return charts(self.rows)

    def page(self, command: str = "") -> Page:
        """The pictures and the table on one page; `command` is the one that made it."""
        return study_page(self.rows, self.configuration, command)

    def write_json(self, path: str | Path) -> Path:
        """The path, where `plain` now lies."""
        write_json(path, self.plain())
        return Path(path)

    def write_png(self, directory: str | Path) -> list[Path]:
        """The pictures in a folder: accuracy.png, entropy.png, confident.png."""
        found = self.charts().items()
        return [write_png(chart, Path(directory) / f"{name}.png") for name, chart in found]

    def write(self, directory: str | Path, command: str = "") -> Path:
        """The folder, where now lie answers.jsonl, report.html, the pictures, then results.json.

        Each file is there as a whole; what another study left under these names is replaced.
        """
        directory = Path(directory)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in self.answers())
        write_atomically(directory / "answers.jsonl", "".join(lines))
        self.write_png(directory)
        self.page(command).write(directory / "report.html")
        self.write_json(directory / "results.json")
        return directory


def temperature_study(
    generator: TextGenerator,
    asked: Task | Questions,
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    samples: int = 8,
    thresholds: Sequence[float] = (0.9,),
    input_start: int = 0,
    input_end: int | None = None,
    interventions: Sequence[Intervention] = (),
    cache: ResponseCache | None = None,
    resamples: int = 2_000,
    progress: Progress | None = None,
    on_temperature: Callable[[SamplingParams], None] | None = None,
    **sampling: Any,
) -> TemperatureStudy:
    """The study of one model.

    asked: questions, or a task, of whose test split the examples from input_start up to input_end
    are asked, 100 where no end is given. samples: to each question at each temperature; at 0 all
    are the same, so that one is asked for. thresholds: the model is confident where it gives its
    likeliest token more. cache: where answers are kept as they finish; what is there is not asked
    again. on_temperature: told what is asked for before each temperature. sampling: other fields of
    SamplingParams, such as `seed`. The generator's max_rows answers are computed at once.

    Raises ConfigError for a plan that cannot be, LogitsError where a logit is not finite.
    """
    if isinstance(asked, Task):
        asked = Questions.of_task(asked, input_start, input_end)
    elif input_start or input_end is not None:
        raise UsageError("input_start and input_end are for a task; questions come as they are.")
    plans = _plans(generator, temperatures, samples, sampling)
    _check_thresholds(thresholds)
    questions = asked.distinct()
    ask = partial(_asked, generator, questions, interventions, asked.spelled)
    weights = [question.weight for question in questions]
    rows, answers = [], []
    for params in plans:
        if on_temperature is not None:
            on_temperature(params)
        groups = ask(params, cache=cache, progress=progress)
        rows.append(summarise(groups, weights, thresholds, resamples=resamples))
        answers += [sample for group in groups for sample in group]
    configuration = {
        **_configuration(generator, asked, plans, interventions),
        "num_questions": len(questions),
        "samples": samples,
        "thresholds": list(thresholds),
        "resamples": resamples,
    }
    where = environment(generator.model.device)
    return TemperatureStudy(tuple(rows), tuple(answers), questions, configuration, where)


def _plans(
    generator: TextGenerator, temperatures: Sequence[float], samples: int, given: dict[str, Any]
) -> list[SamplingParams]:
    """What is asked for at each temperature: one sample where it is greedy."""
    for name in VARIED:
        if name in given:
            raise ConfigError(
                f"{name} is what the study sets.", fix="give temperatures= and samples=."
            )
    if not temperatures or len(set(temperatures)) < len(temperatures):
        raise ConfigError(f"temperatures are {list(temperatures)}, expected different ones.")
    plans = [
        generator.defaults.changed(**given, temperature=each, n=samples, do_sample=None)
        for each in temperatures
    ]
    plans = [params.changed(n=1) if params.greedy else params for params in plans]
    if sum(params.greedy for params in plans) > 1:
        raise ConfigError(
            f"temperatures are {list(temperatures)}: several are greedy.", fix="leave one of them."
        )
    return plans


def _check_thresholds(thresholds: Sequence[float]) -> None:
    if not thresholds or not all(0 <= each < 1 for each in thresholds):
        raise ConfigError(f"thresholds are {list(thresholds)}, expected some from 0 to below 1.")
    if len(set(thresholds)) < len(thresholds):
        raise ConfigError(f"thresholds are {list(thresholds)}, expected different ones.")


def _asked(
    generator: TextGenerator,
    questions: Sequence[Question],
    interventions: Sequence[Intervention],
    spelled: bool,
    params: SamplingParams,
    **how: Any,
) -> list[list[Sample]]:
    """The samples of each question with these parameters."""
    prompts = [question.prompt for question in questions]
    answers = generator.generate_batch(prompts, interventions=interventions, **how, **dict(params))
    encoded = generator.tokenizer.encode_batch(prompts, special=True)
    found = []
    for place, (question, ids, choices) in enumerate(zip(questions, encoded, answers, strict=True)):
        _check_finished(question, choices)
        read = _read_by_model(generator, ids, choices[0])
        tokens = [choice.token_ids for choice in choices]
        sure = certainty(generator.model, read, tokens, interventions=interventions)
        texts = [_text(generator, choice, spelled) for choice in choices]
        found.append(
            [
                Sample(
                    place, params.temperature, number, text,
                    question.final(text), question.grade(text), each,
                )
                for number, (text, each) in enumerate(zip(texts, sure, strict=True))
            ]
        )  # fmt: skip
    return found


def _check_finished(question: Question, choices: Sequence[Completion]) -> None:
    for choice in choices:
        if choice.finish_reason == "error":
            raise LogitsError(
                f"An answer to {question.prompt[:60]!r} failed: {choice.error}",
                fix="look at the model and the interventions; other answers are kept in the cache.",
            )


def _read_by_model(generator: TextGenerator, ids: list[int], answer: Completion) -> list[int]:
    """The prompt's ids as the model read them: a long one may have lost its beginning."""
    begin = generator.tokenizer.bos_id
    whole = ids or ([] if begin is None else [begin])
    return whole[-answer.usage.prompt_tokens :]


def _text(generator: TextGenerator, answer: Completion, spelled: bool) -> str:
    """What is graded: the text, or with its special tokens spelled out."""
    if not spelled:
        return answer.text
    return generator.tokenizer.decode(answer.token_ids, skip_special=False)


def _configuration(
    generator: TextGenerator,
    asked: Questions,
    plans: Sequence[SamplingParams],
    interventions: Sequence[Intervention],
) -> dict[str, Any]:
    """All that shapes the answers; batch_size does so in a rounding at most, not where strict."""
    varied = {"temperature", "n", "do_sample"}
    sampling = {name: value for name, value in plans[0].plain().items() if name not in varied}
    return {
        "weights": model_fingerprint(generator.model),
        "tokenizer": generator.tokenizer.fingerprint,
        "dtype": str(generator.model.dtype).removeprefix("torch."),
        "strict": generator.engine.strict,
        "batch_size": generator.num_at_once,
        "questions": dict(asked.source),
        "temperatures": [params.temperature for params in plans],
        "sampling": sampling,
        "interventions": plain_interventions(interventions),
    }
