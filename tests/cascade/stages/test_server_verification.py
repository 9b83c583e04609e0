"""A draft that a server verifies leads to the answer that it gives without one, in fewer steps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.openai_server import Open, first
from support.tiny_models import CONTEXT, GREEDY, PROMPTS, save_tiny

from stepwell.cascade.stage import Draft, Observe, Reply
from stepwell.cascade.stages import completions
from stepwell.errors import StageError
from stepwell.generate.request import Completion
from stepwell.generate.text import TextGenerator

VERIFYING = ("vllm", "llama-cpp-python")


def draft(text: str) -> Draft:
    """A draft of a vocabulary that nobody knows."""
    return Draft(text, (), "")


def spoiled(text: str, source: random.Random) -> str:
    """The text with a letter changed, left out or added somewhere; now and then as it is."""
    if not text or source.random() < 0.2:
        return text
    at = source.randrange(len(text))
    return (
        text[:at] + source.choice(["", "x", " the", "é", "😀"]) + text[at + source.randrange(2) :]
    )


def drafts_of(replies: Sequence[Reply], seed: int) -> list[Draft]:
    source = random.Random(seed)
    return [draft(spoiled(reply.completion.text, source)) for reply in replies]


def faults(plain: Sequence[Reply], found: Sequence[Reply]) -> list[str]:
    """Where replies differ from those without a draft."""
    said = []
    for row, (one, other) in enumerate(zip(plain, found, strict=True)):
        old, new = one.completion, other.completion
        if (old.text, old.finish_reason) != (new.text, new.finish_reason):
            said.append(f"{row}: {new.text!r}, {new.finish_reason} for {old.text!r}")
        elif old.token_ids != new.token_ids or old.usage != new.usage:
            said.append(f"{row}: {new.token_ids} {new.usage} for {old.token_ids} {old.usage}")
        elif new.logprobs != pytest.approx(old.logprobs, abs=1e-5):
            said.append(f"{row}: log-probabilities")
        elif [[token for token, _ in place] for place in one.top_logprobs] != [
            [token for token, _ in place] for place in other.top_logprobs
        ]:
            said.append(f"{row}: likeliest tokens")
    return said


CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "stop": {"stop": ("e", "at t", " 2")},
    "short": {"max_new_tokens": 3},
    "no end": {"ignore_eos": True},
}
BOTH = [(dialect, change) for dialect in VERIFYING for change in CHANGES]
BOTH.remove(("llama-cpp-python", "no end"))  # it cannot do so


@pytest.mark.parametrize(("dialect", "change"), BOTH)
def test_verifying_a_draft_gives_the_answer_without_one(
    dialect: str, change: str, opened: Open
) -> None:
    _, stage = opened(dialect)
    asked: dict[str, Any] = {**GREEDY, **CHANGES[change], "observe": Observe(top_logprobs=2)}
    plain = stage.generate(PROMPTS, **asked)
    whole = stage.generate(PROMPTS, **GREEDY)  # longer than `plain`, with strings that would stop
    for seed in range(4):
        found = stage.verify(PROMPTS, drafts_of([*plain[:4], *whole[4:]], seed), **asked)
        assert faults(plain, found) == []
        assert any(reply.completion.usage.accepted_tokens for reply in found)
        assert any(reply.mode == "verified" for reply in found)


@pytest.mark.parametrize("dialect", VERIFYING)
def test_believing_every_drafted_token_would_be_found_out(
    dialect: str, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stage = opened(dialect)
    plain = stage.generate(PROMPTS, **GREEDY)
    honest = completions._place

    def believing(*values: Any) -> completions.Place:
        return replace(honest(*values), is_likeliest=True)

    monkeypatch.setattr(completions, "_place", believing)
    monkeypatch.setattr(completions, "_ranked", lambda token, told: believing(token, -1.0, {}))
    assert faults(plain, stage.verify(PROMPTS, drafts_of(plain, 0), **GREEDY)) != []


@pytest.mark.parametrize("dialect", VERIFYING)
def test_a_right_draft_takes_one_step(dialect: str, opened: Open, ours: TextGenerator) -> None:
    server, stage = opened(dialect)
    rows = [(prompt, ours.generate(prompt, **GREEDY)) for prompt in PROMPTS]
    told = [
        (prompt, answer) for prompt, answer in rows if is_told_by_its_text(ours, prompt, answer)
    ]
    assert len(told) >= 3
    stage.verify(PROMPTS[:1], [draft("x")], **GREEDY)  # the way is tried
    for prompt, answer in told:
        server.requests.clear()
        [found] = stage.verify([prompt], [draft(answer.text)], **GREEDY)
        assert [body["max_tokens"] for body in server.asked()] == [1]
        usage = found.completion.usage
        assert usage.accepted_tokens == len(answer.token_ids) - (answer.finish_reason == "stop")
        assert (usage.rejected_tokens, found.mode) == (0, "verified")


def is_told_by_its_text(generator: TextGenerator, prompt: str, answer: Completion) -> bool:
    """Whether an answer's text leads back to its tokens, as a random model's need not."""
    [before, whole] = generator.encode([prompt, prompt + answer.text])
    text_ids = [token for token in answer.token_ids if token != generator.tokenizer.eos_id]
    return whole == before + text_ids


def test_a_wrong_draft_stays_up_to_its_first_fault(opened: Open, ours: TextGenerator) -> None:
    server, stage = opened()
    [reply] = stage.generate(PROMPTS[1:2], **GREEDY)
    ids = reply.completion.token_ids
    good = ours.tokenizer.decode(ids[:5])
    assert ours.tokenizer.encode(PROMPTS[1] + good)[-5:] == list(ids[:5])
    server.requests.clear()
    [found] = stage.verify(PROMPTS[1:2], [draft(good + "zzz")], **GREEDY)
    usage = found.completion.usage
    assert (usage.accepted_tokens, usage.rejected_tokens) == (5, 3)
    asked = [body for body in server.asked() if body["max_tokens"] > 1]
    assert [(body["prompt"][-5:], body["max_tokens"]) for body in asked] == [(list(ids[:5]), 7)]


def test_ids_of_the_same_tokenizer_are_taken_as_they_are(
    opened: Open, spoken_for: Path, ours: TextGenerator
) -> None:
    server, stage = opened(tokenizer=spoken_for)
    answers = [ours.generate(prompt, **GREEDY) for prompt in PROMPTS]
    given = [Draft(each.text, each.token_ids, stage.vocabulary) for each in answers]
    found = stage.verify(PROMPTS, given, **GREEDY)
    assert [reply.completion.token_ids for reply in found] == [each.token_ids for each in answers]
    assert not {body["prompt"] for body in server.asked("/tokenize")} - set(PROMPTS)
    foreign = [Draft(each.text, (1, 2, 3), "another") for each in answers]
    again = stage.verify(PROMPTS, foreign, **GREEDY)
    assert [reply.completion.token_ids for reply in again] == [each.token_ids for each in answers]


@pytest.mark.parametrize("dialect", VERIFYING)
def test_tokens_that_grow_together_at_the_border_change_nothing(
    dialect: str, opened: Open, ours: TextGenerator
) -> None:
    prompts, texts = ["the c", "a do", "cou", "th", "log;"], ["at", "g sat", "nting", "e", " one"]
    encode = ours.tokenizer.encode
    grown = [
        encode(prompt + text)[: len(encode(prompt))] != encode(prompt)
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    assert sum(grown) >= 3
    _, stage = opened(dialect)
    plain = stage.generate(prompts, **GREEDY)
    assert faults(plain, stage.verify(prompts, list(map(draft, texts)), **GREEDY)) == []


@pytest.fixture(scope="module")
def babbling(tmp_path_factory: pytest.TempPathFactory) -> TextGenerator:
    """A model that says bytes of all kinds, few of which are characters."""
    generator = TextGenerator.load(save_tiny(tmp_path_factory.mktemp("bytes") / "model", seed=5))
    with torch.no_grad():
        weight = generator.model.head.weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return generator


@pytest.mark.parametrize("dialect", VERIFYING)
def test_bytes_that_are_no_characters_change_nothing(
    dialect: str, opened: Open, babbling: TextGenerator, tmp_path: Path
) -> None:
    babbling.tokenizer.save(tmp_path)
    _, stage = opened(dialect, babbling, tokenizer=tmp_path)
    asked = {**GREEDY, "ignore_eos": dialect == "vllm"}
    plain = stage.generate(PROMPTS, **asked)
    assert sum("\N{REPLACEMENT CHARACTER}" in reply.completion.text for reply in plain) > 4
    for seed in range(2):
        assert faults(plain, stage.verify(PROMPTS, drafts_of(plain, seed), **asked)) == []
    for count in range(1, 12, 2):
        ids = [[*reply.completion.token_ids[:count], 65] for reply in plain]
        given = [
            Draft(babbling.tokenizer.decode(each), tuple(each), stage.vocabulary) for each in ids
        ]
        assert faults(plain, stage.verify(PROMPTS, given, **asked)) == []


# Where a draft cannot be verified


@pytest.mark.parametrize(
    "changed",
    [{"temperature": 0.7}, {"repetition_penalty": 1.5}, {"min_new_tokens": 3}],
    ids=lambda changed: next(iter(changed)),
)
def test_only_a_plain_greedy_choice_is_verified(changed: dict[str, Any], opened: Open) -> None:
    _, stage = opened()
    asked = {**GREEDY, **changed}
    plain = stage.generate(PROMPTS, **asked)
    found = stage.verify(PROMPTS, drafts_of(plain, 0), **asked)
    assert faults(plain, found) == []
    assert {reply.mode for reply in found} == {"anew"}


@pytest.mark.parametrize("dialect", ["openai", "llama.cpp", "sglang"])
def test_a_server_that_ranks_no_given_text_answers_anew(dialect: str, opened: Open) -> None:
    server, stage = opened(dialect)
    plain = stage.generate(PROMPTS, **GREEDY)
    server.requests.clear()
    found = stage.verify(PROMPTS, drafts_of(plain, 0), **GREEDY)
    assert found == plain
    assert len(server.requests) == len(PROMPTS)
    with pytest.raises(StageError, match="tells no log-probabilities of a text"):
        stage.score(PROMPTS[:1], ["x"])


def test_whether_a_server_can_is_tried_once(opened: Open) -> None:
    server, stage = opened("openai", dialect="vllm")  # one that has no /tokenize
    plain = stage.generate(PROMPTS, **GREEDY)
    for _ in range(2):
        assert stage.verify(PROMPTS, drafts_of(plain, 0), **GREEDY) == plain
    assert len(server.asked("/tokenize")) == 1


def test_what_passes_is_not_remembered_as_a_lack(opened: Open) -> None:
    server, stage = opened()
    plain = stage.generate(PROMPTS[:1], **GREEDY)
    drafts = [draft(plain[0].completion.text)]
    server.fault = first(1, "500")
    with pytest.raises(StageError, match="answered 500"):
        stage.verify(PROMPTS[:1], drafts, **GREEDY)
    assert stage.verify(PROMPTS[:1], drafts, **GREEDY)[0].mode == "verified"


def test_places_that_are_one_off_are_not_believed(
    opened: Open, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = TextGenerator.load(save_tiny(tmp_path_factory.mktemp("open") / "model", begins=False))
    _, stage = opened("llama-cpp-python", model)
    plain = stage.generate(PROMPTS, **GREEDY)
    found = stage.verify(PROMPTS, drafts_of(plain, 0), **GREEDY)
    assert found == plain
    with pytest.raises(StageError, match="tells no log-probabilities of a text"):
        stage.score(PROMPTS[:1], ["x"])


def test_an_empty_draft_and_one_too_long_for_the_context_are_answered_anew(opened: Open) -> None:
    _, stage = opened()
    long = "cat " * (CONTEXT // 4)
    plain = stage.generate([PROMPTS[0], long], **GREEDY)
    drafts = [draft(""), draft("dog " * CONTEXT)]
    found = stage.verify([PROMPTS[0], long], drafts, **{**GREEDY, "max_new_tokens": 12})
    assert faults(plain, found) == []
    assert found[0].mode == "anew"


def test_a_deadline_holds_for_all_steps_of_a_verification(opened: Open) -> None:
    server, stage = opened()
    plain = stage.generate(PROMPTS, **GREEDY)
    stage.verify(PROMPTS[:1], [draft("x")], **GREEDY)
    server.fault = lambda prompt: "hang" if prompt.startswith(PROMPTS[0] + "~") else None
    drafts = [draft(reply.completion.text) for reply in plain]
    found = stage.verify(PROMPTS, drafts, deadline_s=0.8, **GREEDY)
    assert found[0].completion.finish_reason == "timeout"
    assert faults(plain[1:], found[1:]) == []


# Scores


@pytest.mark.parametrize("dialect", VERIFYING)
def test_a_score_is_the_models_own(dialect: str, opened: Open, ours: TextGenerator) -> None:
    _, stage = opened(dialect)
    answers = [" dog that ran", "~", " 4 5", "", "x y", " had", "8", ";"]
    for prompt, answer, score in zip(PROMPTS, answers, stage.score(PROMPTS, answers), strict=True):
        [before, whole] = ours.encode([prompt, prompt + answer])
        assert whole[: len(before)] == before
        logprob_TV = ours.model(torch.tensor([whole]))[0].detach().double().log_softmax(-1)
        expected = [float(logprob_TV[at - 1, whole[at]]) for at in range(len(before), len(whole))]
        assert score == pytest.approx(expected, abs=1e-5)
        assert len(score) == len(whole) - len(before)


def test_a_score_that_cannot_be_had_is_an_error(opened: Open) -> None:
    server, stage = opened()
    server.fault = lambda prompt: "500" if "zz" in prompt else None
    with pytest.raises(StageError, match="answered 500"):
        stage.score(PROMPTS[:2], ["x", "zz"])
    _, stage = opened("llama-cpp-python")
    with pytest.raises(StageError, match="cannot be told from those of the prompt"):
        stage.score(["the c"], ["at"])
