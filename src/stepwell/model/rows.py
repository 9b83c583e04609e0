"""More tokens for a model: rows of the embedding and the head."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer

ROWS: Final = ("embed.weight", "head.weight")
"""Parameters with a row for each token."""


def with_rows(model: Transformer, config: ModelConfig) -> Transformer:
    """The model as `config` says, which may have more tokens: their rows are the others' mean.

    A head that is the embedding stays it. What does not change is shared with `model`.
    """
    state = model.state_dict()
    for name in ROWS:
        if name in state:
            state[name] = _longer(state[name], config.vocab_size)
    with torch.device("meta"):
        made = Transformer(config)
    made.load_state_dict(state, assign=True)
    return made


def _longer(rows_VC: Tensor, num_rows: int) -> Tensor:
    more = num_rows - len(rows_VC)
    if not more:
        return rows_VC
    mean_1C = rows_VC.double().mean(0, keepdim=True).to(rows_VC.dtype)
    return torch.cat([rows_VC, mean_1C.expand(more, -1)])
