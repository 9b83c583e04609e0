"""Every moment is somebody's, and what is slowed shows where it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest

from stepwell.evals.profile.clock import Clock
from stepwell.evals.profile.result import PHASES, InferenceProfile, parts_of_phases, phases_of
from stepwell.evals.profile.run import profile_inference
from stepwell.generate.executor import Chunk, TorchExecutor
from stepwell.generate.sampler import Sampler
from stepwell.generate.scheduler import Scheduler
from stepwell.generate.text import TextGenerator
from stepwell.native.library import load
from stepwell.text.detokenize import IncrementalDecoder
from stepwell.text.tokenizer import Tokenizer

Make = Callable[..., TextGenerator]
PROMPT = "abc>"
NEW = 4
BRIEF = {"max_new_tokens": NEW, "repetitions": 3, "read_mib": 0, "ignore_eos": True}
DELAY = 0.01
TICK = 1e-6


class Time:
    """A time that passes where a test lets it, and by a tick whenever it is looked at."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += TICK
        return self.seconds

    def delay(self, *_: object) -> None:
        """Lets DELAY pass."""
        self.seconds += DELAY


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Time:
    """The time by which profiles are measured in this test."""
    passing = Time()
    monkeypatch.setattr("stepwell.evals.profile.run.Clock", partial(Clock, passing))
    return passing


def after(delay: Callable[[], object], function: Callable[..., object]) -> Callable[..., object]:
    """The function, which comes after a delay."""

    def call(*args: object, **options: object) -> object:
        delay()
        return function(*args, **options)

    return call


def part_seconds(profile: InferenceProfile) -> dict[tuple[str, str], float]:
    return {(part.phase, part.name): part.seconds for part in profile.parts}


# -- sums ------------------------------------------------------------------------------------------


def test_parts_of_a_forward_belong_to_its_phase() -> None:
    seconds = {"rest": 1.0, "prefill": 2.0, "prefill/mlp": 3.0, "decoding": 4.0}
    phases = {each.name: each for each in phases_of(seconds, {}, prompt=5, completion=3)}
    assert list(phases) == list(PHASES)
    assert phases["prefill"].seconds == 5.0
    assert phases["prefill"].per_token_s == 1.0
    assert phases["decoding"].tokens == 2
    assert sum(each.share for each in phases.values()) == pytest.approx(1)
    parts = {(part.phase, part.name): part for part in parts_of_phases(seconds)}
    assert parts["prefill", "mlp"].share == 0.6
    assert parts["prefill", "rest"].seconds == 2.0
    assert {phase for phase, _ in parts} == {"prefill"}, "what nobody watched has no parts"


def test_phases_add_up_to_the_whole_and_the_whole_is_what_the_wall_clock_says(
    gen: TextGenerator,
) -> None:
    profile = profile_inference(gen, PROMPT, **BRIEF)
    assert sum(phase.seconds for phase in profile.phases) == pytest.approx(profile.seconds)
    assert sum(phase.share for phase in profile.phases) == pytest.approx(1)
    assert all(phase.seconds > 0 for phase in profile.phases)
    assert min(profile.runs) <= profile.seconds <= max(profile.runs)
    assert sorted(profile.runs)[1] == profile.seconds
    assert profile.first_token_s + sum(profile.gaps) <= profile.seconds
    assert len(profile.gaps) == NEW - 1


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("tied", [True, False])
def test_parts_of_a_phase_add_up_to_its_forwards(make: Make, tied: bool) -> None:
    profile = profile_inference(make(tied=tied), PROMPT, **BRIEF)
    for phase in ("prefill", "decoding"):
        parts = [part for part in profile.parts if part.phase == phase]
        assert [part.name for part in parts] == [
            *("embedding", "norms", "attention", "mlp", "head", "rest"),
        ]
        assert sum(part.share for part in parts) == pytest.approx(1)
        assert all(part.seconds > 0 for part in parts)


# -- what is slowed shows where it is --------------------------------------------------------------


def run_after(delay: Callable[[], object], least: int, most: int) -> Callable[..., object]:
    """torch's executor, which delays forwards over so many tokens."""
    run = TorchExecutor.run

    def call(self: TorchExecutor, chunks: list[Chunk]) -> object:
        if least <= len(chunks[0].ids) <= most:
            delay()
        return run(self, chunks)  # type: ignore[arg-type]

    return call


def slow(phase: str, delay: Callable[[], object]) -> tuple[type, str, Callable[..., object], int]:
    """What is slow in a phase: a class, its method, the slow one, and how often it is called."""
    owner, name, times = {
        "tokenizing": (Tokenizer, "encode_batch", 1),
        "prefill": (TorchExecutor, "run", 1),
        "decoding": (TorchExecutor, "run", NEW - 1),
        "sampling": (Sampler, "verify", NEW),
        "detokenizing": (IncrementalDecoder, "push", NEW),
        "rest": (Scheduler, "admit", NEW),
    }[phase]
    lengths = {"prefill": (2, 999), "decoding": (1, 1)}
    if phase in lengths:
        return owner, name, run_after(delay, *lengths[phase]), times
    return owner, name, after(delay, getattr(owner, name)), times


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("phase", PHASES)
def test_what_is_slow_shows_in_its_phase_and_in_no_other(
    phase: str, gen: TextGenerator, passing: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {each.name: each.seconds for each in profile_inference(gen, PROMPT, **BRIEF).phases}
    owner, name, slower, times = slow(phase, passing.delay)
    monkeypatch.setattr(owner, name, slower)
    profile = profile_inference(gen, PROMPT, **BRIEF)
    added = {each.name: each.seconds - before[each.name] for each in profile.phases}
    expected = {each: times * DELAY if each == phase else 0 for each in PHASES}
    assert added == pytest.approx(expected, abs=1e-9)


def test_a_tokenizer_that_sleeps_takes_that_long(
    gen: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock on the wall."""
    slower = after(lambda: time.sleep(DELAY), Tokenizer.encode_batch)
    monkeypatch.setattr(Tokenizer, "encode_batch", slower)
    profile = profile_inference(gen, PROMPT, **BRIEF)
    assert DELAY <= profile.phase("tokenizing").seconds < profile.first_token_s


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize(
    ("part", "place", "when"),
    [
        ("embedding", "embed", "hook"),
        ("norms", "final_norm", "hook"),
        ("attention", "blocks.0.attention", "pre_hook"),
        ("attention", "blocks.0.attention.o_proj", "hook"),
        ("mlp", "blocks.1.mlp", "hook"),
        ("mlp", "blocks.1.mlp", "pre_hook"),
        ("head", "head", "hook"),
        ("rest", "blocks.1", "hook"),
    ],
)
def test_a_slow_module_shows_in_its_part(
    gen: TextGenerator, passing: Time, part: str, place: str, when: str
) -> None:
    before = part_seconds(profile_inference(gen, PROMPT, **BRIEF))
    getattr(gen.model.get_submodule(place), f"register_forward_{when}")(passing.delay)
    profile = part_seconds(profile_inference(gen, PROMPT, **BRIEF))
    added = {key: seconds - before[key] for key, seconds in profile.items()}
    times = {("prefill", part): 1, ("decoding", part): NEW - 1}
    assert added == pytest.approx({key: times.get(key, 0) * DELAY for key in before}, abs=1e-9)


def test_a_module_that_the_kernels_do_not_call_shows_nowhere(
    gen: TextGenerator, passing: Time
) -> None:
    if load() is None:
        pytest.skip("there are no kernels here")
    gen.model.get_submodule("blocks.1.mlp").register_forward_hook(passing.delay)
    profile = profile_inference(gen, PROMPT, **BRIEF)
    assert profile.parts == ()
    assert profile.seconds < DELAY
