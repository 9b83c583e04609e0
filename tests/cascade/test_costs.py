"""What an answer costs: medians by a clock that the test turns, FLOPs of full batches, the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.cascade.costs import (
    MOST_REPETITIONS,
    REPETITIONS,
    Costs,
    StageCost,
    UnitCosts,
    measure_costs,
    price_of,
)
from stepwell.cascade.ladder import LadderConfig, Price
from stepwell.cascade.stages.local import LocalStage
from stepwell.errors import CascadeError, ConfigError, DataError, FormatError
from stepwell.generate.request import Usage
from stepwell.generate.text import TextGenerator
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.text.tokenizer import Tokenizer

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
    plain = stage.generate

    def generate(prompts: list[str], **sampling: Any) -> Any:
        clock.now += seconds(len(stage.asked), len(prompts))
        return plain(prompts, **sampling)

    stage.generate = generate
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
        turn, part = divmod(call, 8)  # two batch sizes, each anew, verified, refused, once more
        if not turn:
            return 1000.0  # not warm yet
        share = (1.0, 0.5, 1.25, 1.0)[part % 4]
        slow_turn = 500.0 if turn == 1 else 0.0
        return {4: 8.0, 1: 3.0}[prompts] * share + slow_turn

    stages = [
        slow(scripted("small", script, 1.0), clock, seconds),
        slow(scripted("large", script, 10.0), clock, lambda _, prompts: 20.0 * prompts),
    ]
    costs = measure_costs(stages, PROMPTS, batches=(1, 4), sampling={"seed": 3}, clock=clock)
    assert costs.seconds(4).tolist() == [2.0, 20.0]
    assert costs.seconds(1).tolist() == [3.0, 20.0]
    assert costs.saved(4).tolist() == [1.0, 0.0]
    assert costs.saved(1).tolist() == [1.5, 0.0]
    assert costs.refused(1).tolist() == [3.0, 20.0], "a single prompt has no other's answer"
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
    each_way = [each for each in turn for _ in range(4)]  # anew, two drafts, and from the cache
    assert order == each_way * (REPETITIONS + 1)


@pytest.mark.parametrize(("second", "repetitions"), [(1e-4, MOST_REPETITIONS), (0.1, 8)])
def test_short_answers_are_timed_more_often(
    scripted: Callable[..., Any], script: dict[str, Any], second: float, repetitions: int
) -> None:
    """Until enough seconds were measured: a round of the longer ones takes 0.4 of them."""
    clock, calls = Clock(), []
    stage = slow(scripted("small", script), clock, lambda *call: calls.append(call) or second)
    measure_costs([stage], PROMPTS, batches=(4,), clock=clock)
    assert len(calls) == 4 * (repetitions + 1)


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


UNITS = UnitCosts(
    anew=np.array([0.1, 0.4, 1.0]),
    verified=np.array([0.1, 0.2, 0.4]),
    refused=np.array([0.1, 0.5, 1.2]),
    prompt=np.array([0.0, 0.001, 0.004]),
)
ALWAYS, NEVER = np.zeros((3, 3)), np.full((3, 3), np.inf)


def test_the_more_of_a_draft_stays_the_less_is_paid() -> None:
    accepted = np.zeros((1, 3, 3))
    accepted[0, 0, 1:], accepted[0, 1, 2] = (0.5, 1.0), 0.25
    sure = np.array([[0.9, 0.3, 0.5]])
    steps = UNITS.steps(accepted, sure, ALWAYS)
    np.testing.assert_allclose(steps[0], [[0.1, 0.4, 1.0], [0, 0.35, 0.4], [0, 0, 1.0]])
    anew = UNITS.steps(accepted, sure, NEVER)
    np.testing.assert_allclose(anew[0], [[0.1, 0.4, 1.0], [0, 0.4, 1.0], [0, 0, 1.0]])
    gated = UNITS.steps(accepted, sure, np.full((3, 3), 0.5))
    np.testing.assert_allclose(gated[0], [[0.1, 0.4, 1.0], [0, 0.35, 0.4], [0, 0, 1.0]])


def test_drafts_are_verified_where_that_pays_in_the_mean() -> None:
    """The surer a stage was the more stays; the gate is the best of all that could be set."""
    rng = np.random.default_rng(0)
    sure = rng.random((400, 3))
    accepted = (rng.random((400, 3, 3)) < sure[:, :, None]).astype(float)
    weights = rng.random(400)
    gates = UNITS.gates(accepted, sure, weights)
    assert np.isinf(gates[np.tril_indices(3)]).all()

    def mean(before: int, after: int, gate: float) -> float:
        paid = np.where(
            sure[:, before] >= gate,
            UNITS.from_draft(accepted)[:, before, after],
            UNITS.anew[after],
        )
        return float(np.average(paid, weights=weights))

    for before, after in ((0, 1), (0, 2), (1, 2)):
        best = mean(before, after, gates[before, after])
        assert 0 < gates[before, after] < 0.6
        assert best < mean(before, after, np.inf) - 0.01
        assert best < mean(before, after, 0.0)
        assert all(best <= mean(before, after, gate) + 1e-12 for gate in sure[:, before])
    useless = UNITS.gates(np.zeros_like(accepted), sure, weights)
    assert np.isinf(useless).all(), "where nothing ever stays nothing is drafted"


def test_what_a_cache_holds_of_a_prompt_is_not_paid_for() -> None:
    steps = UNITS.steps(np.zeros((1, 3, 3)), np.zeros((1, 3)), NEVER)[0]
    warm = UNITS.warm(steps, np.array([64.0, 128.0, 1000.0]))
    np.testing.assert_allclose(warm, [[0.1, 0.272, 0.0], [0, 0.272, 0.0], [0, 0, 0.0]])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("measured", [0.1, 1.0]), ("flops", [0.25, 1.0]), ("price", [0.5, 1.0])],
)
def test_the_unit_is_an_answer_of_the_largest_stage(kind: str, expected: list[float]) -> None:
    costs = Costs(
        (
            StageCost("small", 10.0, {"4": 0.2}, {"4": 0.1}, {"4": 0.3}, price=1e-6),
            StageCost("large", 40.0, {"4": 2.0}, {"4": 0.5}, {"4": 2.2}, price=2e-6),
        )
    )
    stages = [{"name": name, "model": name, "price": {}} for name in ("small", "large")]
    plain = {"stages": stages, "costs": kind, "serving": {"max_rows": 4}}
    units = UnitCosts.of(costs, LadderConfig.parse(plain))
    np.testing.assert_allclose(units.anew, expected)
    measured = kind == "measured"
    np.testing.assert_allclose(units.verified, [0.05, 0.25] if measured else expected)
    np.testing.assert_allclose(units.refused, [0.15, 1.1] if measured else expected)
    anew = UnitCosts.of(costs, LadderConfig.parse({**plain, "policy": {"mode": "anew"}}))
    np.testing.assert_allclose((anew.verified, anew.refused), (anew.anew, anew.anew))


def test_a_largest_stage_that_costs_nothing_is_no_unit() -> None:
    stages = [{"name": name, "model": name, "price": {}} for name in ("small", "large")]
    config = LadderConfig.parse({"stages": stages, "costs": "price"})
    with pytest.raises(CascadeError, match="costs nothing by `costs: price`"):
        UnitCosts.of(COSTS, config)


def test_tokens_have_a_price() -> None:
    price = Price(prompt=3.0, completion=15.0)
    assert price_of(Usage(1000, 200), price) == pytest.approx(0.006)


@pytest.mark.slow  # by the clock of a machine that may be busy; the laws above turn their own
def test_a_real_stage_saves_what_it_need_not_decode_and_need_not_read() -> None:
    """Prompts of several blocks: once read they are cheap, and a draft spares single steps."""
    model = Transformer(
        ModelConfig(vocab_size=27, context_length=512, width=128, num_layers=4, num_heads=2)
    )
    model.initialize(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokenizer = Tokenizer.character(letters + ">", roles={})
    stage = LocalStage("local", TextGenerator(model, tokenizer, max_rows=4))
    sampling = {"temperature": 0.0, "max_new_tokens": 32}  # a draft of 32 spares 5 of 6 seconds
    short = measure_costs([stage], ["abcd"], batches=(1,), sampling=sampling)
    assert short.saved(1)[0] > 0.2 * short.seconds(1)[0]
    assert short.prompt_seconds(1)[0] == 0
    prompts = [letters[place:] * 14 for place in range(4)]
    costs = measure_costs([stage], prompts, batches=(4, 1), sampling=sampling)
    assert costs.prompt_seconds(4)[0] > 0
    assert costs.prompt_seconds(4)[0] * 300 < costs.seconds(4)[0]
