"""No fault of a server goes unnoticed, costs more than its own answer, or takes too long."""

from __future__ import annotations

import gc
import time

import pytest
from support.openai_server import Open, OpenAIServer, first, only
from support.processes import wait_until
from support.spoiled_answers import BODIES, SPOILED
from support.tiny_models import GREEDY, PROMPTS, own_answers, texts

from stepwell.cascade.stages.server import ServerStage
from stepwell.errors import StageError
from stepwell.generate.text import TextGenerator


@pytest.mark.parametrize("fault", [*BODIES, *SPOILED, "500"])
def test_an_answer_that_makes_no_sense_is_an_error(fault: str, opened: Open) -> None:
    server, stage = opened()
    server.fault = lambda prompt: fault
    with pytest.raises(StageError) as caught:
        stage.generate(PROMPTS[:1], **GREEDY)
    said = str(caught.value)
    assert said.startswith(f"Stage 'big' at {server.url}: /v1/completions was answered ")
    assert len(said) < 500
    server.fault = lambda prompt: None
    assert stage.generate(PROMPTS[:1], **GREEDY), "the stage goes on where the server does"


def test_the_same_check_lets_sound_answers_pass(opened: Open) -> None:
    server, stage = opened()
    server.fault = lambda prompt: "sound"
    SPOILED["sound"] = lambda said: None
    try:
        [reply] = stage.generate(PROMPTS[:1], **GREEDY)
    finally:
        del SPOILED["sound"]
    assert reply.completion.finish_reason in ("stop", "length")


def test_one_prompt_that_fails_costs_only_its_own_answer(opened: Open, ours: TextGenerator) -> None:
    server, stage = opened()
    server.fault = only(PROMPTS[2], "NaN")
    replies = stage.generate(PROMPTS, **GREEDY)
    expected = own_answers(ours, **GREEDY)
    for row, reply in enumerate(replies):
        if row == 2:
            assert reply.completion.finish_reason == "error"
            assert "log-probability nan" in reply.completion.error
        else:
            assert reply.completion.text == expected[row]


@pytest.mark.parametrize("fault", ["drop", "busy 429 0.05", "busy 503 0.05"])
def test_what_passes_is_tried_twice_more(fault: str, opened: Open, ours: TextGenerator) -> None:
    server, stage = opened()
    server.fault = first(2, fault)
    assert texts(stage.generate(PROMPTS[:1], **GREEDY)) == own_answers(ours, **GREEDY)[:1]
    assert len(server.asked()) == 3
    server.fault = first(3, fault)
    with pytest.raises(StageError, match=r"was not answered|was answered (429|503)"):
        stage.generate(PROMPTS[:1], **GREEDY)
    assert len(server.asked()) == 6


@pytest.mark.parametrize("fault", ["busy 429", "busy 503 3600", "busy 429 never", "500"])
def test_what_does_not_pass_is_not_tried_again(fault: str, opened: Open) -> None:
    server, stage = opened()
    server.fault = lambda prompt: fault
    with pytest.raises(StageError, match=r"was answered (429|503|500)"):
        stage.generate(PROMPTS[:1], **GREEDY)
    assert len(server.asked()) == 1


@pytest.mark.parametrize("fault", ["hang", "drip", "busy 429 3600"])
def test_what_is_late_is_left_behind(fault: str, opened: Open, ours: TextGenerator) -> None:
    server, stage = opened()
    stage.generate(PROMPTS, **GREEDY)
    server.fault = only(PROMPTS[1], fault)
    begun = time.monotonic()
    replies = stage.generate(PROMPTS, deadline_s=1.0, **GREEDY)
    assert time.monotonic() - begun < 3
    expected = own_answers(ours, **GREEDY)
    assert replies[1].completion.finish_reason == "timeout"
    assert replies[1].completion.logprobs == ()
    assert [text for row, text in enumerate(texts(replies)) if row != 1] == [
        text for row, text in enumerate(expected) if row != 1
    ]


def test_failing_and_being_late_are_told_apart(opened: Open) -> None:
    server, stage = opened()
    server.fault = lambda prompt: "hang" if prompt == PROMPTS[0] else "500"
    replies = stage.generate(PROMPTS[:3], deadline_s=0.5, **GREEDY)
    reasons = [reply.completion.finish_reason for reply in replies]
    assert reasons == ["timeout", "error", "error"]


def test_without_a_deadline_a_server_that_hangs_is_an_error(opened: Open) -> None:
    server, stage = opened(timeout_s=0.3)
    server.fault = lambda prompt: "hang"
    with pytest.raises(StageError, match=r"did not answer within 0\.3 s"):
        stage.generate(PROMPTS[:2], **GREEDY)


def test_the_deadline_counts_from_the_first_word(opened: Open) -> None:
    server, stage = opened()
    server.models_fault = "hang"
    begun = time.monotonic()
    replies = stage.generate(PROMPTS[:2], deadline_s=0.3, **GREEDY)
    assert time.monotonic() - begun < 2
    assert [reply.completion.finish_reason for reply in replies] == ["timeout", "timeout"]
    server.models_fault = ""
    assert stage.generate(PROMPTS[:1], deadline_s=5.0, **GREEDY)[0].completion.text


def test_a_server_that_is_gone_is_an_error_at_once(opened: Open, theirs: TextGenerator) -> None:
    with OpenAIServer(theirs) as server:
        stage = ServerStage("big", server.url, max_rows=4)
        stage.generate(PROMPTS[:1], **GREEDY)
    begun = time.monotonic()
    with pytest.raises(StageError, match=rf"Stage 'big' at {server.url} cannot be reached"):
        stage.generate(PROMPTS * 20, **GREEDY)
    assert time.monotonic() - begun < 3
    stage.close()
    never = ServerStage("big", server.url)
    with pytest.raises(StageError, match="cannot be reached"):
        _ = never.fingerprint
    never.close()


def test_connections_are_kept_for_the_next_batch_and_closed_with_the_stage(opened: Open) -> None:
    server, stage = opened(max_rows=4)
    for _ in range(3):
        stage.generate(PROMPTS, **GREEDY)
    assert 1 <= server.opened <= 5
    stage.close()
    assert wait_until(lambda: not server.sockets)
    with pytest.raises((StageError, RuntimeError)):
        stage.generate(PROMPTS[:1], **GREEDY)
    gc.collect()  # what was left open would warn here, and fail the test
