"""A guarded stage: whatever goes wrong with it comes back as a value, in time, and is counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stepwell.cascade.guard import LEFT_ALONE_S, Failure, Guard
from stepwell.cascade.stage import Draft, Reply
from stepwell.errors import StageError

PROMPTS = ["a", "b"]


class Faulty:
    """A scripted stage that does something else first, as often as it is told."""

    def __init__(self, stage: Any, fault: Callable[[], None] = lambda: None) -> None:
        self.stage, self.fault, self.change = stage, fault, lambda replies: replies

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stage, name)

    def generate(self, prompts: Any, **asked: Any) -> Any:
        self.fault()
        return self.change(self.stage.generate(prompts, **asked))

    def verify(self, prompts: Any, drafts: Any, **asked: Any) -> Any:
        self.fault()
        return self.change(self.stage.verify(prompts, drafts, **asked))


@pytest.fixture
def stage(scripted: Callable[..., Any], answer: Callable[..., Any]) -> Faulty:
    return Faulty(scripted("small", {each: answer(f"says {each}", [-0.1]) for each in PROMPTS}))


def faults(outcomes: Any) -> list[str | None]:
    return [each.fault if isinstance(each, Failure) else None for each in outcomes]


def raising(error: BaseException) -> Callable[[], None]:
    def fault() -> None:
        raise error

    return fault


def test_a_sound_stage_is_passed_through_with_its_drafts(stage: Faulty) -> None:
    guard = Guard(stage)
    for limit in (None, 5.0):
        told = guard.ask(PROMPTS, None, limit, seed=3)
        assert [each.completion.text for each in told] == ["says a", "says b"]
    drafts = [Draft("x", (1,), "words")] * 2
    [first, _] = guard.ask(PROMPTS, drafts, None)
    assert isinstance(first, Reply)
    assert first.mode == "verified"
    assert stage.stage.drafts == [drafts]
    assert stage.stage.asked[0][1] == {"seed": 3}
    assert guard.is_up
    assert not guard.faults
    assert guard.calls == 3


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ValueError("bad"), "error"),
        (StageError("gone wrong", fix="mend it"), "error"),
        (ConnectionRefusedError("nobody there"), "gone"),
        (TimeoutError("slow"), "late"),
        (MemoryError(), "error"),
    ],
)
@pytest.mark.parametrize("limit", [None, 5.0])
def test_what_a_stage_raises_is_the_failure_of_every_prompt(
    stage: Faulty, error: Exception, fault: str, limit: float | None
) -> None:
    stage.fault = raising(error)
    guard = Guard(stage)
    told = guard.ask(PROMPTS, None, limit)
    assert faults(told) == [fault, fault]
    assert all(each.problem for each in told)
    assert guard.faults == {fault: 2}
    assert not guard.is_up


def test_an_interrupt_is_no_failure_of_the_stage(stage: Faulty) -> None:
    stage.fault = raising(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        Guard(stage).ask(PROMPTS, None, None)


def test_a_stage_that_hangs_is_left_behind_and_not_asked_until_it_is_back(stage: Faulty) -> None:
    release = threading.Event()
    stage.fault = lambda: release.wait(20)
    now = [0.0]
    guard = Guard(stage, clock=lambda: now[0])
    begun = time.perf_counter()
    assert faults(guard.ask(PROMPTS, None, 0.05)) == ["late", "late"]
    assert time.perf_counter() - begun < 2
    now[0] += 10 * LEFT_ALONE_S
    assert not guard.is_up, "its thread is still at it"
    assert faults(guard.ask(PROMPTS, None, 0.05)) == ["down", "down"]
    stage.fault = lambda: None
    release.set()
    for _ in range(200):
        if guard.is_up:
            break
        time.sleep(0.01)
    assert faults(guard.ask(PROMPTS, None, 5.0)) == [None, None]
    assert guard.faults == {"late": 2, "down": 2}


def test_a_stage_that_failed_is_tried_again_after_a_while(stage: Faulty) -> None:
    now = [100.0]
    guard = Guard(stage, clock=lambda: now[0])
    stage.fault = raising(ValueError("once"))
    guard.ask(PROMPTS, None, None)
    stage.fault = lambda: None
    asked = len(stage.stage.asked)
    [told, _] = guard.ask(PROMPTS, None, None)
    assert told == Failure("down", "not asked again yet: once")
    assert len(stage.stage.asked) == asked
    now[0] += LEFT_ALONE_S
    assert faults(guard.ask(PROMPTS, None, None)) == [None, None]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"finish_reason": "error", "error": "NaN in the logits"}, "nan"),
        ({"finish_reason": "error", "error": "no room"}, "error"),
        ({"finish_reason": "timeout"}, "late"),
        ({"finish_reason": "cancelled"}, "error"),
        ({"logprobs": (float("nan"),)}, "nan"),
        ({"logprobs": (float("-inf"),)}, "nan"),
        ({"finish_reason": "stop"}, None),
    ],
)
def test_one_answer_that_is_none_does_not_spoil_its_neighbour(
    stage: Faulty, changes: dict[str, Any], fault: str | None
) -> None:
    def spoil(replies: list[Reply]) -> list[Reply]:
        first = replace(replies[0], completion=replace(replies[0].completion, **changes))
        return [first, *replies[1:]]

    stage.change = spoil
    guard = Guard(stage)
    assert faults(guard.ask(PROMPTS, None, None)) == [fault, None]
    assert guard.is_up, "the stage itself is sound"


def test_too_few_answers_are_none(stage: Faulty) -> None:
    stage.change = lambda replies: replies[:1]
    [told, _] = Guard(stage).ask(PROMPTS, None, None)
    assert told == Failure("error", "it gave 1 answers to 2 prompts.")
