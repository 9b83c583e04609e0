"""What one forward pass is about: where its tokens stand, what they may see, how, who watches.

A `ForwardPass` is made once a pass and handed down to every layer, so that a layer keeps no state
of its own.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stepwell.model.cache_view import CacheView
from stepwell.model.hooks import PATTERN, Heads, Hooks
from stepwell.model.places import Places

AttentionImplementation = Literal["auto", "eager", "sdpa", "flash"]
"""How attention is computed.

    eager   the whole pattern by an explicit softmax, then its product with the values
    sdpa    torch's scaled_dot_product_attention, with the kernel that it picks
    flash   the same with its flash kernel, and an error where that cannot run
    auto    the best there is: sdpa; in compiled code on a CPU, eager for short texts
"""


class ForwardPass:
    """Positions, masks, cache view and hooks of one pass over ids [B, T].

    view: None for a pass without a cache, whose rows start at position 0.
    segments: [B, T], for rows that hold several documents; one ends wherever the number changes.
    Each begins at position 0, and its tokens see no other.
    rope: (cos, sin), each [B or 1, 1, T, D], or None where positions are learned.
    """

    def __init__(
        self,
        ids_BT: Tensor,
        *,
        view: CacheView | None = None,
        segments_BT: Tensor | None = None,
        hooks: Hooks | None = None,
        attention: AttentionImplementation = "auto",
    ) -> None:
        self.view, self.hooks, self.attention = view, hooks, attention
        self.num_queries = ids_BT.shape[1]
        self.length = view.length if view is not None else self.num_queries
        self._places_BT = (  # in the row; where it holds several documents, not in each of them
            view.positions_BT
            if view is not None
            else torch.arange(self.num_queries, device=ids_BT.device).expand_as(ids_BT)
        )
        self._starts_BT = None if segments_BT is None else _starts(segments_BT, self._places_BT)
        self.positions_BT = self._places_BT
        if self._starts_BT is not None:
            self.positions_BT = self._places_BT - self._starts_BT
        self.places = Places(self.positions_BT, ids_BT, self._prompts())
        self.rope: tuple[Tensor, Tensor] | None = None
        self._seen: dict[int | None, Tensor] = {}

    @property
    def is_from_zero(self) -> bool:
        """Whether every row's tokens stand at 0, 1, 2 and so on."""
        return self.view is None and self._starts_BT is None

    def wants(self, point: str, layer: int) -> bool:
        """Whether a hook reads or changes this point."""
        return self.hooks is not None and self.hooks.wants(point, layer)

    def changes_pattern(self, layer: int) -> bool:
        """Whether a hook changes what a layer's heads look at."""
        return self.hooks is not None and self.hooks.changes(PATTERN, layer)

    def at(
        self,
        point: str,
        layer: int,
        value: Tensor,
        *,
        allowed: Tensor | None = None,
        heads: Heads = None,
    ) -> Tensor:
        """The value that goes on from a hook point: `value` itself where nothing is hooked."""
        if self.hooks is None:
            return value
        return self.hooks.at(point, layer, value, self.places, allowed=allowed, heads=heads)

    def _prompts(self) -> Tensor | None:
        """Tokens of each row's prompt, [B, 1]; without a cache the whole row, if nobody says."""
        if self.hooks is None:
            return None
        lengths, device = self.hooks.prompt_lengths, self._places_BT.device
        if lengths is not None:
            return torch.tensor(lengths, device=device)[:, None]
        if not self.is_from_zero:
            return None
        return torch.full((len(self._places_BT), 1), self.num_queries, device=device)

    def mask(self, window: int | None) -> Tensor | None:
        """What attention needs to be told about who sees whom: `seen`, or None.

        None stands for the two cases that need no mask: causal from position 0, and one query a row
        that sees all keys.
        """
        return None if self._is_plain(window) else self.seen(window)

    def seen(self, window: int | None) -> Tensor:
        """True where a query may see a key, bool [B or 1, 1, T, S]; made once for all layers."""
        if torch.compiler.is_compiling():
            return self._compared(window)  # which costs nothing there, and writes nothing down
        if window not in self._seen:
            self._seen[window] = self._compared(window)
        return self._seen[window]

    def _compared(self, window: int | None) -> Tensor:
        """`seen` from the places of queries and keys."""
        alike = self.view is None or self.view.uniform
        queries_BT1 = (self._places_BT[:1] if alike else self._places_BT)[..., None]
        keys_S = torch.arange(self.length, device=self.positions_BT.device)
        seen = keys_S <= queries_BT1
        if window is not None:
            seen &= keys_S > queries_BT1 - window
        if self._starts_BT is not None:
            seen = seen & (keys_S >= self._starts_BT[..., None])
        return seen[:, None]

    def _is_plain(self, window: int | None) -> bool:
        if self._starts_BT is not None or (window is not None and window < self.length):
            return False
        if self.view is None:
            return True
        from_zero = self.length == self.num_queries
        return self.view.uniform and (from_zero or self.num_queries == 1)


def _starts(segments_BT: Tensor, places_BT: Tensor) -> Tensor:
    """The place in its row at which the document of each token begins, [B, T]."""
    begins_BT = segments_BT.diff(dim=1, prepend=segments_BT[:, :1]) != 0
    return (places_BT * begins_BT).cummax(1).values
