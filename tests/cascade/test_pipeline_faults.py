"""A stage that fails: the others answer, by the same rule, within the deadline, and it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stepwell.cascade import guard as guard_module
from stepwell.cascade.answer import Answer
from stepwell.cascade.pipeline import Cascade

NAMES = ("small", "middle", "large")
LAMBDAS = (0.5, 3.0, 1000.0)


class Trouble:
    """Does to a stage's calls what it is told, while it is told to."""

    def __init__(self, stage: Any, fault: str) -> None:
        self.stage, self.fault, self.released = stage, fault, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stage, name)

    def generate(self, prompts: Any, **asked: Any) -> Any:
        return self._trouble(self.stage.generate, prompts, **asked)

    def verify(self, *args: Any, **asked: Any) -> Any:
        return self._trouble(self.stage.verify, *args, **asked)

    def _trouble(self, call: Callable[..., Any], *args: Any, **asked: Any) -> Any:
        if self.fault == "kill":
            raise ConnectionResetError("the server has gone")
        if self.fault == "hang":
            self.released.wait(30)
        replies = call(*args, **asked)
        if self.fault == "nan":
            nan = float("nan")
            return [
                replace(each, completion=replace(each.completion, logprobs=(nan,)))
                for each in replies
            ]
        return replies


FOUND = {"kill": "gone", "hang": "late", "nan": "nan"}


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "GRACE_S", 0.05)


def troubled(world: Any, fault: str, *names: str) -> tuple[Cascade, list[Trouble]]:
    stages = [Trouble(each, fault if each.name in names else "none") for each in world.stages()]
    return world.cascade(stages=stages), stages


def checked(answer: Answer, fault: str, *names: str) -> None:
    """An answer of a stage that lives, and a trace that says what happened."""
    assert answer.stage not in names
    assert answer.stage in NAMES
    assert answer.completion.finish_reason == "length"
    assert 0 < answer.p_good < 1
    for visit in answer.trace:
        assert (visit.fault is not None) == (visit.stage in names)
        if visit.fault is not None:
            assert visit.fault in (FOUND[fault], "down")
            assert visit.problem


@pytest.mark.parametrize("fault", ["kill", "hang", "nan"])
@pytest.mark.parametrize(
    "names", [("small",), ("middle",), ("large",), ("small", "middle"), ("middle", "large")]
)
def test_the_stages_that_live_answer_within_the_deadline(
    world: Any, fault: str, names: tuple[str, ...]
) -> None:
    prompts = world.prompts()[:20]
    for lam in LAMBDAS:
        cascade, stages = troubled(world, fault, *names)
        begun = time.perf_counter()
        answers = cascade.generate_batch(prompts, lam=lam, deadline_s=1.0)
        assert time.perf_counter() - begun < 1.5
        for answer in answers:
            checked(answer, fault, *names)
        for stage in stages:
            stage.released.set()
        told = sum(count for (name, _), count in cascade.counters.items() if name in names)
        visits = sum(visit.fault is not None for answer in answers for visit in answer.trace)
        assert told == visits, "every fault is counted"
        assert visits or lam < 1000 or names == ("middle",), "the faults did strike"


def test_without_faults_the_same_checks_would_say_so(world: Any) -> None:
    """A control: the traces of a sound ladder name no fault."""
    cascade, _ = troubled(world, "none", "large")
    [answer] = cascade.generate_batch(world.prompts()[:1], lam=1000.0, deadline_s=5.0)
    with pytest.raises(AssertionError):
        checked(answer, "kill", "large")


def test_where_no_stage_lives_the_answer_says_so_and_in_time(world: Any) -> None:
    cascade, stages = troubled(world, "hang", *NAMES)
    begun = time.perf_counter()
    answers = cascade.generate_batch(world.prompts()[:5], lam=1.0, deadline_s=0.6)
    assert time.perf_counter() - begun < 1.5
    assert {answer.stopped for answer in answers} == {"failed"}
    assert {answer.completion.finish_reason for answer in answers} == {"error"}
    for stage in stages:
        stage.released.set()


def test_a_deadline_returns_what_is_there(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is up after the first stage: its answers come back, and the walk can be resumed."""
    now = [0.0]
    stages = world.stages()
    small = next(stage for stage in stages if stage.name == "small")
    plain = small.generate

    def slow(*args: Any, **asked: Any) -> Any:
        now[0] += 10.0
        return plain(*args, **asked)

    small.generate = slow
    whole = world.cascade()
    cascade = Cascade(whole.config, stages, whole.fitted, clock=lambda: now[0])
    prompts = world.prompts()[:30]
    answers = cascade.generate_batch(prompts, lam=1000.0, deadline_s=5.0)
    assert {answer.stopped for answer in answers} == {"deadline"}
    assert {answer.stage for answer in answers} == {"small"}
    small.generate = plain
    resumed = cascade.resume(answers, lam=1000.0)
    assert resumed == whole.generate_batch(prompts, lam=1000.0)
    assert [len(stage.asked) for stage in stages if stage.name == "small"] == [1]


def test_going_on_from_an_answer_is_what_going_there_at_once_would_have_been(world: Any) -> None:
    cascade, prompts = world.cascade(), world.prompts()[:60]
    shallow = cascade.generate_batch(prompts, lam=0.1)
    deeper = cascade.resume(shallow, lam=3.0)
    at_once = cascade.generate_batch(prompts, lam=3.0)
    begun_alike = [
        (resumed, direct)
        for first, resumed, direct in zip(shallow, deeper, at_once, strict=True)
        if [each.stage for each in first.trace]
        == [each.stage for each in direct.trace][: len(first.trace)]
    ]
    assert len(begun_alike) > 40, "both begin with the small stage"
    for resumed, direct in begun_alike:
        assert (resumed.text, resumed.stage) == (direct.text, direct.stage)
        assert resumed.cost == pytest.approx(direct.cost)
    assert sum(len(each.trace) for each in deeper) > sum(len(each.trace) for each in shallow)
    assert shallow == cascade.generate_batch(prompts, lam=0.1), "what was answered stays as it was"
    again = cascade.resume(shallow, lam=0.1)
    assert [each.text for each in again] == [each.text for each in shallow]


def test_a_stage_that_came_back_is_asked_again(world: Any) -> None:
    now = [0.0]
    plain = world.cascade()
    stages = [Trouble(each, "kill" if each.name == "large" else "none") for each in world.stages()]
    cascade = Cascade(plain.config, stages, plain.fitted, clock=lambda: now[0])
    prompts = world.prompts()[:10]
    first = cascade.generate_batch(prompts, lam=1000.0)
    assert "large" not in {answer.stage for answer in first}
    stages[-1].fault = "none"
    second = cascade.generate_batch(prompts, lam=1000.0)
    assert "large" not in {answer.stage for answer in second}, "it is left alone for a while"
    now[0] += 2 * guard_module.LEFT_ALONE_S
    third = cascade.generate_batch(prompts, lam=1000.0)
    assert third == plain.generate_batch(prompts, lam=1000.0)


def test_an_answer_as_json_has_the_whole_story(world: Any) -> None:
    cascade, _ = troubled(world, "kill", "middle")
    answer = cascade.generate(world.prompts()[0], lam=1000.0)
    plain = answer.plain()
    assert plain["stopped"] == answer.stopped
    assert [visit["stage"] for visit in plain["trace"]] == [each.stage for each in answer.trace]
    assert {"fault", "problem", "beliefs", "seconds", "mode"} <= plain["trace"][0].keys()
    assert "journey" not in plain
