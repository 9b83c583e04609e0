"""Shapley values: exact is the average over all orders, sampled comes near, both add up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import studies

from stepwell.errors import UsageError
from stepwell.generate.text import TextGenerator
from stepwell.study import shapley
from stepwell.study.shapley import exact_shapley, sampled_shapley, shapley_heads

TEXTS = ["abcd>", "abgdefg>"]
ANSWERS = {"right": "e", "wrong": "f"}
TOLERANCE = 2e-5  # float32, scores of order 1


class Scored:
    """A game with a random score for each coalition, by what its members' bits say."""

    def __init__(self, players: int, seed: int) -> None:
        self.scores = np.random.default_rng(seed).normal(size=2**players)

    def __call__(self, coalitions: Sequence[frozenset[int]]) -> np.ndarray:
        return np.array([self.scores[sum(1 << each for each in some)] for some in coalitions])


def enumerated(game: Scored, players: int) -> np.ndarray:
    """Mean gain of each player over all orders of joining, the definition."""
    values = np.zeros(players)
    for order in permutations(range(players)):
        for place, player in enumerate(order):
            before, after = frozenset(order[:place]), frozenset(order[: place + 1])
            [low, high] = game([before, after])
            values[player] += high - low
    return values / math.factorial(players)


def silenced(gen: TextGenerator, text: str, members: frozenset[int]) -> float:
    """The score where only some heads work, by zeros in what the projections read."""

    def keep(layer: int) -> studies.Change:
        def change(heads_1THD: torch.Tensor) -> torch.Tensor:
            count = heads_1THD.shape[2]
            works = torch.tensor([float(layer * count + head in members) for head in range(count)])
            return heads_1THD * works[:, None]

        return change

    changes = {layer: keep(layer) for layer in studies.layers(gen.model)}
    return studies.difference(gen, text, "e", "f", changes)


@pytest.mark.parametrize("players", [1, 2, 3, 5])
def test_exact_is_the_mean_over_all_orders(players: int) -> None:
    game = Scored(players, players)
    found = exact_shapley(game, players)
    np.testing.assert_allclose(found.values, enumerated(game, players), atol=1e-12)
    assert found.values.sum() == pytest.approx(found.total, abs=1e-12)
    assert not found.standard_errors.any()


def test_another_weight_of_coalitions_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    game = Scored(4, 0)
    banzhaf = SimpleNamespace(comb=lambda others, _: 2**others / (others + 1))
    monkeypatch.setattr(shapley, "math", banzhaf)
    found = exact_shapley(game, 4)
    assert np.abs(found.values - enumerated(game, 4)).max() > 0.01
    assert abs(found.values.sum() - found.total) > 0.01


def test_sampled_adds_up_and_comes_near() -> None:
    players, game = 6, Scored(6, 1)
    exact = exact_shapley(game, players)
    few, many = (sampled_shapley(game, players, orders=orders) for orders in (40, 4000))
    for found in (few, many):
        assert found.values.sum() == pytest.approx(exact.total, abs=1e-9)
        assert (np.abs(found.values - exact.values) < 5 * found.standard_errors).all()
    assert (many.standard_errors < few.standard_errors / 5).all(), "ten times less with 100 times"


def test_standard_errors_are_as_large_as_the_errors() -> None:
    players, game = 5, Scored(5, 2)
    exact = exact_shapley(game, players).values
    drawn = [sampled_shapley(game, players, orders=60, seed=seed) for seed in range(300)]
    off = np.array([each.values - exact for each in drawn])
    told = np.sqrt(np.mean([each.standard_errors**2 for each in drawn], axis=0))
    np.testing.assert_allclose(off.std(0) / told, 1, atol=0.2)


@pytest.mark.parametrize("orders", [0, 2, 5, -4])
def test_too_few_or_odd_orders_are_refused(gen, orders: int) -> None:
    with pytest.raises(UsageError, match=f"orders is {orders}, expected an even number"):
        sampled_shapley(Scored(3, 0), 3, orders=orders)
    with pytest.raises(UsageError, match="orders"):
        shapley_heads(gen, TEXTS, orders=orders)


def test_values_of_heads_are_the_mean_over_all_orders_of_silencing(gen) -> None:
    table = shapley_heads(gen, TEXTS, **ANSWERS)

    def game(coalitions: Sequence[frozenset[int]]) -> list[float]:
        return [np.mean([silenced(gen, text, each) for text in TEXTS]) for each in coalitions]

    np.testing.assert_allclose(table.effects.ravel(), enumerated(game, 4), atol=TOLERANCE)
    assert dict(table.facts)["orders of joining"] == "all"
    swapped = table.effects.T.ravel()
    assert np.abs(swapped - enumerated(game, 4)).max() > 10 * TOLERANCE, "layers down, heads across"


@pytest.mark.parametrize("orders", [None, 8])
def test_values_of_heads_add_up_to_all_less_none(make, orders: int | None) -> None:
    gen = make(num_heads=4, num_kv_heads=2)
    table = shapley_heads(gen, TEXTS[0], **ANSWERS, orders=orders)
    plain = studies.difference(gen, TEXTS[0], "e", "f")
    total = plain - silenced(gen, TEXTS[0], frozenset())
    assert table.effects.sum() == pytest.approx(total, abs=TOLERANCE)
    assert table.has_errors == (orders is not None)
    without = table.effects.sum() - table.effects[0, 0]
    assert abs(without - total) > 10 * TOLERANCE, "none is idle"


def test_sampled_values_of_heads_come_near_the_exact_ones(make) -> None:
    gen = make(num_heads=4)
    exact = shapley_heads(gen, TEXTS, **ANSWERS)
    drawn = shapley_heads(gen, TEXTS, **ANSWERS, orders=64, seed=3)
    assert (np.abs(drawn.effects - exact.effects) < 5 * drawn.standard_errors + TOLERANCE).all()
    assert dict(drawn.facts)["orders of joining"] == "64"


def test_a_head_that_writes_nothing_has_no_value(make) -> None:
    gen = make(1)
    assert abs(shapley_heads(gen, TEXTS, **ANSWERS).effects[1, 0]) > 10 * TOLERANCE
    with torch.no_grad():
        gen.model.blocks[1].attention.o_proj.weight[:, :8] = 0
    effects = shapley_heads(gen, TEXTS, **ANSWERS).effects
    assert abs(effects[1, 0]) < TOLERANCE
    assert np.abs(np.delete(effects.ravel(), 2)).min() > 10 * TOLERANCE


def test_two_heads_that_do_the_same_have_the_same_value(make) -> None:
    gen = make(2)
    before = shapley_heads(gen, TEXTS, **ANSWERS).effects[0]
    assert abs(before[0] - before[1]) > 10 * TOLERANCE
    attention = gen.model.blocks[0].attention
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[8:] = projection.weight[:8]
        attention.o_proj.weight[:, 8:] = attention.o_proj.weight[:, :8]
    after = shapley_heads(gen, TEXTS, **ANSWERS).effects[0]
    assert after[0] == pytest.approx(after[1], abs=TOLERANCE)
    assert abs(after[0]) > 10 * TOLERANCE


def test_an_order_and_its_reverse_are_exact_for_two_players() -> None:
    game = Scored(2, 4)
    found = sampled_shapley(game, 2, orders=4, seed=1)
    np.testing.assert_allclose(found.values, enumerated(game, 2), atol=1e-12)
    np.testing.assert_allclose(found.standard_errors, 0, atol=1e-12)
