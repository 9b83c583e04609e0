"""Ratios, bars and turns: arithmetic that can be done by hand."""

from __future__ import annotations

import pytest

from stepwell.errors import ConfigError
from stepwell.evals.bench.bars import BARS
from stepwell.evals.bench.contest import barred
from stepwell.evals.bench.figures import Bar, Figures, Row, make_row
from stepwell.evals.bench.plan import MODELS, QUESTIONS, BenchPlan
from stepwell.evals.bench.sizes import SIZES
from stepwell.evals.bench.turns import rate, take_turns

PLAN = BenchPlan(repetitions=3, pause_s=0.0)


def row(ours: list[float], theirs: list[float], bar: Bar | None = None) -> Row:
    """A comparison of these values."""
    return Row(
        *("decode", "1 row", "14m", "tokens/s"),
        ours=Figures(tuple(ours)),
        against="llama.cpp",
        other=Figures(tuple(theirs)),
        bar=bar,
    )


def test_a_ratio_is_that_of_medians_and_its_range_that_of_the_rounds() -> None:
    ratio = row([10, 30, 20], [10, 10, 5]).ratio
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 1.0, 4.0)
    swapped = row([30, 10, 20], [10, 10, 5]).ratio
    assert swapped is not None
    assert (swapped.value, swapped.low) == (2.0, 1.0)
    assert swapped.high != row([10, 20, 30], [10, 10, 5]).ratio.high  # type: ignore[union-attr]


def test_what_slows_a_round_down_leaves_the_ratio_alone() -> None:
    steady = row([20, 20, 20], [10, 10, 10]).ratio
    shaken = row([20, 2, 20], [10, 1, 10])
    assert shaken.ratio == steady
    assert shaken.ours is not None
    assert shaken.ours.spread == pytest.approx(0.9)
    assert row([20, 2, 20], [10, 10, 1]).ratio != steady, "rounds are paired"


def test_a_bar_is_met_from_the_right_side_only() -> None:
    assert row([17], [10], Bar(1.7)).meets_bar
    assert not row([16.9], [10], Bar(1.7)).meets_bar
    assert row([11], [10], Bar(1.1, "at most")).meets_bar
    assert not row([11.1], [10], Bar(1.1, "at most")).meets_bar
    assert row([0.9], [10], Bar(1.0, "at most", of="ours")).meets_bar
    assert not row([2.0], [10], Bar(1.0, "at most", of="ours")).meets_bar
    assert row([1], [1]).meets_bar is None


def test_a_side_without_figures_is_a_problem_and_meets_nothing() -> None:
    missing = make_row("decode", "1 row", "14m", "s", Figures((1.0,)), "vllm", "it died")
    assert (missing.problem, missing.ratio, missing.other) == ("it died", None, None)
    barless = next(iter(barred([missing])))
    assert barless.meets_bar is None


def test_contestants_take_turns_and_the_first_round_does_not_count() -> None:
    played: list[tuple[str, int]] = []

    def turn(name: str):
        def play(number: int) -> float:
            played.append((name, number))
            return 1000.0 if number == 0 else number

        return play

    figures = take_turns({"ours": turn("ours"), "peer": turn("peer")}, PLAN)
    assert [name for name, _ in played] == ["ours", "peer"] * 4
    assert [number for _, number in played] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert figures == {"ours": Figures((1, 2, 3)), "peer": Figures((1, 2, 3))}


def test_who_fails_takes_no_further_part_and_the_others_go_on() -> None:
    asked: list[int] = []

    def fail(number: int) -> float:
        asked.append(number)
        raise ConfigError("It is broken.")

    figures = take_turns({"ours": float, "peer": fail}, PLAN)
    assert figures == {"ours": Figures((1.0, 2.0, 3.0)), "peer": "It is broken."}
    assert asked == [0]


def test_a_fault_that_nobody_expected_is_not_hidden() -> None:
    def fail(_number: int) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        take_turns({"ours": fail}, PLAN)


def test_no_time_is_no_rate() -> None:
    assert rate(63, 0.5) == 126
    with pytest.raises(ConfigError, match="63 tokens"):
        rate(63, -0.1)


def test_bars_name_questions_and_models_that_there_are() -> None:
    assert {question for question, *_ in BARS} <= set(QUESTIONS)
    assert {model for _, _, model, _ in BARS} <= set(SIZES)
    assert tuple(SIZES) == MODELS


@pytest.mark.parametrize(("name", "millions"), [("14m", 14), ("110m", 110), ("443m", 443)])
def test_a_size_has_the_parameters_of_its_name(name: str, millions: int) -> None:
    assert round(SIZES[name].num_parameters / 1e6) == millions


def test_mixed_requests_are_the_same_in_every_run_and_of_many_lengths() -> None:
    lengths = BenchPlan().mixed_requests
    assert lengths == BenchPlan().mixed_requests
    assert len(lengths) == 64
    assert len({prompt for prompt, _ in lengths}) > 32
    assert min(map(min, lengths)) >= 1
