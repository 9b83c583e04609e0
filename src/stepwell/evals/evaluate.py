"""How good a model is at local tasks, with intervals.

    [result] = sw.evaluate(gen, ["capitals.yaml"])
    result.metrics["acc"].estimate, result.metrics["acc"].low, result.metrics["acc"].high

Owns how questions become scores. Choices are scored by likelihood as in lm-evaluation-harness, what
a model writes by the task's own match. Intervals are 95% percentiles of a bootstrap over questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stepwell.cascade.rule.paths import FloatArray
from stepwell.errors import ConfigError, LogitsError, PromptError
from stepwell.evals.frontier import Interval, bootstrap
from stepwell.evals.grades import Graded, grade_of
from stepwell.evals.likelihood import BATCH_SIZE, encode_pair, log_likelihoods
from stepwell.evals.local_task import (
    ChoiceQuestion,
    Generate,
    LocalTask,
    MultipleChoice,
    OpenQuestion,
    OwnTask,
    read_local_task,
)
from stepwell.evals.math_answer import MathChecker
from stepwell.generate.batch import Progress
from stepwell.generate.response_cache import ResponseCache
from stepwell.generate.text import TextGenerator
from stepwell.model.interventions import Intervention


@dataclass(frozen=True)
class Sample:
    """One question with its answer and scores; `logprobs` are those of the choices, in nats."""

    prompt: str
    target: str
    answer: str
    scores: Mapping[str, float]
    reason: str = ""
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True)
class EvalResult:
    """What came of a task: each metric with its interval, over `num` samples."""

    task: str
    metrics: Mapping[str, Interval]
    num: int
    samples: tuple[Sample, ...]

    def plain(self) -> dict[str, Any]:
        """Task, number and metrics as plain values, without the samples."""
        metrics = {name: asdict(interval) for name, interval in self.metrics.items()}
        return {"task": self.task, "num": self.num, "metrics": metrics}


@dataclass(frozen=True)
class Asking:
    """How a model is asked: under which interventions, how many at once, and what is kept."""

    interventions: Sequence[Intervention] = ()
    batch_size: int = BATCH_SIZE
    cache: ResponseCache | None = None
    progress: Progress | None = None


def evaluate(
    generator: TextGenerator,
    tasks: Sequence[str | Path | LocalTask],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    interventions: Sequence[Intervention] = (),
    batch_size: int = BATCH_SIZE,
    cache: ResponseCache | None = None,
    progress: Progress | None = None,
) -> list[EvalResult]:
    """The result of each task, given as its file or as a value.

    limit: the first so many questions of each. num_fewshot: examples before each question, as far
    as the tasks are files. cache: where generated answers are kept, so that a second run goes on.
    Raises ConfigError or DataError for a file at fault before the model is asked anything.
    """
    if isinstance(tasks, str):
        raise ConfigError(f"tasks is the text {tasks!r}, expected a list of files.")
    read = [
        read_local_task(task, num_fewshot=num_fewshot) if isinstance(task, str | Path) else task
        for task in tasks
    ]
    asking = Asking(interventions, batch_size, cache, progress)
    asked = [(task, questions_of(task, limit)) for task in read]
    return [evaluate_task(generator, task, questions, asking) for task, questions in asked]


Questions = list[ChoiceQuestion] | list[OpenQuestion]


def questions_of(task: LocalTask, limit: int | None = None) -> Questions:
    """What a task asks, the first `limit` of it. Raises ConfigError or DataError."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}, expected 1 or more questions.")
    return task.questions(limit)


def num_answers(questions: Questions) -> int:
    """What `progress` counts up to: choices that are scored, or answers that are generated."""
    return sum(
        len(question.choices) if isinstance(question, ChoiceQuestion) else 1
        for question in questions
    )


def evaluate_task(
    generator: TextGenerator, task: LocalTask, questions: Questions, asking: Asking
) -> EvalResult:
    """The result of one task for questions of it."""
    try:
        if isinstance(task, MultipleChoice):
            choices = [each for each in questions if isinstance(each, ChoiceQuestion)]
            samples = score_choices(generator, task.delimiter, choices, asking)
        else:
            opened = [each for each in questions if isinstance(each, OpenQuestion)]
            samples = score_answers(generator, task, opened, asking)
    except PromptError as error:
        raise PromptError(f"Task {task.name}: {error.problem}", fix=error.fix) from None
    return EvalResult(task.name, intervals_of(samples), len(samples), tuple(samples))


def score_choices(
    generator: TextGenerator, delimiter: str, questions: Sequence[ChoiceQuestion], asking: Asking
) -> list[Sample]:
    """Samples with `acc`, by log-probability, and `acc_norm`, by it for each character."""
    pairs = [
        encode_pair(generator.tokenizer, question.prompt, delimiter + choice)
        for question in questions
        for choice in question.choices
    ]
    found = log_likelihoods(
        generator.model,
        pairs,
        interventions=asking.interventions,
        batch_size=asking.batch_size,
        progress=asking.progress,
    )
    scores = iter(found)
    return [
        _choice_sample(question, [next(scores).logprob for _ in question.choices])
        for question in questions
    ]


def _choice_sample(question: ChoiceQuestion, logprobs: Sequence[float]) -> Sample:
    lengths = [max(len(choice), 1) for choice in question.choices]
    likeliest = int(np.argmax(logprobs))
    by_length = int(np.argmax(np.asarray(logprobs) / lengths))
    return Sample(
        question.prompt,
        question.choices[question.answer],
        question.choices[likeliest],
        {
            "acc": float(likeliest == question.answer),
            "acc_norm": float(by_length == question.answer),
        },
        logprobs=tuple(logprobs),
    )


def score_answers(
    generator: TextGenerator,
    task: Generate | OwnTask,
    questions: Sequence[OpenQuestion],
    asking: Asking,
) -> list[Sample]:
    """Samples with one score, named after what decides it. Answers are greedy."""
    stop = task.stop if isinstance(task, Generate) else ()
    answers = generator.generate_batch(
        [question.prompt for question in questions],
        interventions=asking.interventions,
        cache=asking.cache,
        progress=asking.progress,
        max_new_tokens=_longest(generator, task, questions),
        stop=stop,
        temperature=0.0,
        n=1,
    )
    for [answer] in answers:
        if answer.finish_reason == "error":
            raise LogitsError(f"Task {task.name}: an answer failed: {answer.error}")
    with MathChecker() as checker:
        name, grade = grade_of(task, checker)
        return [
            _answer_sample(question, answer.text, name, grade(answer.text, question))
            for question, [answer] in zip(questions, answers, strict=True)
        ]


def _answer_sample(question: OpenQuestion, answer: str, name: str, graded: Graded) -> Sample:
    scores = {name: float(graded.right)}
    return Sample(question.prompt, question.target, answer, scores, graded.reason)


def _longest(
    generator: TextGenerator, task: Generate | OwnTask, questions: Sequence[OpenQuestion]
) -> int:
    """Tokens that an answer may have: of a task of ours the longest answer's, and an end."""
    if isinstance(task, Generate):
        return task.max_new_tokens
    targets = [question.target for question in questions]
    longest = max(len(ids) for ids in generator.tokenizer.encode_batch(targets))
    return max(longest + task.task.ends, 1)


def intervals_of(samples: Sequence[Sample]) -> dict[str, Interval]:
    """The mean of each score, with its 95% interval over the samples."""
    return {
        name: interval_of_mean([sample.scores[name] for sample in samples])
        for name in samples[0].scores
    }


def interval_of_mean(values: Sequence[float]) -> Interval:
    """The mean of N values with its 95% interval, the same for the same values."""
    values_N = np.asarray(values, dtype=np.float64)

    def mean(weights_N: FloatArray) -> list[float]:
        return [float(weights_N @ values_N / weights_N.sum())]

    [interval] = bootstrap(mean, np.ones(len(values_N)))
    return interval
