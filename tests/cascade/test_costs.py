"""What an answer costs: medians by a clock that the test turns, FLOPs of full batches, the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.cascade.costs import REPETITIONS, Costs, StageCost, measure_costs
from stepwell.errors import CascadeError, ConfigError, DataError, FormatError

PROMPTS = [f"prompt {number}" for number in range(8)]
COSTS = Costs((StageCost("small", 10.0, {"4": 0.25, "1": 1.0}), StageCost("large", 40.0, {"4": 2})))


class Clock:
    """A clock that goes on only while a stage answers."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def slow(stage: Any, clock: Clock, seconds: Callable[[int, int], float]) -> Any:
    """The stage, its calls taking `seconds(call number, prompts)` each."""
    plain = stage.answer

    def answer(prompts: list[str], **sampling: Any) -> Any:
        clock.now += seconds(len(stage.asked), len(prompts))
        return plain(prompts, **sampling)

    stage.answer = answer
    return stage


@pytest.fixture
def script(answer: Callable[..., Any]) -> dict[str, Any]:
    """Answers of as many tokens as the prompt's number, and one more."""
    return {prompt: answer("x", [-1.0] * (place + 1)) for place, prompt in enumerate(PROMPTS)}


def test_costs_are_medians_for_one_answer_without_the_first_turn(
    scripted: Callable[..., Any], script: dict[str, Any]
) -> None:
    clock = Clock()

    def seconds(call: int, prompts: int) -> float:
        if call < 2:
            return 1000.0  # the first turn: not warm yet
        return {4: 8.0, 1: 3.0}[prompts] + (500.0 if call in (2, 3) else 0.0)  # one slow turn

    stages = [
        slow(scripted("small", script, 1.0), clock, seconds),
        slow(scripted("large", script, 10.0), clock, lambda _, prompts: 20.0 * prompts),
    ]
    costs = measure_costs(stages, PROMPTS, batches=(1, 4), sampling={"seed": 3}, clock=clock)
    assert costs.seconds(4).tolist() == [2.0, 20.0]
    assert costs.seconds(1).tolist() == [3.0, 20.0]
    # FLOPs: 2 prompt tokens and 1 to 4 of the answer, in the full batch, not of the first alone
    assert costs.flops().tolist() == [4.5, 45.0]
    assert all(asked == {"seed": 3} for _, asked in stages[0].asked)


def test_stages_take_turns(scripted: Callable[..., Any], script: dict[str, Any]) -> None:
    """A machine that slows down in the middle slows all stages, not the last one alone."""
    clock, order = Clock(), []

    def noting(name: str) -> Callable[[int, int], float]:
        return lambda call, prompts: order.append((name, prompts)) or 1.0

    stages = [slow(scripted(name, script), clock, noting(name)) for name in ("small", "large")]
    measure_costs(stages, PROMPTS, batches=(4, 1, 4), clock=clock)
    turn = [("small", 4), ("small", 1), ("large", 4), ("large", 1)]
    assert order == turn * (REPETITIONS + 1)


@pytest.mark.parametrize("batches", [(16, 1), (), (0,)])
def test_batches_that_cannot_be_filled_are_refused(
    scripted: Callable[..., Any], script: dict[str, Any], batches: tuple[int, ...]
) -> None:
    stage = scripted("small", script)
    with pytest.raises(CascadeError, match="8 prompts cannot be timed") as caught:
        measure_costs([stage], PROMPTS, batches=batches)
    assert caught.value.fix
    assert not stage.asked


def test_a_batch_size_that_was_not_measured_is_an_error() -> None:
    same = Costs((COSTS.stages[0], replace(COSTS.stages[0], name="large")))
    np.testing.assert_array_equal(same.seconds(4), [0.25, 0.25])
    with pytest.raises(CascadeError, match="at batch sizes 4, 1, not 16"):
        same.seconds(16)


def test_costs_survive_the_file_and_what_is_wrong_with_it_is_typed(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    COSTS.save(path)
    assert Costs.load(path) == COSTS
    plain = json.loads(path.read_text())
    for change, error in (
        ({"format_version": 2}, FormatError),
        ({"kind": "quality predictor"}, DataError),
        ({"stages": [{"name": "small"}]}, DataError),
    ):
        path.write_text(json.dumps({**plain, **change}))
        with pytest.raises(error):
            Costs.load(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"costs\.json"):
        Costs.load(path)
