"""The live part of a trial, on scripted stages of which all is known beforehand."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from stepwell.cascade.pipeline import Cascade
from stepwell.evals.cascade import LADDER, SHOWN_LAMBDAS, Bench
from stepwell.evals.live import ANEW
from stepwell.evals.protocol_live import (
    BUDGETS,
    Asked,
    Live,
    lambda_row,
    latencies,
    measure_live,
    run_budget,
    run_pass,
    timed,
)


def asked_of(world: Any) -> Asked:
    data = world.data("test")
    return Asked(data.prompts, ("right".__eq__,) * len(data), data.weights)


def bench_of(world: Any, cascade: Cascade) -> Bench:
    return Bench(cascade, world.data("calibration"), world.data("test"))


class Clock:
    """Turned by the stages: each answer takes its stage's seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ticking(stages: list[Any], clock: Clock) -> list[Any]:
    for stage, seconds in zip(stages, (0.1, 0.3, 1.0), strict=True):

        def generate(prompts: Any, *, _plain: Any = stage.generate, _s: float = seconds, **a: Any):
            clock.now += _s * len(prompts)
            return _plain(prompts, **a)

        stage.generate = generate
    return stages


@pytest.fixture(scope="module")
def live(world: Any) -> Live:
    cascade = world.cascade(**{"lambda": 3.0})
    heard: list[str] = []
    found = measure_live(
        cascade,
        bench_of(world, cascade),
        asked_of(world),
        clock=time.perf_counter,
        told=heard.append,
    )
    assert len(heard) == 4
    return found


def test_a_pass_is_what_the_cascade_answers(world: Any) -> None:
    cascade, asked = world.cascade(), asked_of(world)
    found = run_pass(cascade, asked, 3.0)
    answers = cascade.generate_batch(asked.prompts, lam=3.0)
    np.testing.assert_array_equal(found.good, [answer.text == "right" for answer in answers])
    np.testing.assert_allclose(found.cost, [answer.cost for answer in answers])
    np.testing.assert_array_equal(found.depth, [len(answer.trace) for answer in answers])
    numbers = {stage.name: number for number, stage in enumerate(cascade.stages, start=1)}
    highest = [max(numbers[visit.stage] for visit in answer.trace) for answer in answers]
    np.testing.assert_array_equal(found.highest, highest)


def test_every_decision_is_the_replays_and_those_of_another_lambda_are_not(world: Any) -> None:
    cascade, asked = world.cascade(**{"lambda": 3.0}), asked_of(world)
    bench = bench_of(world, cascade)
    for lam in (None, *SHOWN_LAMBDAS):
        row = lambda_row(lam, run_pass(cascade, asked, lam), bench, asked)
        outcome = bench.served(lam)
        assert row.same == 1.0
        assert row.quality == pytest.approx(asked.mean(outcome.good))
        assert row.depth == pytest.approx(asked.mean(outcome.stages_run.sum(axis=1)))
    assert lambda_row(0.1, run_pass(cascade, asked, 10.0), bench, asked).same < 0.5


def test_lambda_moves_depth_live(live: Live) -> None:
    assert [row.lam for row in live.lambdas] == [None, *SHOWN_LAMBDAS]
    for kind in ("depth", "highest", "quality", "cost"):
        low, _, high = (getattr(row, kind) for row in live.lambdas[1:])
        assert low < high
    np.testing.assert_array_equal(live.arrays["lambda_depth"][0].shape, [300])


def test_a_budget_is_met_in_the_mean_or_said_to_be_out_of_reach(world: Any) -> None:
    cascade, asked = world.cascade(), asked_of(world)
    cheapest = asked.mean(bench_of(world, cascade).served(0.0).cost)
    assert cheapest == pytest.approx(0.1)
    for budget in BUDGETS:
        row = run_budget(cascade, asked, budget, cheapest)
        assert row.cost is not None
        assert row.error == pytest.approx(row.cost / budget - 1)
        assert abs(row.error) < 0.15  # 300 prompts whose costs are .1 to 1.4
        assert row.spendable
    below = run_budget(cascade, asked, 0.05, cheapest)
    assert (below.cost, below.error) == (None, None)
    above = run_budget(cascade, asked, 5.0, cheapest)
    assert not above.spendable
    assert above.error is not None
    assert above.error < -0.5


def test_seconds_are_relative_to_always_the_largest(world: Any) -> None:
    clock = Clock()
    stages = ticking(world.stages(), clock)
    cascade, asked = world.cascade(stages=stages, **{"lambda": 3.0}), asked_of(world)
    rows, labels, _ = timed(cascade, asked, clock)
    by_name = {row.name: row for row in rows}
    assert by_name["always small"].relative == pytest.approx(0.1)
    assert by_name["always middle"].seconds == pytest.approx(0.3)
    assert by_name["always large"].relative == 1.0
    assert 0.1 < by_name[LADDER].relative < 1.4
    assert by_name[ANEW].relative == pytest.approx(by_name[LADDER].relative)  # drafts save nothing
    assert labels.shape == (5, 300)
    for row, right in zip(rows, labels, strict=True):
        assert row.quality == pytest.approx(right.mean())
    # drawn as often as they are asked, the mean is the weighted one but for rounding
    quality = asked.mean(run_pass(cascade, asked).good)
    assert by_name[LADDER].quality == pytest.approx(quality, abs=0.03)


def test_latency_is_of_questions_alone(world: Any) -> None:
    clock = Clock()
    cascade = world.cascade(stages=ticking(world.stages(), clock), **{"lambda": 0.0})
    (own, largest), _ = latencies(cascade, asked_of(world), clock)
    assert (own.name, largest.name) == (LADDER, "always large")
    assert (own.p50, own.p95) == pytest.approx((0.1, 0.1))
    assert largest.p50 == pytest.approx(1.0)
