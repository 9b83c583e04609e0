"""Profiles: every moment is somebody's, what is slowed shows where it is, and nothing is left."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import stepwell as sw
from stepwell.errors import ConfigError, HookError, LogitsError, PromptError
from stepwell.evals.profile.clock import Clock
from stepwell.evals.profile.result import PHASES, InferenceProfile, parts_of_phases, phases_of
from stepwell.evals.profile.run import profile_inference
from stepwell.evals.profile.view import time_text
from stepwell.evals.profile.watched import watched_engine, watched_parts
from stepwell.generate import executor
from stepwell.generate.executor import Chunk, TorchExecutor
from stepwell.generate.sampler import Sampler
from stepwell.generate.scheduler import Scheduler
from stepwell.generate.text import TextGenerator
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.native.library import load
from stepwell.text.detokenize import IncrementalDecoder
from stepwell.text.tokenizer import Tokenizer

PROMPT = "abc>"
NEW = 4
BRIEF = {"max_new_tokens": NEW, "repetitions": 3, "read_mib": 0, "ignore_eos": True}
DELAY = 0.01
TICK = 1e-6


def make_generator(*, tied: bool = False, **options: object) -> TextGenerator:
    """A small random model with a context of several blocks of the cache."""
    tokenizer = Tokenizer.character("abcdefgh \n>.", {"eos": "<eos>"})
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=256,
        width=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        tie_embeddings=tied,
    )
    model = Transformer(config)
    model.initialize(0)
    return TextGenerator(model, tokenizer, **options)


@pytest.fixture
def gen() -> TextGenerator:
    return make_generator()


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernels: torch computes everything."""
    monkeypatch.setattr(executor, "native_decoder", lambda _model: None)


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


# -- the clock -------------------------------------------------------------------------------------


def ticking(*moments: float) -> Clock:
    return Clock(iter(moments).__next__)


def test_what_is_inside_is_not_counted_twice() -> None:
    clock = ticking(0, 1, 5, 7)
    with clock.during("outer"), clock.during("inner"):
        pass
    assert clock.seconds == {"outer": 1 + 2, "inner": 4}
    assert clock.whole == 7


def test_time_while_nothing_is_open_is_nobodys() -> None:
    clock = ticking(0, 1, 100, 103)
    clock.timed("a", lambda: None)()
    clock.timed("a", lambda: None)()
    assert clock.seconds == {"a": 1 + 3}


def test_a_phase_ends_where_it_raises() -> None:
    clock = ticking(0, 1, 3, 6)
    with clock.during("outer"), pytest.raises(ZeroDivisionError), clock.during("inner"):
        raise ZeroDivisionError
    assert clock.seconds == {"outer": 1 + 3, "inner": 2}
    clock.reset()
    assert clock.whole == 0


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
def test_parts_of_a_phase_add_up_to_its_forwards(tied: bool) -> None:
    profile = profile_inference(make_generator(tied=tied), PROMPT, **BRIEF)
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

    def call(self: TorchExecutor, chunks: list[Chunk], interventions: object = ()) -> object:
        if least <= len(chunks[0].ids) <= most:
            delay()
        return run(self, chunks, interventions)  # type: ignore[arg-type]

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


# -- what it says ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_the_text_is_that_of_an_answer_without_a_profile(strict: bool) -> None:
    gen = make_generator(strict=strict)
    asked = {"max_new_tokens": 40, "temperature": 0.9, "seed": 3, "ignore_eos": True}
    profile = profile_inference(gen, PROMPT, repetitions=1, read_mib=0, **asked)
    answer = gen.generate(PROMPT, **asked)
    assert profile.text == answer.text
    assert profile.finish_reason == answer.finish_reason
    assert profile.completion_tokens == answer.usage.completion_tokens == 40
    other = gen.generate(PROMPT, **{**asked, "seed": 4})
    assert other.text != answer.text, "any text would do"


def test_who_computed_what(gen: TextGenerator) -> None:
    """Kernels take few tokens at once and torch many, and all with an intervention."""
    library = load()
    if library is None:
        pytest.skip("there are no kernels here")
    kernels = f"kernels ({library.instruction_set})"
    short = profile_inference(gen, PROMPT, **BRIEF)
    assert short.phase("prefill").computed_by == short.phase("decoding").computed_by == (kernels,)
    long = profile_inference(gen, "abcdefgh" * 20, **BRIEF)
    assert long.phase("prefill").computed_by == ("torch",)
    assert long.phase("decoding").computed_by == (kernels,)
    assert {part.phase for part in long.parts} == {"prefill"}
    hooked = profile_inference(gen, PROMPT, interventions=[sw.ZeroHeads({0: [1]})], **BRIEF)
    assert hooked.phase("decoding").computed_by == ("torch",)
    assert hooked.phase("sampling").computed_by == ()


@pytest.mark.usefixtures("by_torch")
def test_tiles_are_named() -> None:
    profile = profile_inference(make_generator(strict=True), PROMPT, **BRIEF)
    assert profile.phase("decoding").computed_by == ("tiles",)
    assert {part.phase for part in profile.parts} == {"prefill", "decoding"}


@pytest.mark.parametrize(("length", "cached"), [(64, 0), (65, 64), (150, 128)])
def test_the_prompt_is_read_anew_each_time_and_found_once(length: int, cached: int) -> None:
    """Whole blocks of 64 are found again, but never the prompt's last token."""
    gen = make_generator()
    gen.generate("a" * length)  # what the generator itself has read is of no account
    profile = profile_inference(gen, "a" * length, **BRIEF)
    assert profile.cached_tokens == cached
    assert (profile.cached_first_token_s is None) == (cached == 0)
    assert profile.phase("prefill").tokens == profile.prompt_tokens == length


@pytest.mark.usefixtures("by_torch")
def test_no_run_that_counts_finds_its_prompt_in_the_cache(
    gen: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    run = TorchExecutor.run

    def noting(self: TorchExecutor, chunks: list[Chunk], interventions: object = ()) -> object:
        read.append(len(chunks[0].ids))
        return run(self, chunks, interventions)  # type: ignore[arg-type]

    monkeypatch.setattr(TorchExecutor, "run", noting)
    profile_inference(gen, "a" * 150, **BRIEF)
    warm, cold, again, parts = [150] * 2, [150] * 3, [150 - 128], [150] * (1 + 3)
    assert [count for count in read if count > 1] == [*warm, *cold, *again, *parts]


def test_weights_are_held_against_a_read_only_pass(gen: TextGenerator) -> None:
    profile = profile_inference(gen, PROMPT, **{**BRIEF, "read_mib": 8})
    embedding = gen.model.embed.weight.nbytes  # looked up, where the head is another matrix
    assert profile.weight_bytes == sum(p.nbytes for p in gen.model.parameters()) - embedding
    read = profile.weight_bytes * (NEW - 1) / profile.phase("decoding").seconds / 1e9
    assert profile.weights_gb_per_s == pytest.approx(read)
    assert profile.memory_gb_per_s is not None
    assert profile.memory_share == pytest.approx(read / profile.memory_gb_per_s)


def test_a_single_token_has_no_rates_of_decoding(gen: TextGenerator) -> None:
    profile = profile_inference(gen, PROMPT, **{**BRIEF, "max_new_tokens": 1})
    assert profile.gaps == ()
    assert profile.phase("decoding").per_token_s is None
    for name in ("decode_rate", "median_gap_s", "p95_gap_s", "weights_gb_per_s", "memory_share"):
        assert getattr(profile, name) is None
    assert "decoding" in str(profile)


def test_gaps_are_summed_up_as_they_are(gen: TextGenerator) -> None:
    profile = profile_inference(gen, PROMPT, **BRIEF)
    made = dataclasses.replace(profile, gaps=tuple(range(1, 102)))
    assert made.median_gap_s == 51
    assert made.p95_gap_s == 96
    assert made.decode_rate == pytest.approx(1 / 51)


def test_a_profile_is_json_text_a_page_and_a_picture(gen: TextGenerator, tmp_path: Path) -> None:
    profile = profile_inference(gen, "abcdefgh" * 20, **BRIEF)
    plain = json.loads(json.dumps(profile.plain()))
    assert plain["phases"][1]["per_token_s"] == profile.phase("prefill").per_token_s
    assert plain["decode_rate"] == profile.decode_rate
    shown = str(profile)
    assert all(phase in shown for phase in PHASES)
    assert "attention" in shown
    assert "128 tokens of the prompt in the cache" in shown
    page = profile.write_html(tmp_path / "profile.html", command="stepwell profile").read_text()
    assert all(word in page for word in (*PHASES, "attention", "stepwell profile"))
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert profile.write_png(tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(123.4, "123 s"), (1.234, "1.23 s"), (0.999, "999 ms"), (4.5e-3, "4.5 ms"), (8e-6, "8 µs")],
)
def test_times_are_said_in_the_unit_that_suits_them(seconds: float, shown: str) -> None:
    assert time_text(seconds) == shown


# -- what it leaves --------------------------------------------------------------------------------


@pytest.mark.usefixtures("by_torch")
def test_the_generator_is_as_it_was(gen: TextGenerator) -> None:
    prompt = "abcdefgh" * 20
    things = (gen, gen.engine, gen.model, gen.tokenizer)
    before = [dict(vars(thing)) for thing in things]
    weights = {name: value.clone() for name, value in gen.model.state_dict().items()}
    profile_inference(gen, prompt, **BRIEF)
    for thing, old in zip(things, before, strict=True):  # a cached property may have come
        assert {name: vars(thing)[name] for name in old} == old
    for module in gen.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(torch.equal(weights[name], each) for name, each in gen.model.state_dict().items())
    assert gen.generate(prompt).usage.cached_tokens == 0, "nothing of it is in its cache"
    assert gen.generate(prompt).usage.cached_tokens == 128


@pytest.mark.usefixtures("by_torch")
def test_nothing_is_left_of_a_profile_that_fails(
    gen: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> object:
        raise ZeroDivisionError

    monkeypatch.setattr("stepwell.evals.profile.run.parts_of_phases", failing)
    with pytest.raises(ZeroDivisionError):
        profile_inference(gen, PROMPT, **BRIEF)
    watching = watched_parts(watched_engine(gen, Clock(), 16))
    watching.__enter__()
    assert any(module._forward_hooks for module in gen.model.modules())
    assert not watching.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert not any(module._forward_hooks for module in gen.model.modules())


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"max_new_tokens": 0}, ConfigError, "max_new_tokens"),
        ({"max_new_tokens": "many"}, ConfigError, "max_new_tokens"),
        ({"repetitions": 0}, ConfigError, "repetitions"),
        ({"read_mib": -1}, ConfigError, "read_mib"),
        ({"temprature": 1}, ConfigError, "temperature"),
        ({"n": 2}, ConfigError, "one answer"),
        ({"interventions": [sw.ZeroHeads({9: [0]})]}, HookError, "layer"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    gen: TextGenerator, asked: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        profile_inference(gen, PROMPT, **{**BRIEF, **asked})


@pytest.mark.parametrize("prompt", ["", "a" * 256, "A"])
def test_prompts_without_an_answer_are_refused(gen: TextGenerator, prompt: str) -> None:
    with pytest.raises(PromptError):
        profile_inference(gen, prompt, **BRIEF)


def test_an_answer_that_fails_raises_what_ended_it(gen: TextGenerator) -> None:
    with torch.no_grad():
        gen.model.head.weight.fill_(float("nan"))
    with pytest.raises(LogitsError):
        profile_inference(gen, PROMPT, **BRIEF)


def test_it_is_a_public_name() -> None:
    assert sw.profile_inference is profile_inference
