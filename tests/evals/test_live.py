"""The live run, by a clock that the stages turn."""

from __future__ import annotations

from typing import Any

import pytest

from stepwell.evals.live import REPETITIONS, run_live

SECONDS = {"small": 0.1, "middle": 0.3, "large": 1.0}  # for each prompt


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.turn = 0

    def __call__(self) -> float:
        return self.now


def ticking(stage: Any, clock: Clock) -> Any:
    """The stage, each of its answers taking its seconds; all are slow in the first turn."""
    plain = stage.answer

    def answer(prompts: list[str], **sampling: Any) -> Any:
        clock.turn += stage.name == "large" and len(prompts) == 20  # always the largest comes last
        clock.now += SECONDS[stage.name] * len(prompts) * (10 if clock.turn == 0 else 1)
        return plain(prompts, **sampling)

    stage.answer = answer
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
    assert all(sampling == {"temperature": 0.0} for _, sampling in stages[2].asked)


def test_cascade_and_stages_take_turns(world: Any) -> None:
    order: list[str] = []

    def noting(stage: Any) -> Any:
        plain = stage.answer

        def answer(prompts: list[str], **sampling: Any) -> Any:
            order.append(stage.name)
            return plain(prompts, **sampling)

        stage.answer = answer
        return stage

    cascade = world.cascade(stages=[noting(stage) for stage in world.stages()], **{"lambda": 0.0})
    run_live(cascade, world.prompts()[:5])
    assert order == ["small", "small", "middle", "large"] * REPETITIONS
