"""What kind of head is it: scores of attention patterns on a random text that comes twice.

    previous    weight on the token before
    duplicate   weight on the same token, the first time it came
    induction   weight on what followed the same token the first time (Olsson et al. 2022)

Each is a mean over the second half of the text, where all three places exist and differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from stepwell.errors import UsageError
from stepwell.generate.record import record
from stepwell.generate.tape import Record
from stepwell.generate.text import TextGenerator
from stepwell.model.hooks import PATTERN
from stepwell.report import HeatmapGrid
from stepwell.study.effects import EffectTable, head_names

KINDS: Final[Mapping[str, str]] = {
    "previous": "Previous-token heads",
    "duplicate": "Duplicate-token heads",
    "induction": "Induction heads",
}
DEFAULT_LENGTH: Final = 32
SHORTEST: Final = 3  # one back, length - 1 back and length back are three places


def head_scores(
    generator: TextGenerator, *, length: int | None = None, texts: int = 8, seed: int = 0
) -> dict[str, EffectTable]:
    """Mean attention [L, H] of each kind, with standard errors over random texts.

    length: tokens before the text is repeated, made of all that are not special; 32 where not
    given, or half the context where that is less. Raises UsageError where twice the length does not
    fit the context, or for no text.
    """
    config = generator.model.config
    half = config.context_length // 2
    length = min(DEFAULT_LENGTH, half) if length is None else length
    if not SHORTEST <= length <= half:
        raise UsageError(
            f"length is {length}, expected {SHORTEST} to {half}: the text comes twice, and the"
            f" context holds {config.context_length} tokens."
        )
    if texts < 1:
        raise UsageError(f"texts is {texts}, expected 1 or more.")
    rows = _random_tokens(generator, length, texts, seed).repeat(1, 2).tolist()
    scores_NKLH = torch.stack([_scores(generator, row) for row in rows])
    return {
        kind: EffectTable.differences(
            scores_NKLH[:, number],
            head_names(config),
            title=title,
            value_label="mean attention",
        )
        for number, (kind, title) in enumerate(KINDS.items())
    }


def scores_grid(tables: Mapping[str, EffectTable]) -> HeatmapGrid:
    """The scores of all kinds side by side, each a map of layers and heads."""
    [first, *_] = tables.values()
    return HeatmapGrid(
        title="What kind of head",
        values=np.stack([table.effects for table in tables.values()])[None],
        row_labels=["layer"],
        column_labels=[table.title for table in tables.values()],
        x_ticks=[str(head) for head in range(len(first.columns))],
        y_ticks=[str(layer) for layer in range(len(first.effects))],
        x_label="head",
        y_label="layer",
        value_label=first.value_label,
        value_range=(0.0, 1.0),
    )


def _scores(generator: TextGenerator, row: Sequence[int]) -> Tensor:
    """Mean attention of each kind, layer and head in one repeated text, [K, L, H]."""
    seen = record(generator.model, [row], Record(points=(PATTERN,)))
    num_layers, length = generator.model.config.num_layers, len(row) // 2
    patterns_LHTS = torch.cat([seen[PATTERN, layer] for layer in range(num_layers)])
    queries = torch.arange(length, 2 * length)
    back = {"previous": 1, "duplicate": length, "induction": length - 1}
    return torch.stack(
        [patterns_LHTS[..., queries, queries - back[kind]].mean(-1) for kind in KINDS]
    )


def _random_tokens(generator: TextGenerator, length: int, texts: int, seed: int) -> Tensor:
    """Ordinary tokens in random order, int64 [texts, length]; none twice where there are enough."""
    tokenizer = generator.tokenizer
    ids = set(range(tokenizer.vocab_size)) - tokenizer.special_ids
    ordinary, random = torch.tensor(sorted(ids)), torch.Generator().manual_seed(seed)
    rounds = -(-length // len(ordinary))

    def text() -> Tensor:
        parts = [torch.randperm(len(ordinary), generator=random) for _ in range(rounds)]
        return ordinary[torch.cat(parts)[:length]]

    return torch.stack([text() for _ in range(texts)])
