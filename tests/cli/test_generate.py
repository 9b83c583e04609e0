"""Generating by command line: the same answers as the library gives, in the form asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepwell.generate.request import SAMPLING_PRESETS, SamplingParams
from stepwell.generate.text import TextGenerator

PROMPT = "abcd>"


@pytest.fixture(scope="module")
def generator(trained: Path) -> TextGenerator:
    return TextGenerator.load(trained, device="cpu")


def test_it_prints_the_librarys_answer_and_nothing_else(run, trained, generator) -> None:
    ended = run("generate", trained, PROMPT, "--temperature", 0)
    assert ended.code == 0
    assert ended.out == generator.generate(PROMPT, temperature=0).text + "\n"
    assert "3 tokens in" in ended.err


def test_every_flag_reaches_the_sampling_parameters(run, trained) -> None:
    sampling = run("generate", trained, PROMPT, "--json").json["sampling"]
    assert sampling == SamplingParams(max_new_tokens=3).plain()
    changed = run(
        *("generate", trained, PROMPT, "--json", "-n", 2, "--temperature", 0.8, "--top-p", 0.95),
        *("--seed", 7, "--stop", "a", "--stop", "b", "--banned_tokens", 3, "--no-ignore-eos"),
        *("--presence-penalty", "-0.5"),
    ).json["sampling"]
    expected = SamplingParams(
        max_new_tokens=3, n=2, temperature=0.8, top_p=0.95, seed=7, stop=("a", "b"),
        banned_tokens=(3,), presence_penalty=-0.5,
    )  # fmt: skip
    assert changed == expected.plain()


def test_a_preset_counts_before_the_model_and_after_flags(run, trained) -> None:
    words = ("generate", trained, PROMPT, "--json", "--preset", "chat")
    sampling = run(*words, "--top-p", 0.5).json["sampling"]
    assert sampling["temperature"] == SAMPLING_PRESETS["chat"].temperature
    assert sampling["top_p"] == 0.5
    assert sampling["max_new_tokens"] == 3  # the model's own: the preset does not say


def test_several_answers_are_numbered_and_the_same_as_in_json(run, trained) -> None:
    words = ("generate", trained, PROMPT, "-n", 3, "--seed", 5)
    answers = [answer["text"] for answer in run(*words, "--json").json["answers"]]
    shown = run(*words).out.splitlines()
    assert shown[::2] == ["answer 1", "answer 2", "answer 3"]
    assert shown[1::2] == answers
    assert len(set(answers)) > 1


def test_a_stream_is_the_answer_in_pieces(run, trained) -> None:
    words = ("generate", trained, PROMPT, "--seed", 3)
    assert run(*words, "--stream").out == run(*words).out
    assert run(*words, "--stream", "--echo").out == PROMPT + run(*words).out
    lines = [json.loads(line) for line in run(*words, "--stream", "--json").out.splitlines()]
    [answer] = run(*words, "--json").json["answers"]
    assert "".join(line["text"] for line in lines) == answer["text"]
    assert lines[-1]["answer"] == answer


def test_echo_puts_the_prompt_before_the_answer(run, trained) -> None:
    assert run("generate", trained, PROMPT, "--echo").out.startswith(PROMPT)


def test_a_prompt_may_begin_with_a_dash(run, trained) -> None:
    ended = run("generate", trained, "--", "-abc")
    assert ended.code == 2
    assert "'-'" in ended.err  # it got as far as the tokenizer, which has no dash


def test_threads_and_dtype_are_honoured(run, trained) -> None:
    import torch

    threads = torch.get_num_threads()
    try:
        words = ("generate", trained, PROMPT, "--temperature", 0, "--quiet")
        assert run(*words, "--threads", 1, "--dtype", "float64", "--device", "cpu").code == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
