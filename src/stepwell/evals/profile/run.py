"""Where the time of one answer goes: measured on a copy of the generator, run by run."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from stepwell.errors import ConfigError
from stepwell.evals.bench.alone import read_pass, streamed_bytes
from stepwell.evals.profile.clock import Clock
from stepwell.evals.profile.result import (
    InferenceProfile,
    Part,
    Phase,
    parts_of_phases,
    phases_of,
)
from stepwell.evals.profile.watched import watched_engine, watched_generator, watched_parts
from stepwell.generate.request import Completion
from stepwell.generate.text import TextGenerator
from stepwell.model.interventions import Intervention
from stepwell.model.transformer import Transformer

READ_MIB: Final = 2048


def profile_inference(
    generator: TextGenerator,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    repetitions: int = 5,
    read_mib: int = READ_MIB,
    interventions: Sequence[Intervention] = (),
    **sampling: Any,
) -> InferenceProfile:
    """Where the time of the streamed answer to a prompt goes, by phase and by part of the model.

    Answers `repetitions` times after runs that do not count, each time with nothing of the
    prompt in the cache, and tells of the run in the middle. The generator is as it was afterwards.
    On a GPU each forward is waited for, so that its time is its own.

    read_mib: size of the read-only pass that decoding on a CPU is compared with; 0 for none. Raises
    what `TextGenerator.generate` raises, and ConfigError for numbers out of range.
    """
    _check(repetitions, read_mib)
    asked = {"max_new_tokens": max_new_tokens, "interventions": interventions, **sampling}
    stand = Stand(generator, prompt, asked)
    runs = [stand.run(f"run {number}") for number in range(repetitions)]
    again = stand.run(f"run {repetitions - 1}")
    middle, usage = middle_of(runs), again.answer.usage
    return InferenceProfile(
        text=middle.answer.text,
        finish_reason=middle.answer.finish_reason,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=middle.answer.usage.completion_tokens,
        seconds=middle.seconds,
        runs=tuple(run.seconds for run in runs),
        phases=middle.phases,
        parts=_parts(stand, middle, repetitions),
        first_token_s=middle.first_token_s,
        gaps=middle.gaps,
        cached_tokens=usage.cached_tokens,
        cached_first_token_s=again.first_token_s if usage.cached_tokens else None,
        weight_bytes=streamed_bytes(generator.model),
        memory_gb_per_s=_memory_speed(generator.model, read_mib, repetitions),
        device=str(generator.model.device),
        threads=torch.get_num_threads(),
    )


@dataclass(frozen=True)
class Run:
    """One answer, what its phases and parts took, and when its tokens came.

    first_token_s counts from the call.
    """

    answer: Completion
    phases: tuple[Phase, ...]
    parts: tuple[Part, ...]
    seconds: float
    first_token_s: float
    gaps: tuple[float, ...]


class Stand:
    """A prompt, and a watched copy of a generator that answers it again and again.

    Making it raises what keeps the prompt from its answer, and warms up: a first answer as a whole,
    then one as a stream.
    """

    def __init__(self, generator: TextGenerator, prompt: str, asked: Mapping[str, Any]) -> None:
        self._prompt, self._asked = prompt, asked
        self._clock = Clock()
        sampling = {name: value for name, value in asked.items() if name != "interventions"}
        answer = generator.defaults.changed(**sampling).max_new_tokens
        longest = len(generator.tokens(prompt)) + answer
        positions = min(generator.model.config.context_length, longest)
        self.engine = watched_engine(generator, self._clock, positions)
        self._generator = watched_generator(generator, self.engine, self._clock)
        self._generator.generate(prompt, **asked)
        self.run("does not count")

    def run(self, salt: str) -> Run:
        """One answer; it finds the prompt in the cache if it was read under this salt before."""
        clock = self._clock
        self.engine.forget(salt)
        begun = clock.now()
        with clock.during("rest"):
            pieces = self._generator.generate_stream(self._prompt, **self._asked)
            with clock.during("detokenizing"):
                [answer] = [piece.completion for piece in pieces if piece.completion]
        chosen, usage = self.engine.chosen, answer.usage
        return Run(
            answer,
            phases=phases_of(
                clock.seconds,
                self.engine.computed_by,
                prompt=usage.prompt_tokens,
                completion=usage.completion_tokens,
            ),
            parts=parts_of_phases(clock.seconds),
            seconds=clock.whole,
            first_token_s=chosen[0] - begun,
            gaps=tuple(after - before for before, after in itertools.pairwise(chosen)),
        )


def middle_of(runs: Sequence[Run]) -> Run:
    """The run whose time is in the middle, the faster one of two."""
    return sorted(runs, key=lambda run: run.seconds)[(len(runs) - 1) // 2]


def _parts(stand: Stand, seen: Run, repetitions: int) -> tuple[Part, ...]:
    """What the parts of the model take where torch computes, of runs in which they are watched.

    None where the kernels computed all of the run that was seen: for them a step is one call.
    """
    executors = [name for phase in seen.phases for name in phase.computed_by]
    if all(name.startswith("kernels") for name in executors):
        return ()
    with watched_parts(stand.engine):
        stand.run("parts, does not count")
        return middle_of([stand.run(f"parts {number}") for number in range(repetitions)]).parts


def _memory_speed(model: Transformer, read_mib: int, repetitions: int) -> float | None:
    """GB/s of a read-only pass, in the middle of some; None where it would say nothing."""
    if not read_mib or model.device.type != "cpu":
        return None
    read = read_pass(read_mib)
    return statistics.median([read(number) for number in range(repetitions + 1)][1:])


def _check(repetitions: int, read_mib: int) -> None:
    """Nothing; raises ConfigError for numbers out of range."""
    if repetitions < 1:
        raise ConfigError(f"repetitions is {repetitions}, expected 1 or more.")
    if read_mib < 0:
        raise ConfigError(f"read_mib is {read_mib}, expected 0 or more.")
