"""Stages over the servers themselves: vLLM and llama.cpp, where their environments are installed.

Skipped where they are not; see support/real_servers.py. Minutes long.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.processes import free_port, is_gone, wait_until
from support.real_servers import COMMANDS, python_of_peer
from support.tiny_models import CONTEXT, PROMPTS, save_tiny

from stepwell.cascade.stage import Draft, Observe, Reply
from stepwell.cascade.stages.launch import Launcher
from stepwell.cascade.stages.server import ServerStage
from stepwell.errors import StageError
from stepwell.generate.text import TextGenerator

pytestmark = pytest.mark.slow

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 24}
CLOSE = 1e-3
"""Log-probabilities in float32 by other kernels than ours."""


@dataclass
class Real:
    """A server that runs, a stage of it, and the same model run by us."""

    kind: str
    launcher: Launcher
    stage: ServerStage
    ours: TextGenerator


@pytest.fixture(scope="module", params=COMMANDS)
def real(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Real]:
    """Each server in turn, started by a launcher and stopped at the end."""
    kind = str(request.param)
    python = python_of_peer(kind)
    directory = save_tiny(tmp_path_factory.mktemp("real") / "model")
    port = free_port()
    launcher = Launcher(COMMANDS[kind](python, directory, port), f"http://127.0.0.1:{port}")
    begun = time.monotonic()
    stage = ServerStage(kind, launcher.base, tokenizer=directory, parameters=1e5, launcher=launcher)
    print(f"{kind} was healthy after {time.monotonic() - begun:.0f} s", file=sys.stderr)
    assert launcher._process is not None
    group = launcher._process.pid
    yield Real(kind, launcher, stage, TextGenerator.load(directory))
    stage.close()
    assert wait_until(lambda: is_gone(group))


def faults(plain: Sequence[Reply], found: Sequence[Reply]) -> list[str]:
    """Where replies differ from those without a draft."""
    pairs = [(one.completion, other.completion) for one, other in zip(plain, found, strict=True)]
    return [
        f"{new.text!r}, {new.finish_reason} for {old.text!r}, {old.finish_reason}"
        for old, new in pairs
        if (old.text, old.finish_reason) != (new.text, new.finish_reason)
        or new.logprobs != pytest.approx(old.logprobs, abs=CLOSE)
        or old.usage != new.usage
    ]


def test_its_answers_are_ours(real: Real) -> None:
    replies = real.stage.generate(PROMPTS, observe=Observe(top_logprobs=3), **GREEDY)
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        answer, said = real.ours.generate(prompt, **GREEDY, logprobs=0), reply.completion
        assert (said.text, said.finish_reason) == (answer.text, answer.finish_reason)
        assert said.usage.prompt_tokens == answer.usage.prompt_tokens
        count = len(said.logprobs)
        assert count == len(answer.logprobs) - (
            real.kind == "llama.cpp" and answer.finish_reason == "stop"
        )
        assert said.logprobs == pytest.approx(answer.logprobs[:count], abs=CLOSE)
        assert [place[0][1] for place in reply.top_logprobs] == list(said.logprobs)
        if real.kind == "vllm":
            assert said.token_ids == answer.token_ids
    assert {reply.completion.finish_reason for reply in replies} == {"stop", "length"}
    assert len({reply.completion.text for reply in replies}) > 4


def test_stop_strings_and_short_answers_are_ours(real: Real) -> None:
    for changed in ({"stop": ("e", "at t", " 2")}, {"max_new_tokens": 3}):
        asked = {**GREEDY, **changed}
        expected = [real.ours.generate(prompt, **asked) for prompt in PROMPTS]
        for reply, answer in zip(real.stage.generate(PROMPTS, **asked), expected, strict=True):
            assert reply.completion.text == answer.text
            assert reply.completion.finish_reason == answer.finish_reason


def test_a_seed_gives_an_answer_again(real: Real) -> None:
    asked = {"temperature": 1.0, "max_new_tokens": 12, "top_k": 5}
    one, same, other = (
        real.stage.generate(PROMPTS[:4], seed=seed, **asked) for seed in (-1, -1, 7)
    )
    assert [reply.completion.text for reply in one] == [reply.completion.text for reply in same]
    assert [reply.completion.text for reply in one] != [reply.completion.text for reply in other]


def test_a_draft_is_verified_to_the_answer_without_one(real: Real) -> None:
    source = random.Random(0)
    accepted = rejected = 0
    for changed in ({}, {"stop": ("e", "at t", " 2")}, {"max_new_tokens": 5}):
        asked: dict[str, Any] = {**GREEDY, **changed}
        plain = real.stage.generate(PROMPTS, **asked)
        for _ in range(2):
            texts = [reply.completion.text for reply in plain]
            at = [source.randrange(len(text) + 1) for text in texts]
            drafts = [
                Draft(text[:end] + source.choice([" dog", "é", text[end:]]), (), "")
                for text, end in zip(texts, at, strict=True)
            ]
            found = real.stage.verify(PROMPTS, drafts, **asked)
            assert faults(plain, found) == []
            assert any(reply.mode == "verified" for reply in found)
            accepted += sum(reply.completion.usage.accepted_tokens for reply in found)
            rejected += sum(reply.completion.usage.rejected_tokens for reply in found)
    assert accepted > 50
    assert rejected > 5
    print(f"{real.kind}: {accepted} drafted tokens stayed, {rejected} did not", file=sys.stderr)


def test_our_own_answers_are_verified_by_their_ids(real: Real) -> None:
    answers = [real.ours.generate(prompt, **GREEDY) for prompt in PROMPTS]
    drafts = [Draft(each.text, each.token_ids, real.stage.vocabulary) for each in answers]
    plain = real.stage.generate(PROMPTS, **GREEDY)
    found = real.stage.verify(PROMPTS, drafts, **GREEDY)
    assert faults(plain, found) == []
    if real.kind == "vllm":
        assert {reply.mode for reply in found} == {"verified"}
        assert not any(reply.completion.usage.rejected_tokens for reply in found)


def test_its_scores_are_ours(real: Real) -> None:
    answers = [" dog that ran", "~", " 4 5", "", "x y", " had", "8", ";"]
    scores = real.stage.score(PROMPTS, answers)
    for prompt, answer, score in zip(PROMPTS, answers, scores, strict=True):
        [before, whole] = real.ours.encode([prompt, prompt + answer])
        assert whole[: len(before)] == before
        logprob_TV = real.ours.model(torch.tensor([whole]))[0].detach().double().log_softmax(-1)
        expected = [float(logprob_TV[at - 1, whole[at]]) for at in range(len(before), len(whole))]
        assert score == pytest.approx(expected, abs=CLOSE)


def test_an_answer_fills_the_context_and_no_more(real: Real) -> None:
    asked = {**GREEDY, "max_new_tokens": 2 * CONTEXT}
    for prompt in PROMPTS[:4] if real.kind == "vllm" else ():  # llama-cpp-python fails at the end
        [reply] = real.stage.generate([prompt], **asked)
        usage = reply.completion.usage
        assert usage.total_tokens <= CONTEXT
        assert (reply.completion.finish_reason == "length") == (usage.total_tokens == CONTEXT)
    with pytest.raises(StageError, match=r"was answered (400|500)"):
        real.stage.generate(["cat " * CONTEXT], **GREEDY)


def test_a_deadline_is_kept(real: Real) -> None:
    begun = time.monotonic()
    replies = real.stage.generate(PROMPTS * 40, deadline_s=0.2, **{**GREEDY, "max_new_tokens": 99})
    assert time.monotonic() - begun < 5
    assert "timeout" in {reply.completion.finish_reason for reply in replies}
    assert real.stage.generate(PROMPTS[:1], deadline_s=60.0, **GREEDY)[0].completion.text


def test_a_server_that_is_killed_is_an_error(real: Real) -> None:  # the last one: it is gone then
    assert real.launcher._process is not None
    group = real.launcher._process.pid
    threading.Timer(0.3, os.killpg, (group, signal.SIGKILL)).start()
    begun = time.monotonic()
    try:
        replies = real.stage.generate(PROMPTS * 100, **{**GREEDY, "max_new_tokens": 99})
    except StageError:
        replies = []
    reasons = {reply.completion.finish_reason for reply in replies}
    assert not replies or "error" in reasons
    assert time.monotonic() - begun < 20
    with pytest.raises(StageError, match="cannot be reached"):
        real.stage.generate(PROMPTS[:1], **GREEDY)
    assert not real.launcher.is_alive
