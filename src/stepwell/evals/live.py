"""Running a cascade for real beside what it is compared with, and timing all of them.

Contestants take turns, so that all drift alike, and begin each turn with empty caches. Owns the
clock, the contestants that are no rule (one stage always, speculative decoding, prompt lookup), and
what of a cascade's time its decisions take.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from stepwell.cascade.answer import Answer
from stepwell.cascade.pipeline import Cascade
from stepwell.cascade.rule.paths import FloatArray, IntArray
from stepwell.cascade.stage import Stage
from stepwell.cascade.stages.local import LocalStage

REPETITIONS: Final = 5
LOOKUP: Final = "prompt lookup"
ANEW: Final = "ladder, each stage anew"

Clock = Callable[[], float]
Contestant = Callable[[Sequence[str]], list[str]]
"""Answers prompts with texts."""


@dataclass(frozen=True)
class Rival:
    """What a contestant answered, and its median seconds for all prompts."""

    texts: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class LiveRun:
    """What the cascade answered, its seconds, and those of always one stage by its name.

    deciding_s: seconds of them that no stage took, a prompt. rivals: all contestants but the
    cascade, the stages among them, by name.
    """

    answers: tuple[Answer, ...]
    seconds: float
    stage_seconds: dict[str, float]
    deciding_s: float = 0.0
    rivals: Mapping[str, Rival] = field(default_factory=dict)

    def relative_to(self, stage: str) -> float:
        """The cascade's seconds in units of always this stage's."""
        return self.seconds / self.stage_seconds[stage]


def run_live(
    cascade: Cascade,
    prompts: Sequence[str],
    *,
    others: Mapping[str, Contestant] | None = None,
    repetitions: int = REPETITIONS,
    clock: Clock = time.perf_counter,
) -> LiveRun:
    """The cascade's answers, with median times of it, of always one stage, and of others, in turns.

    The cascade's time holds everything that it does: features, beliefs and decisions too.
    """
    stages = {stage.name: _alone(stage, cascade.config.sampling) for stage in cascade.stages}
    contestants = {**stages, **(others or {})}
    own: list[float] = []
    deciding: list[float] = []
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    texts: dict[str, list[str]] = {}
    answers: list[Answer] = []
    for _ in range(repetitions):
        _begin_turn(cascade)
        start = clock()
        answers = cascade.generate_batch(prompts)
        own.append(clock() - start)
        deciding.append(own[-1] - seconds_of_stages(answers))
        for name, answer in contestants.items():
            _begin_turn(cascade)
            start = clock()
            texts[name] = answer(prompts)
            taken[name].append(clock() - start)
    rivals = {
        name: Rival(tuple(texts[name]), statistics.median(times)) for name, times in taken.items()
    }
    return LiveRun(
        tuple(answers),
        statistics.median(own),
        {name: rivals[name].seconds for name in stages},
        statistics.median(deciding) / len(prompts),
        rivals,
    )


def speculation(cascade: Cascade) -> dict[str, Contestant]:
    """The largest stage drafted for: by each smaller one with its tokens, and by prompt lookup.

    None where it does not run in our own engine. The engine chooses the draft's length as it goes.
    """
    *smaller, largest = cascade.stages
    if not isinstance(largest, LocalStage):
        return {}
    sampling = cascade.config.sampling
    found: dict[str, Contestant] = {}
    for stage in smaller:
        if isinstance(stage, LocalStage) and stage.vocabulary == largest.vocabulary:
            name = f"{largest.name} drafted by {stage.name}"
            found[name] = partial(_drafted, largest, stage.generator.model, sampling)
    found[LOOKUP] = partial(_drafted, largest, "lookup", sampling)
    return found


def without_drafts(cascade: Cascade) -> dict[str, Contestant]:
    """The same ladder where each stage answers anew, none where it does so anyway."""
    if cascade.config.policy.mode == "anew":
        return {}
    policy = cascade.config.policy.changed(mode="anew")
    other = Cascade(cascade.config.changed(policy=policy), cascade.stages, cascade.fitted)

    def answer(prompts: Sequence[str]) -> list[str]:
        return [answer.text for answer in other.generate_batch(prompts)]

    return {ANEW: answer}


def _begin_turn(cascade: Cascade) -> None:
    """Empty all caches, and collect garbage.

    A full collection takes a tenth of a second in a process that holds torch. It comes after so
    many objects, whosever they are: without this it falls on the same contestant in every turn.
    """
    gc.collect()
    forget(cascade)


def forget(cascade: Cascade) -> None:
    """Empty all caches, so that every prompt costs what a new one does."""
    cascade.kv.clear()
    for stage in cascade.stages:
        stage.forget()


def seconds_of_stages(answers: Iterable[Answer]) -> float:
    """What the stages took for answers of one call; each visit tells its whole batch's seconds."""
    return sum(seconds for _, seconds in {(v.stage, v.seconds) for a in answers for v in a.trace})


@dataclass(frozen=True, eq=False)
class Latency:
    """Seconds of each prompt when asked alone, [N]; deciding: of them, those of no stage, [N]."""

    seconds: FloatArray
    deciding: FloatArray
    largest: FloatArray


def run_alone(
    cascade: Cascade, prompts: Sequence[str], *, clock: Clock = time.perf_counter
) -> Latency:
    """Prompts one by one, by the cascade and by its largest stage in turn, after one to warm up."""
    rows = []
    always = _alone(cascade.stages[-1], cascade.config.sampling)
    for prompt in [prompts[0], *prompts]:
        forget(cascade)
        start = clock()
        [answer] = cascade.generate_batch([prompt])
        middle = clock()
        forget(cascade)
        begun = clock()
        always([prompt])
        end = clock()
        rows.append((middle - start, middle - start - seconds_of_stages([answer]), end - begun))
    return Latency(*np.array(rows[1:], dtype=np.float64).T)


def drawn(weights: FloatArray, count: int, seed: int = 0) -> IntArray:
    """`count` rows, as often and as mixed as they are asked; at most as many as there are.

    By systematic sampling: a row comes as often as its weight says, rounded up or down.
    """
    count = min(count, len(weights))
    sums = np.cumsum(weights)
    places = (np.arange(count) + 0.5) / count * sums[-1]
    return np.random.default_rng(seed).permutation(np.searchsorted(sums, places))


def _alone(stage: Stage, sampling: Mapping[str, Any]) -> Contestant:
    def answer(prompts: Sequence[str]) -> list[str]:
        return [reply.completion.text for reply in stage.generate(prompts, **sampling)]

    return answer


def _drafted(
    stage: LocalStage, draft: Any, sampling: Mapping[str, Any], prompts: Sequence[str]
) -> list[str]:
    found = stage.generator.generate_batch(prompts, draft=draft, **{**sampling, "n": 1})
    return [completion.text for [completion] in found]
