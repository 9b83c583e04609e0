"""Forwards of a transformers model over rows of unequal length, padded on the left.

Owns masks, positions and the model's cache. Chooses no token. B rows, T columns, V tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Reading:
    """Rows of ids that a model has read; each can go on with one token more.

    logits: [B, K, V] float32 of the last K columns, of the `keep` that were asked for; they end
    where the rows do. Those of padding mean nothing.
    """

    def __init__(self, model: Any, rows: Sequence[Sequence[int]], *, keep: int = 1) -> None:
        width = max(map(len, rows))
        ids_BT = torch.tensor([[*[0] * (width - len(row)), *row] for row in rows])
        mask_BT = [[*[0] * (width - len(row)), *[1] * len(row)] for row in rows]
        self._model = model
        self._takes = inspect.signature(model.forward).parameters
        self._mask_BT = torch.tensor(mask_BT, device=model.device)
        self._cache: Any = None
        self.logits = self._read(ids_BT, min(keep, width))

    def next(self, ids: Sequence[int]) -> Tensor:
        """The logits [B, V] after one more token of each row."""
        ones_B1 = self._mask_BT.new_ones(len(ids), 1)
        self._mask_BT = torch.cat([self._mask_BT, ones_B1], dim=1)
        return self._read(torch.tensor(ids)[:, None], 1)[:, 0]

    @torch.inference_mode()
    def _read(self, ids_BT: Tensor, keep: int) -> Tensor:
        asked: dict[str, Any] = {"past_key_values": self._cache, "use_cache": True}
        if "position_ids" in self._takes:
            positions_BT = (self._mask_BT.cumsum(1) - 1).clamp(min=0)
            asked["position_ids"] = positions_BT[:, -ids_BT.shape[1] :]
        if "logits_to_keep" in self._takes:  # the others of a long prompt are many
            asked["logits_to_keep"] = keep
        told = self._model(
            input_ids=ids_BT.to(self._model.device),
            attention_mask=self._mask_BT,
            return_dict=True,
            **asked,
        )
        self._cache = told.past_key_values
        logits: Tensor = told.logits[:, -keep:]
        return logits.float()
