"""A server as a stage: its answers are its model's, and it is known by what it says of itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.openai_server import Open
from support.tiny_models import CONTEXT, GREEDY, PROMPTS, own_answers, texts

from stepwell.cascade.stage import Observe
from stepwell.cascade.stages.dialects import DIALECTS
from stepwell.cascade.stages.server import ServerStage
from stepwell.errors import ConfigError, StageError
from stepwell.generate.text import TextGenerator


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_server_answers_what_its_model_answers(
    dialect: str, opened: Open, ours: TextGenerator
) -> None:
    _, stage = opened(dialect)
    replies = stage.generate(PROMPTS, **GREEDY)
    expected = [ours.generate(prompt, **GREEDY, logprobs=0) for prompt in PROMPTS]
    assert {answer.finish_reason for answer in expected} == {"stop", "length"}
    for reply, answer in zip(replies, expected, strict=True):
        said = reply.completion
        assert (said.text, said.finish_reason) == (answer.text, answer.finish_reason)
        assert said.usage.prompt_tokens == answer.usage.prompt_tokens
        assert said.usage.completion_tokens == len(said.logprobs)
        count = len(said.logprobs)  # llama.cpp leaves out the token that ends an answer
        assert said.logprobs == pytest.approx(answer.logprobs[:count], abs=1e-5)
        if dialect in ("vllm", "llama.cpp"):
            assert said.token_ids == answer.token_ids[:count]
        else:
            assert said.token_ids == ()
        assert (reply.mode, reply.top_logprobs) == ("anew", ())
        assert math.isnan(reply.prompt_entropy)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_likeliest_tokens_are_told_likeliest_first(
    dialect: str, opened: Open, ours: TextGenerator
) -> None:
    _, stage = opened(dialect)
    for reply in stage.generate(PROMPTS, observe=Observe(top_logprobs=3), **GREEDY):
        said = reply.completion
        assert len(reply.top_logprobs) == len(said.logprobs)
        for place, logprob in zip(reply.top_logprobs, said.logprobs, strict=True):
            values = [value for _, value in place]
            assert values == sorted(values, reverse=True)
            assert len(place) <= 3
            assert values[0] == logprob  # the choice was greedy
        if said.token_ids:
            assert tuple(place[0][0] for place in reply.top_logprobs) == said.token_ids


SAMPLED: list[dict[str, Any]] = [
    {"temperature": 1.6},
    {"top_k": 2},
    {"top_p": 0.4},
    {"min_p": 0.3},
    {"repetition_penalty": 1.9},
    {"presence_penalty": 2.0},
    {"frequency_penalty": 2.0},
    {"seed": 12345},
    {"ignore_eos": True},
    {"min_new_tokens": 9},
    {"stop": (" ", "a")},
]


@pytest.mark.parametrize("changed", SAMPLED, ids=lambda changed: next(iter(changed)))
def test_parameters_mean_the_same_on_the_other_side(
    changed: dict[str, Any], opened: Open, ours: TextGenerator
) -> None:
    base = {"max_new_tokens": 16, "seed": 3, "temperature": 0.4}
    expected = own_answers(ours, **{**base, **changed})
    assert expected != own_answers(ours, **base), "the parameter changes nothing here"
    _, stage = opened()
    assert texts(stage.generate(PROMPTS, **{**base, **changed})) == expected


@pytest.mark.parametrize(
    ("dialect", "sampling"),
    [
        ("vllm", {"no_repeat_ngram_size": 2}),
        ("vllm", {"banned_tokens": (3,)}),
        ("vllm", {"forced_tokens": (3,)}),
        ("vllm", {"repetition_window": 5}),
        ("vllm", {"newline_run_limit": 2}),
        ("vllm", {"think_budget": 2}),
        ("vllm", {"n": 2}),
        ("openai", {"top_k": 3}),
        ("openai", {"ignore_eos": True}),
        ("sglang", {"repetition_penalty": 1.2}),
        ("llama.cpp", {"presence_penalty": 1.0}),
        ("llama-cpp-python", {"min_new_tokens": 3}),
    ],
)
def test_what_a_server_cannot_do_is_refused_before_it_is_asked(
    dialect: str, sampling: dict[str, Any], opened: Open
) -> None:
    server, stage = opened(dialect)
    with pytest.raises(ConfigError, match=rf"{next(iter(sampling))} is "):
        stage.generate(PROMPTS, **sampling)
    assert server.asked() == []


def test_what_a_greedy_choice_ignores_is_no_fault(opened: Open, ours: TextGenerator) -> None:
    _, stage = opened("openai")
    replies = stage.generate(PROMPTS, **GREEDY, top_k=3, min_p=0.5)
    assert texts(replies) == own_answers(ours, **GREEDY)
    with pytest.raises(ConfigError, match="top_k is 3"):
        stage.generate(PROMPTS, top_k=3)


@pytest.mark.parametrize("seed", [-1, 2**40, -(2**63)])
def test_a_seed_never_means_any_seed(seed: int, opened: Open) -> None:
    server, stage = opened()
    stage.generate(PROMPTS[:1], seed=seed, max_new_tokens=2)
    assert 0 <= server.asked()[0]["seed"] < 2**31


def test_no_default_of_the_server_has_a_say(opened: Open) -> None:
    server, stage = opened("llama-cpp-python")
    stage.generate(PROMPTS[:1], max_new_tokens=2)
    [asked] = server.asked()
    said = {name: asked[name] for name in ("top_k", "top_p", "min_p", "repeat_penalty")}
    assert said == {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}


class Noted:
    """Progress that is remembered."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, int]] = []

    def update(self, finished: int, tokens: int) -> None:
        self.updates.append((finished, tokens))


def test_a_batch_is_asked_side_by_side_and_answered_in_order(opened: Open) -> None:
    server, stage = opened(max_rows=3)
    alone = texts(stage.generate(PROMPTS, **GREEDY))
    server.fault = lambda prompt: "slow"
    server.most_at_once, noted = 0, Noted()
    replies = stage.generate(PROMPTS, progress=noted, **GREEDY)
    assert texts(replies) == alone
    assert server.most_at_once == 3
    assert [finished for finished, _ in noted.updates] == list(range(1, len(PROMPTS) + 1))
    assert noted.updates[-1][1] == sum(len(reply.completion.logprobs) for reply in replies)


def test_an_answer_is_no_longer_than_the_context_has_room_for(
    opened: Open, ours: TextGenerator
) -> None:
    _, stage = opened()
    asked = {"temperature": 0.0, "max_new_tokens": 5 * CONTEXT, "ignore_eos": True}
    [reply] = stage.generate(PROMPTS[:1], **asked)
    answer = ours.generate(PROMPTS[0], **asked)
    assert reply.completion.text == answer.text
    assert reply.completion.finish_reason == "length"
    with pytest.raises(StageError, match="was answered 400: This is too long"):
        stage.generate(["cat " * CONTEXT], **GREEDY)


# Who the server is


def test_a_key_is_sent_and_never_said(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    server, stage = opened(api_key="sk-secret-1")
    stage.generate(PROMPTS[:1], **GREEDY)
    assert server.headers[-1]["Authorization"] == "Bearer sk-secret-1"
    server.fault = lambda prompt: "401"
    with pytest.raises(StageError, match=r"answered 401: Wrong key: Bearer \*\*\*") as caught:
        stage.generate(PROMPTS[:1], **GREEDY)
    heard = (str(caught.value), repr(caught.value), repr(stage), str(vars(stage)), caplog.text)
    assert not [said for said in heard if "sk-secret-1" in said]


def test_a_password_in_the_address_is_sent_and_not_shown(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server, _ = opened()
    stage = ServerStage("big", server.url.replace("//", "//me:hid%64en@"))
    stage.generate(PROMPTS[:1], **GREEDY)
    assert server.headers[-1]["Authorization"] == "Basic bWU6aGlkZGVu"
    server.fault = lambda prompt: "500"
    with pytest.raises(StageError) as caught:
        stage.generate(PROMPTS[:1], **GREEDY)
    assert not [said for said in (str(caught.value), caplog.text) if "hid" in said]
    assert server.url in str(caught.value)
    stage.close()


def test_a_stage_is_known_by_its_model_and_not_by_its_port(opened: Open) -> None:
    _, first_stage = opened()
    _, second_stage = opened()
    assert first_stage.fingerprint == second_stage.fingerprint
    others = [opened(models=("other",)), opened(parameters=7e9), opened("sglang")]
    known = {first_stage.fingerprint, *(stage.fingerprint for _, stage in others)}
    assert len(known) == 4


def test_of_several_models_one_must_be_named(opened: Open) -> None:
    server, stage = opened(models=("small", "large"))
    with pytest.raises(StageError, match="lists 'small', 'large', expected one"):
        stage.generate(PROMPTS[:1], **GREEDY)
    with pytest.raises(StageError, match="expected 'huge'"):
        _ = opened(models=("small", "large"), model="huge")[1].fingerprint
    server, stage = opened(models=("small", "large"), model="large")
    stage.generate(PROMPTS[:1], **GREEDY)
    assert server.asked()[0]["model"] == "large"


def test_ids_are_exchanged_only_where_the_tokenizer_is_known(
    opened: Open, spoken_for: Path, ours: TextGenerator
) -> None:
    assert opened()[1].vocabulary == ""
    assert opened(tokenizer=spoken_for)[1].vocabulary == ours.tokenizer.fingerprint


def test_flops_are_two_for_each_parameter_and_token_read(opened: Open) -> None:
    _, stage = opened(parameters=1000.0)
    [reply] = stage.generate(PROMPTS[:1], **GREEDY)
    assert stage.flops(reply.completion) == 2000.0 * (reply.completion.usage.total_tokens - 1)
    with pytest.raises(StageError, match="parameters") as caught:
        opened()[1].flops(reply.completion)
    assert "parameters:" in caught.value.fix


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "", "http://h:99999"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected the address of a server"):
        ServerStage("big", url)


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_an_address_may_end_with_v1(ending: str, opened: Open) -> None:
    server, _ = opened()
    stage = ServerStage("big", server.url + ending)
    assert stage.generate(PROMPTS[:1], **GREEDY)
    stage.close()


def test_an_unknown_dialect_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'vllm'"):
        ServerStage("big", "http://127.0.0.1:1", dialect="vlm")


def test_what_was_forgotten_is_not_found_in_the_servers_cache(opened: Open) -> None:
    server, stage = opened()
    stage.generate(PROMPTS[:1], **GREEDY)
    stage.forget()
    stage.generate(PROMPTS[:1], **GREEDY)
    stage.forget()
    stage.generate(PROMPTS[:1], **GREEDY)
    salts = [body.get("cache_salt") for body in server.asked()]
    assert salts[0] is None
    assert len(set(salts)) == 3
