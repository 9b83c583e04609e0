"""Which question serves what: disjoint splits, by what a question says and nothing else.

A prompt lies in the same split however often, in whichever order and beside what others it is
asked, so that no split ever sees what another was judged on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from stepwell.cascade.paths import BoolArray
from stepwell.errors import ConfigError


def splits(keys: Sequence[str], shares: Mapping[str, float]) -> dict[str, BoolArray]:
    """For each split the questions [N] that belong to it; the same key is always in the same one.

    shares: of all possible keys, by the split's name; they sum to 1. Raises ConfigError otherwise.
    """
    if not shares or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise ConfigError(f"The shares of the splits are {dict(shares)}, expected to sum to 1.")
    places = np.array([_place(key) for key in keys], dtype=np.float64)
    edges = np.cumsum([0.0, *shares.values()])
    edges[-1] = 1.0
    pairs = zip(shares, edges[:-1], edges[1:], strict=True)
    return {name: (places >= low) & (places < high) for name, low, high in pairs}


def _place(key: str) -> float:
    """A number in [0, 1) that only the key decides."""
    digest = hashlib.sha256(b"cascade split 1\0" + key.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
