"""Whether texts come as often as enumerated chances say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

Text = tuple[int, ...]


def is_distributed(texts: Sequence[Text], expected: Mapping[Text, float]) -> bool:
    """Whether tokens at every place, in pairs and jointly, are as likely as expected."""
    length = len(next(iter(expected)))
    subsets = [each for size in range(1, length + 1) for each in combinations(range(length), size)]
    return all(_fits(texts, expected, places) for places in subsets)


def _fits(texts: Sequence[Text], expected: Mapping[Text, float], places: Iterable[int]) -> bool:
    """A chi-square test at these places, which chance fails once in 10,000 times."""
    places = list(places)
    share: Counter[Text] = Counter()
    for text, chance in expected.items():
        share[tuple(text[place] for place in places)] += chance
    counts = Counter(tuple(text[place] for place in places) for text in texts)
    if any(not share[key] for key in counts):
        return False
    pools, rest = [], [0.0, 0.0]
    for key, chance in share.items():
        if chance * len(texts) >= 5:
            pools.append((counts[key], chance * len(texts)))
        else:
            rest = [rest[0] + counts[key], rest[1] + chance * len(texts)]
    if rest[1] >= 5:
        pools.append((rest[0], rest[1]))
    statistic = sum((count - mean) ** 2 / mean for count, mean in pools)
    return statistic < limit(len(pools) - 1)


def limit(freedom: int) -> float:
    """The 99.99th percentile of chi-square. Source: Wilson and Hilferty 1931."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 3.719 * math.sqrt(spread)) ** 3
