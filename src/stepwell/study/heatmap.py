"""Heatmaps of what a recording saw: attention by layer and head, and probabilities of tokens.

Turns recorded arrays into figures; `stepwell.report` draws them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepwell.errors import HookError, LogitsError, ShapeError
from stepwell.generate.record import Recording
from stepwell.report import Choice, Heatmap, HeatmapGrid, Page, TokenStrip, write_png

PATTERN = "attention.pattern"
LEAD_LENGTH = 70
_SIGNS = {" ": "·", "\n": "⏎", "\t": "⇥"}

Array = Tensor | NDArray[np.floating]


@dataclass(frozen=True)
class AttentionMaps:
    """One heatmap for each layer and head; `figure` is their grid, `lead` says what they show."""

    figure: HeatmapGrid
    lead: str

    def write_html(self, path: str | Path, *, command: str = "") -> Path:
        """The path of a self-contained page with these maps; its footer names `command`."""
        page = Page("Attention", lead=self.lead, command=command)
        hint = "Point at a cell to read it. Click a map to enlarge it."
        return page.add(hint, self.figure).write(path)

    def write_png(self, path: str | Path, *, dark: bool = False) -> Path:
        """The path of a picture with these maps."""
        return write_png(self.figure, path, dark=dark)


def heatmap(
    seen: Mapping[tuple[str, int], Array],
    tokens: Sequence[str],
    *,
    row: int = 0,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> AttentionMaps:
    """Attention maps of one row, from patterns [B, H, T, S] under ("attention.pattern", layer).

    `tokens` are those of that row. `heads` and `positions` say which were recorded, where not all
    were; a Recording knows its positions. A key that a query cannot see stays blank. Raises
    HookError where no pattern was recorded, ShapeError where patterns fit neither each other nor
    the tokens.
    """
    layers = sorted(layer for point, layer in seen if point == PATTERN)
    if not layers:
        raise HookError("No attention was recorded.", fix=f'record with points=["{PATTERN}"].')
    if isinstance(seen, Recording) and 0 <= row < len(seen.rows):
        values_LHTS = _stack([seen.row(row)[PATTERN, layer][None] for layer in layers], 0)
        positions = seen.positions[row] if positions is None else positions
    else:
        values_LHTS = _stack([seen[PATTERN, layer] for layer in layers], row)
    heads = range(values_LHTS.shape[1]) if heads is None else heads
    positions = range(values_LHTS.shape[2]) if positions is None else positions
    _check(values_LHTS, heads, positions, tokens)
    names = [visible(token) for token in tokens]
    figure = HeatmapGrid(
        title="Attention by layer and head",
        note="Queries down, keys across. A key that comes after its query is left blank.",
        values=_without_future(values_LHTS, positions),
        row_labels=[f"layer {layer}" for layer in layers],
        column_labels=[f"head {head}" for head in heads],
        x_ticks=names,
        y_ticks=[names[position] for position in positions],
        value_label="attention weight",
        value_range=(0.0, 1.0),
    )
    text = textwrap.shorten("".join(tokens), LEAD_LENGTH, placeholder=" …")
    return AttentionMaps(figure, f"Where each token of “{text}” looks.")


def token_probabilities(
    logits_TV: Array, tokens: Sequence[str], name: Callable[[int], str], *, top: int = 6
) -> Heatmap:
    """The `top` likeliest next tokens after each token read, most likely first, with probabilities.

    `name` gives the text of a token id. Raises ShapeError where logits and tokens differ in number.
    """
    logits = _array(logits_TV).astype(np.float64)
    if logits.ndim != 2 or len(logits) != len(tokens):
        raise ShapeError(
            f"expected logits [{len(tokens)}, V], a row for each token, got {list(logits.shape)}."
        )
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = weights / weights.sum(axis=-1, keepdims=True)
    best_TK = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
    return Heatmap(
        title="Likeliest next tokens",
        values=np.take_along_axis(probabilities, best_TK, axis=-1).T,
        x_ticks=[visible(token) for token in tokens],
        y_ticks=[str(rank + 1) for rank in range(best_TK.shape[1])],
        x_label="after",
        y_label="rank",
        value_label="probability",
        text=[[visible(name(int(token))) for token in ranked] for ranked in best_TK.T],
        value_range=(0.0, 1.0),
    )


def token_heatmap(
    logits_TV: Array, token_ids: Sequence[int], name: Callable[[int], str], *, top: int = 5
) -> TokenStrip:
    """A text whose tokens are coloured by the probability that the model gave each of them.

    That of token t comes from the logits at t - 1, and the first has none. The choices of a token
    are the `top` likeliest at its place, and the token itself where it is not among them; of two
    that are equally likely the smaller id comes first. `name` gives the text of a token id. Raises
    ShapeError where logits and tokens differ in number, LogitsError where logits are NaN.
    """
    logits = torch.as_tensor(logits_TV).detach().cpu()
    _check_text(logits, token_ids)
    pairs = zip(logits, token_ids[1:], strict=False)
    places = [_choices(_log_probabilities(row), token, name, top) for row, token in pairs]
    actual = [next(one.probability for one in place if one.actual) for place in places]
    return TokenStrip(
        title="Probability of each token",
        note="The model's probability of a token after all before it; the first has none.",
        tokens=[visible(name(token)) for token in token_ids],
        values=[float("nan"), *actual],
        choices=[(), *places],
        value_range=(0.0, 1.0),
    )


def visible(token: str) -> str:
    """The token with its spaces, line breaks and unprintable characters made visible."""
    return "".join(
        _SIGNS.get(sign) or (sign if sign.isprintable() else f"\\u{ord(sign):04x}")
        for sign in token
    )


def _check_text(logits: Tensor, token_ids: Sequence[int]) -> None:
    expected = f"expected logits [{len(token_ids)}, V], a row for each token"
    if logits.ndim != 2 or not 0 < len(logits) == len(token_ids):
        raise ShapeError(f"{expected}, got {list(logits.shape)}.")
    unknown = [token for token in token_ids if not 0 <= token < logits.shape[1]]
    if unknown:
        raise ShapeError(f"{expected}, but there is no token {unknown[0]} of {logits.shape[1]}.")


def _log_probabilities(logits_V: Tensor) -> NDArray[np.float64]:
    logits = logits_V.double()
    scale = logits.logsumexp(dim=-1)
    if not scale.isfinite():
        raise LogitsError("Logits are NaN or infinite, so no token has a probability.")
    return np.asarray((logits - scale).numpy())


def _choices(
    scores_V: NDArray[np.float64], token: int, name: Callable[[int], str], top: int
) -> list[Choice]:
    """The `top` tokens of largest log-probability, then `token` where it is not among them."""
    top = min(top, len(scores_V))
    likely = np.flatnonzero(scores_V >= np.partition(scores_V, -top)[-top])
    ranked = likely[np.argsort(-scores_V[likely], kind="stable")][:top].tolist()
    ranks = {choice: place for place, choice in enumerate(ranked, 1)}
    own = scores_V[token]
    ahead = (scores_V > own).sum() + (scores_V[:token] == own).sum()
    ranks.setdefault(token, int(ahead) + 1)
    probabilities = {choice: float(np.exp(scores_V[choice])) for choice in ranks}
    return [
        Choice(visible(name(choice)), probabilities[choice], rank, actual=choice == token)
        for choice, rank in ranks.items()
    ]


def _stack(patterns_BHTS: Sequence[Array], row: int) -> NDArray[np.float32]:
    """Row `row` of the patterns of all layers, [L, H, T, S]."""
    arrays = [_array(pattern) for pattern in patterns_BHTS]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1 or len(shapes[0]) != 4 or not 0 <= row < shapes[0][0]:
        found = ", ".join(str(list(shape)) for shape in shapes)
        raise ShapeError(
            f"expected patterns [B, H, T, S] of one shape with row {row}, got {found}."
        )
    return np.stack([array[row] for array in arrays])


def _without_future(
    values_LHTS: NDArray[np.float32], positions: Sequence[int]
) -> NDArray[np.float32]:
    """NaN where a key comes after its query, unless it has weight: that is a fault to be seen."""
    future_TS = np.arange(values_LHTS.shape[3]) > np.array(positions)[:, None]
    return np.where(future_TS & (values_LHTS == 0), np.float32(np.nan), values_LHTS)


def _check(
    values_LHTS: NDArray[np.float32],
    heads: Sequence[int],
    positions: Sequence[int],
    tokens: Sequence[str],
) -> None:
    _, num_heads, num_queries, num_keys = values_LHTS.shape
    expected = (len(heads), len(positions), len(tokens))
    outside = any(not 0 <= position < num_keys for position in positions)
    if expected != (num_heads, num_queries, num_keys) or outside:
        raise ShapeError(
            f"{num_heads} heads, {num_queries} queries and {num_keys} keys were recorded, but"
            f" {expected[0]} heads, {expected[1]} positions and {expected[2]} tokens are named.",
            fix="pass the tokens of the whole row, and heads= and positions= if some were chosen.",
        )


def _array(values: Array) -> NDArray[np.float32]:
    return torch.as_tensor(values).detach().to("cpu", torch.float32).numpy()
