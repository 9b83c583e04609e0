"""Shapley values of heads: what each contributes to a score, averaged over all orders of joining.

The game: the score of a text when some heads work and the others are silenced. A head's value is
what the score gains as it joins, averaged over the orders in which heads may join (Shapley 1953),
so that the values add up to the score of all heads less that of none. Exact by enumeration for few
heads, else over random orders with standard errors (Castro et al. 2009), each with its reverse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stepwell.errors import UsageError
from stepwell.generate.text import TextGenerator
from stepwell.model.interventions import ZeroHeads
from stepwell.study.effects import EffectTable, head_names
from stepwell.study.metric import METRIC_NAMES, Metric
from stepwell.study.question import Progress, Question, Texts, ask

Coalition = frozenset[int]
Game = Callable[[Sequence[Coalition]], NDArray[np.float64]]
"""Scores of coalitions of players 0 to n - 1."""

MOST_EXACT = 12
"""Players whose coalitions are enumerated unless orders are asked for: 4,096 of them."""
FEW_ORDERS = 64
"""Orders that are drawn for more players, unless another number is asked for."""


@dataclass(frozen=True, eq=False)
class Shapley:
    """Values [n] of players and their standard errors, 0 where exact; `total` is their sum.

    orders: how many orders of joining were drawn; None where all count.
    """

    values: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    total: float
    orders: int | None


def exact_shapley(game: Game, num_players: int) -> Shapley:
    """The values by enumeration of all 2^n coalitions."""
    coalitions = [
        frozenset(player for player in range(num_players) if number >> player & 1)
        for number in range(2**num_players)
    ]
    score = dict(zip(coalitions, game(coalitions).tolist(), strict=True))
    values = np.zeros(num_players)
    for coalition in coalitions:
        size = len(coalition)
        for player in range(num_players):
            if player not in coalition:
                weight = 1 / (num_players * math.comb(num_players - 1, size))
                values[player] += weight * (score[coalition | {player}] - score[coalition])
    total = score[coalitions[-1]] - score[coalitions[0]]
    return Shapley(values, np.zeros(num_players), total, None)


def sampled_shapley(game: Game, num_players: int, *, orders: int, seed: int = 0) -> Shapley:
    """The values over random orders of joining, every second one the reverse of that before.

    Along each order the gains add up to the total, so the values do exactly. Standard errors are
    those between pairs of orders. Raises UsageError for fewer than four orders or an odd number.
    """
    if orders < 4 or orders % 2:
        raise UsageError(f"orders is {orders}, expected an even number of 4 or more.")
    random = np.random.default_rng(seed)
    drawn = [random.permutation(num_players) for _ in range(orders // 2)]
    walks = [order for one in drawn for order in (one, one[::-1])]
    score = _scores(game, walks)
    gains = np.zeros((orders, num_players))
    for row, order in zip(gains, walks, strict=True):
        scores = [score[members] for members in _prefixes(order)]
        row[order] = np.diff(scores)
    pairs = (gains[::2] + gains[1::2]) / 2
    error = pairs.std(0, ddof=1) / math.sqrt(len(pairs))
    everyone = frozenset(range(num_players))
    return Shapley(gains.mean(0), error, score[everyone] - score[frozenset()], orders)


def _prefixes(order: NDArray[np.int64]) -> Iterator[Coalition]:
    """Who has joined, from nobody to everybody."""
    for count in range(len(order) + 1):
        yield frozenset(order[:count].tolist())


def _scores(game: Game, walks: Sequence[NDArray[np.int64]]) -> dict[Coalition, float]:
    """The score of every coalition on these walks, each asked for once."""
    needed = dict.fromkeys(members for order in walks for members in _prefixes(order))
    return dict(zip(needed, game(list(needed)).tolist(), strict=True))


def shapley_heads(
    generator: TextGenerator,
    texts: Texts,
    *,
    right: Texts | None = None,
    wrong: Texts | None = None,
    metric: Metric = "logit_difference",
    orders: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectTable:
    """What each head contributes to the score of texts, mean over them: layers down, heads across.

    Exact where the model has at most 12 heads and `orders` is not given; else from that many random
    orders of joining, 64 where not given. The effects add up to the score with all heads less that
    with none. Standard errors are those of the orders, not of the choice of texts.
    """
    config, question = generator.model.config, ask(generator, texts, right, wrong, metric=metric)
    shape = config.num_layers, config.num_heads
    game = _game(generator, question, progress)
    if orders is None and math.prod(shape) <= MOST_EXACT:
        found = exact_shapley(game, math.prod(shape))
    else:
        drawn = FEW_ORDERS if orders is None else orders
        found = sampled_shapley(game, math.prod(shape), orders=drawn, seed=seed)
    return EffectTable(
        found.values.reshape(shape),
        found.standard_errors.reshape(shape),
        head_names(config),
        "What each head contributes (Shapley values)",
        METRIC_NAMES[metric],
        (
            ("texts", str(len(question.texts))),
            ("all heads less none", f"{found.total:.4g}"),
            ("orders of joining", "all" if found.orders is None else str(found.orders)),
        ),
        "The values add up to the score with all heads less that with none.",
    )


def _game(generator: TextGenerator, question: Question, progress: Progress | None) -> Game:
    """The mean score of the texts where only a coalition's heads work.

    Head h of layer l is player l H + h.
    """
    num_layers, num_heads = generator.model.config.num_layers, generator.model.config.num_heads

    @cache  # coalitions that silence the same heads of a layer share the edit of it
    def without(layer: int, members: Coalition) -> ZeroHeads:
        heads = [head for head in range(num_heads) if layer * num_heads + head not in members]
        return ZeroHeads({layer: heads})

    def silenced(members: Coalition) -> list[ZeroHeads]:
        layers = (
            (layer, range(layer * num_heads, (layer + 1) * num_heads))
            for layer in range(num_layers)
        )
        return [without(layer, members & frozenset(own)) for layer, own in layers]

    def play(coalitions: Sequence[Coalition]) -> NDArray[np.float64]:
        cells = [[silenced(members)] * len(question.texts) for members in coalitions]
        scores_PN = question.scores(generator.model, cells, progress=progress)
        return np.asarray(scores_PN.mean(1).numpy(), np.float64)

    return play
