"""A random order of any number of things, in which each thing's place is known without the others.

Owns the permutation and nothing about what is ordered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

ROUNDS: Final = 6


def shuffled(places: Sequence[int] | NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """What stands at these places, each in 0..size-1, of the order that the key (64 bits) chooses.

    All places together hold each number below `size` once. Takes no memory but for its arguments: a
    Feistel network (Luby and Rackoff 1988) permutes the next larger power of 4, and numbers that
    are too large are permuted again until they fit (cycle walking; Black and Rogaway 2002).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    found = _permuted(np.asarray(places, dtype=np.uint64), half, key)
    while (outside := found >= size).any():
        found[outside] = _permuted(found[outside], half, key)
    return found.astype(np.int64)


def _permuted(numbers: NDArray[np.uint64], half: np.uint64, key: int) -> NDArray[np.uint64]:
    """A permutation of the numbers of 2 * `half` bits."""
    low = np.uint64((1 << int(half)) - 1)
    left, right = numbers >> half, numbers & low
    for number in range(ROUNDS):
        left, right = right, left ^ (_mixed(right, key + number) & low)
    return (left << half) | right


def _mixed(numbers: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """64 bits that look random, by number and key. Source: SplitMix64 (Steele et al. 2014)."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key * 0xD1342543DE82EF95 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
