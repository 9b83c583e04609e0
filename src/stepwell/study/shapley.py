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
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from stepwell.errors import UsageError
from stepwell.generate.text import TextGenerator
from stepwell.model.interventions import ZeroHeads
from stepwell.study.effects import EffectTable
from stepwell.study.question import METRIC_NAMES, Metric, Question, ask, last_logits

Coalition = frozenset[int]
Game = Callable[[Sequence[Coalition]], NDArray[np.float64]]
"""Scores of coalitions of players 0 to n - 1."""

MOST_EXACT = 12
"""Players whose coalitions are enumerated unless orders are asked for: 4,096 of them."""


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
    texts: str | Sequence[str],
    *,
    right: str | Sequence[str] | None = None,
    wrong: str | Sequence[str] | None = None,
    metric: Metric = "logit_difference",
    orders: int | None = None,
    seed: int = 0,
) -> EffectTable:
    """What each head contributes to the score of texts, mean over them: layers down, heads across.

    Exact where the model has at most 12 heads and `orders` is not given; else from that many random
    orders of joining, 64 where not given. The effects add up to the score with all heads less that
    with none.
    """
    config, question = generator.model.config, ask(generator, texts, right, wrong, metric=metric)
    heads = [
        (layer, head) for layer in range(config.num_layers) for head in range(config.num_heads)
    ]
    game = _game(generator, question, heads)
    if orders is None and len(heads) <= MOST_EXACT:
        found = exact_shapley(game, len(heads))
    else:
        found = sampled_shapley(game, len(heads), orders=orders or 64, seed=seed)
    shape = (config.num_layers, config.num_heads)
    return EffectTable(
        found.values.reshape(shape),
        found.standard_errors.reshape(shape),
        tuple(f"head {head}" for head in range(config.num_heads)),
        "What each head contributes (Shapley values)",
        METRIC_NAMES[metric],
        (
            ("all heads less none", f"{found.total:.4g}"),
            ("sum of the values", f"{found.values.sum():.4g}"),
            ("orders of joining", "all" if found.orders is None else str(found.orders)),
        ),
    )


def _game(generator: TextGenerator, question: Question, heads: Sequence[tuple[int, int]]) -> Game:
    """The mean score of the texts where only a coalition's heads work."""

    def play(coalitions: Sequence[Coalition]) -> NDArray[np.float64]:
        found: list[float] = []
        waiting = iter(coalitions)
        while some := list(islice(waiting, 256)):
            own = [[_without(heads, members)] for members in some for _ in question.texts]
            rows = [text for _ in some for text in question.texts]
            logits = last_logits(generator.model, rows, own).view(
                len(some), len(question.texts), -1
            )
            found += [float(question.score(each).double().mean()) for each in logits]
        return np.array(found)

    return play


def _without(heads: Sequence[tuple[int, int]], members: Coalition) -> ZeroHeads:
    """The intervention that silences all heads but the members."""
    silenced: dict[int, list[int]] = {}
    for number, (layer, head) in enumerate(heads):
        if number not in members:
            silenced.setdefault(layer, []).append(head)
    return ZeroHeads(silenced)
