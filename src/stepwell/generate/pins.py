"""What an engine keeps of requests that do not run: their keys and values, held in its cache.

A pin holds the full blocks of a text that were computed once, so that going on from that text need
not read it again. Owns who is pinned and in which order pins give way: where running requests need
the room, the pin that was used longest ago goes, and its request is computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepwell.generate.prefix import block_keys, root_key
from stepwell.model.blocks import BLOCK
from stepwell.model.cache import KVCache


@dataclass(eq=False)
class Pin:
    """Blocks that are held. `num_tokens` they stand for; both are nothing once it has given way."""

    blocks: tuple[int, ...]
    block_bytes: int

    @property
    def num_tokens(self) -> int:
        """Tokens from the start of the text that need not be computed again."""
        return len(self.blocks) * BLOCK

    @property
    def num_bytes(self) -> int:
        """What they take. Texts that begin alike share blocks, and each counts them."""
        return len(self.blocks) * self.block_bytes


class Pins:
    """The pins of one cache. Keys are those of texts without interventions."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._pins: dict[Pin, None] = {}  # used longest ago first

    def num_cached(self, ids: Sequence[int], salt: str = "") -> int:
        """How many of a text's first tokens would be found, pinned or not."""
        return self._cache.num_known(_keys(ids, salt))

    def add(self, ids: Sequence[int], salt: str = "") -> Pin:
        """Hold what is known of a text, from its start; it may be nothing."""
        pin = Pin(self._cache.pin(_keys(ids, salt)), self._cache.block_bytes)
        if pin.blocks:
            self._pins[pin] = None
        return pin

    def drop(self, pin: Pin) -> None:
        """Let go of what a pin holds, if anything."""
        if pin in self._pins:
            del self._pins[pin]
            self._cache.unpin(pin.blocks)
            pin.blocks = ()

    def clear(self) -> None:
        """Drop all pins."""
        while self.spare():
            pass

    def spare(self) -> bool:
        """Drop the oldest pin; whether there was one."""
        oldest = next(iter(self._pins), None)
        if oldest is None:
            return False
        self.drop(oldest)
        return True


def _keys(ids: Sequence[int], salt: str) -> tuple[bytes, ...]:
    return block_keys(root_key(salt, ()), ids)
