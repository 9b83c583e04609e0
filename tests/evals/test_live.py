"""The live run, by a clock that the stages turn."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from stepwell.evals.live import (
    ANEW,
    REPETITIONS,
    drawn,
    run_alone,
    run_live,
    seconds_of_stages,
    speculation,
    without_drafts,
)

SECONDS = {"small": 0.1, "middle": 0.3, "large": 1.0}  # for each prompt


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.turn = 0

    def __call__(self) -> float:
        return self.now


def ticking(stage: Any, clock: Clock) -> Any:
    """The stage, each of its answers taking its seconds; all are slow in the first turn."""
    plain = stage.generate

    def generate(prompts: list[str], **asked: Any) -> Any:
        clock.turn += stage.name == "large" and len(prompts) == 20  # always the largest comes last
        clock.now += SECONDS[stage.name] * len(prompts) * (10 if clock.turn == 0 else 1)
        return plain(prompts, **asked)

    stage.generate = generate
    return stage


def noting(stage: Any, order: list[str]) -> Any:
    """The stage, which notes when it is asked and when it forgets."""
    plain = stage.generate

    def generate(prompts: list[str], **asked: Any) -> Any:
        order.append(stage.name)
        return plain(prompts, **asked)

    stage.generate = generate
    stage.forget = lambda: order.append(f"{stage.name} forgets")
    return stage


def test_times_are_medians_of_the_cascade_and_of_each_stage(world: Any) -> None:
    clock = Clock()
    stages = [ticking(stage, clock) for stage in world.stages()]
    cascade = world.cascade(stages=stages, **{"lambda": 3.0})
    cascade.config = cascade.config.changed(sampling={"temperature": 0.0})
    prompts = world.prompts()[:20]
    live = run_live(cascade, prompts, clock=clock)
    assert list(live.answers) == cascade.generate_batch(prompts)
    spent = sum(SECONDS[visit.stage] for answer in live.answers for visit in answer.trace)
    assert live.seconds == pytest.approx(spent)
    assert live.stage_seconds == pytest.approx({"small": 2.0, "middle": 6.0, "large": 20.0})
    assert live.relative_to("large") == pytest.approx(spent / 20.0)
    assert live.rivals["large"].texts == tuple(world.scripts[2][each].text for each in prompts)
    assert all(sampling == {"temperature": 0.0} for _, sampling in stages[2].asked)


def test_contestants_take_turns_and_begin_each_with_empty_caches(world: Any) -> None:
    order: list[str] = []
    stages = [noting(stage, order) for stage in world.stages()]
    cascade = world.cascade(stages=stages, **{"lambda": 0.0})

    def other(prompts: Any) -> list[str]:
        order.append("other")
        return ["text"] * len(prompts)

    live = run_live(cascade, world.prompts()[:5], others={"other": other})
    asked = [each for each in order if not each.endswith("forgets")]
    assert asked == ["small", "small", "middle", "large", "other"] * REPETITIONS
    turns = [place for place, each in enumerate(order) if each == "large forgets"]
    assert len(turns) == len(asked)
    assert live.rivals["other"].texts == ("text",) * 5


def test_deciding_is_what_no_stage_took(world: Any) -> None:
    class Counting(Clock):
        def __call__(self) -> float:
            self.now += 0.5
            return self.now

    cascade = world.cascade(**{"lambda": 3.0})
    prompts = world.prompts()[:20]
    live = run_live(cascade, prompts, clock=Counting())
    assert live.seconds == pytest.approx(0.5)
    # the stages' own seconds are real ones, of a moment
    assert 0.48 / 20 < live.deciding_s <= 0.5 / 20


def test_a_batch_that_several_prompts_share_is_counted_once(world: Any) -> None:
    answers = world.cascade(**{"lambda": 3.0}).generate_batch(world.prompts()[:30])
    once = {(visit.stage, visit.seconds) for answer in answers for visit in answer.trace}
    assert seconds_of_stages(answers) == pytest.approx(sum(seconds for _, seconds in once))
    each = sum(visit.seconds for answer in answers for visit in answer.trace)
    assert seconds_of_stages(answers) < each  # what counting every visit would say


def test_prompts_alone_are_timed_one_by_one(world: Any) -> None:
    clock = Clock()
    clock.turn = 1
    cascade = world.cascade(
        stages=[ticking(stage, clock) for stage in world.stages()], **{"lambda": 0.0}
    )
    found = run_alone(cascade, world.prompts()[:7], clock=clock)
    np.testing.assert_allclose(found.seconds, [0.1] * 7)
    np.testing.assert_allclose(found.largest, [1.0] * 7)


def test_rows_are_drawn_as_often_as_they_are_asked() -> None:
    weights = np.array([4.0, 2.0, 1.0, 1.0])
    rows = Counter(drawn(weights, 4).tolist())
    assert rows[0] == 2
    assert rows[1] == 1
    assert rows[2] + rows[3] == 1
    assert sorted(drawn(np.ones(6), 6)) == list(range(6))
    assert len(drawn(np.ones(6), 100)) == 6
    assert len(set(drawn(np.ones(100), 10).tolist())) == 10
    np.testing.assert_array_equal(drawn(weights, 3, seed=2), drawn(weights, 3, seed=2))


def test_a_ladder_without_drafts_asks_every_stage_anew(world: Any) -> None:
    stages = world.stages()
    cascade = world.cascade(stages=stages, drafted=0.3, **{"lambda": 10.0})
    prompts = world.prompts()[:40]
    texts = without_drafts(cascade)[ANEW](prompts)
    assert not any(stage.drafts for stage in stages)
    answers = cascade.generate_batch(prompts)
    assert any(stage.drafts for stage in stages)
    same = [text == answer.text for text, answer in zip(texts, answers, strict=True)]
    assert np.mean(same) > 0.8, "it weighs other costs, and may stop elsewhere"
    assert without_drafts(world.cascade(mode="anew")) == {}


def test_scripted_stages_have_no_speculation(world: Any) -> None:
    assert speculation(world.cascade()) == {}
