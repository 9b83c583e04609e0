"""What a profile says, what it leaves behind, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import stepwell as sw
from stepwell.errors import ConfigError, HookError, LogitsError, PromptError
from stepwell.evals.profile.clock import Clock
from stepwell.evals.profile.result import PHASES
from stepwell.evals.profile.run import profile_inference
from stepwell.evals.profile.view import time_text
from stepwell.evals.profile.watched import watched_engine, watched_parts
from stepwell.generate.executor import Chunk, TorchExecutor
from stepwell.generate.text import TextGenerator
from stepwell.native.library import load

Make = Callable[..., TextGenerator]
PROMPT = "abc>"
NEW = 4
BRIEF = {"max_new_tokens": NEW, "repetitions": 3, "read_mib": 0, "ignore_eos": True}


# -- what it says ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_the_text_is_that_of_an_answer_without_a_profile(make: Make, strict: bool) -> None:
    gen = make(strict=strict)
    asked = {"max_new_tokens": 40, "temperature": 0.9, "seed": 3, "ignore_eos": True}
    profile = profile_inference(gen, PROMPT, repetitions=1, read_mib=0, **asked)
    answer = gen.generate(PROMPT, **asked)
    assert profile.text == answer.text
    assert profile.finish_reason == answer.finish_reason
    assert profile.completion_tokens == answer.usage.completion_tokens == 40
    other = gen.generate(PROMPT, **{**asked, "seed": 4})
    assert other.text != answer.text, "any text would do"


def test_who_computed_what(gen: TextGenerator) -> None:
    """Kernels compute all that they can, also under interventions."""
    library = load()
    if library is None:
        pytest.skip("there are no kernels here")
    kernels = f"kernels ({library.instruction_set})"
    plain = profile_inference(gen, "abcdefgh" * 20, **BRIEF)
    assert plain.phase("prefill").computed_by == plain.phase("decoding").computed_by == (kernels,)
    assert plain.parts == ()
    hooked = profile_inference(gen, PROMPT, interventions=[sw.ZeroHeads({0: [1]})], **BRIEF)
    assert hooked.phase("prefill").computed_by == hooked.phase("decoding").computed_by == (kernels,)
    assert hooked.phase("sampling").computed_by == ()


@pytest.mark.usefixtures("by_torch")
def test_tiles_are_named(make: Make) -> None:
    profile = profile_inference(make(strict=True), PROMPT, **BRIEF)
    assert profile.phase("decoding").computed_by == ("tiles",)
    assert {part.phase for part in profile.parts} == {"prefill", "decoding"}


@pytest.mark.parametrize(("length", "cached"), [(64, 0), (65, 64), (150, 128)])
def test_the_prompt_is_read_anew_each_time_and_found_once(
    make: Make, length: int, cached: int
) -> None:
    """Whole blocks of 64 are found again, but never the prompt's last token."""
    gen = make()
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

    def noting(self: TorchExecutor, chunks: list[Chunk]) -> object:
        read.append(len(chunks[0].ids))
        return run(self, chunks)  # type: ignore[arg-type]

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


@pytest.mark.usefixtures("by_torch")
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
