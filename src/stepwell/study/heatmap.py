"""Heatmaps of what a recording saw: attention by layer and head, and probabilities of tokens.

Turns recorded arrays into figures; `stepwell.report` draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from stepwell.errors import HookError, ShapeError
from stepwell.generate.record import Recording
from stepwell.report import Heatmap, HeatmapGrid, Page, write_png

PATTERN = "attention.pattern"
_SIGNS = {" ": "·", "\n": "⏎", "\t": "⇥"}


@dataclass(frozen=True)
class AttentionMaps:
    """One heatmap a layer and head; `figure` is the grid, to put on a page of one's own."""

    figure: HeatmapGrid
    text: str

    def write_html(self, path: str | Path, *, command: str = "") -> Path:
        """The path of a self-contained page with these maps; its footer names `command`."""
        page = Page(self.figure.title, lead=f"Where each token of {self.text} looks.", command=command)
        page.add("Point at a cell for its weight. A click enlarges a map.", self.figure)
        return page.write(path)

    def write_png(self, path: str | Path, *, dark: bool = False) -> Path:
        """The path of a picture with these maps."""
        return write_png(self.figure, path, dark=dark)


def heatmap(
    seen: Mapping[tuple[str, int], Tensor] | Mapping[tuple[str, int], NDArray[np.floating]],
    tokens: Sequence[str],
    *,
    row: int = 0,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> AttentionMaps:
    """Attention of row `row` by layer and head, from patterns [B, H, T, S] at ("attention.pattern", layer).

    `tokens` are that row's, padding left out. `heads` and `positions` say which were recorded, where
    not all were. Keys that a query cannot see stay blank. Raises HookError where no pattern was
    recorded, ShapeError where the patterns fit neither each other nor the tokens.
    """
    patterns = {layer: _array(seen[point, layer]) for point, layer in seen if point == PATTERN}
    if not patterns:
        raise HookError(
            "The recording holds no attention pattern.",
            fix=f'record(..., points=["{PATTERN}"]).',
        )
    values_LHTS = _row(patterns, row, seen.lengths[row] if isinstance(seen, Recording) else None)
    _, num_heads, num_queries, num_keys = values_LHTS.shape
    queries = list(range(num_queries)) if positions is None else list(positions)
    heads = range(num_heads) if heads is None else heads
    _check(values_LHTS.shape, len(tokens), len(heads), queries)
    names = [visible(token) for token in tokens]
    future = np.arange(num_keys) > np.array(queries)[:, None]
    # A weight on the future would be a fault of the model, and is shown.
    blank = np.where(future & (values_LHTS == 0), np.nan, values_LHTS)
    figure = HeatmapGrid(
        title="Attention",
        values=blank,
        row_labels=[f"layer {layer}" for layer in sorted(patterns)],
        column_labels=[f"head {head}" for head in heads],
        x_ticks=names,
        y_ticks=[names[query] for query in queries],
        value_label="attention weight",
        value_range=(0.0, 1.0),
    )
    return AttentionMaps(figure, _quoted("".join(tokens)))
