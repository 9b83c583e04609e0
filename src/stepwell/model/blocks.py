"""Which blocks of the key/value cache are whose: bookkeeping only, no tensors.

A block is BLOCK consecutive positions of one row. It is in one of three states:

    free    nobody wants what it holds
    held    by one or more holders (rows)
    cached  by no holder, but published: its content may be found again under its key

Blocks are handed out free ones first, then the cached one that was dropped longest ago. A free
block that was in use before goes first, so the ids ever handed out are the smallest there are.
"""

from __future__ import annotations

from collections import OrderedDict

from stepwell.errors import CacheError, CacheFullError

BLOCK = 64


class BlockPool:
    """`total` blocks 0..total-1 and their states. Every verb takes constant time."""

    def __init__(self, num_blocks: int) -> None:
        self.total = num_blocks
        self._free = list(range(num_blocks))[::-1]
        self._holders: dict[int, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # dropped longest ago first
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody holds, but whose content may be found again."""
        return len(self._cached)

    @property
    def num_held(self) -> int:
        """Blocks with a holder."""
        return len(self._holders)

    @property
    def num_available(self) -> int:
        """Blocks that `take` can hand out."""
        return self.num_free + self.num_cached

    def take(self) -> int:
        """A block with one holder, its content unknown. Raises CacheFullError where none is left.

        Where none is free, the cached block that was dropped longest ago is forgotten.
        """
        self.require(1)
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._key_of.pop(block)]
        self._holders[block] = 1
        return block

    def require(self, count: int) -> None:
        """Raises CacheFullError, and changes nothing, where fewer than `count` are available."""
        if count > self.num_available:
            raise CacheFullError(
                f"Blocks of {BLOCK} tokens needed: {count}; available: {self.num_available} of"
                f" the cache's {self.total}.",
                fix="release a row, or give the cache more memory.",
            )

    def share(self, block: int) -> None:
        """Add a holder."""
        self._holders[self._held(block)] += 1

    def drop(self, block: int) -> None:
        """Remove a holder. With the last one the block is cached if it is published, else free."""
        self._holders[self._held(block)] -= 1
        if self._holders[block]:
            return
        del self._holders[block]
        if block in self._key_of:
            self._cached[block] = None
        else:
            self._free.append(block)

    def publish(self, block: int, key: bytes) -> None:
        """Let a held block be found under a key.

        A key that is known stays with its block, and a block that is published keeps its key.
        """
        self._held(block)
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def find(self, key: bytes) -> int | None:
        """The block under a key, with one more holder; None where the key is not known."""
        block = self._block_of.get(key)
        if block is not None:
            self._cached.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1
        return block

    def forget(self) -> None:
        """Make every cached block free."""
        for block in self._cached:
            del self._block_of[self._key_of.pop(block)]
        self._free += reversed(self._cached)
        self._cached.clear()

    def knows(self, key: bytes) -> bool:
        """Whether a block can be found under a key."""
        return key in self._block_of

    def is_private(self, block: int) -> bool:
        """Whether a block has one holder and is not published, so that he may write to it."""
        return self._holders.get(block) == 1 and block not in self._key_of

    def _held(self, block: int) -> int:
        if block not in self._holders:
            raise CacheError(f"Block {block} of the cache is held by nobody.", fix="take it first.")
        return block


def blocks_for(length: int) -> int:
    """Number of blocks that so many positions lie in."""
    return -(-length // BLOCK)
