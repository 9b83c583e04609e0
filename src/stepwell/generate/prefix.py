"""Keys under which full blocks of a prompt's keys and values are found again.

A block's key is the SHA-256 of the key before it and of its tokens, so that it stands for the whole
text up to its end. The first one stands for what else decides the content of a block.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Hashable, Sequence

from stepwell.model.blocks import BLOCK

LABEL = "stepwell prefix 1"


def root_key(*parts: Hashable) -> bytes:
    """The key before any token: of what decides a block's content beside the text."""
    return hashlib.sha256(repr((LABEL, *parts)).encode()).digest()


def block_keys(root: bytes, ids: Sequence[int]) -> tuple[bytes, ...]:
    """One key for each full block of the ids, in order."""
    keys, key = [], root
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        key = hashlib.sha256(key + array("q", ids[start : start + BLOCK]).tobytes()).digest()
        keys.append(key)
    return tuple(keys)
