"""Recording: what passes chosen hook points, for chosen layers, heads and positions.

A `PointRecorder` is handed to a forward pass as a hook and copies what was asked for, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Series
from typing import Literal

import torch
from torch import Tensor

from stepwell.errors import HookError, PromptError
from stepwell.model.hooks import (
    HEAD_AXIS,
    LOGITS_LAYER,
    QUERY_AXIS,
    Hooks,
    Intervention,
    check_heads,
    check_layer,
    check_point,
)
from stepwell.model.transformer import Transformer

Chosen = Series[int] | Literal["all"]
Positions = Chosen | Literal["last"]


class Recording(Mapping[tuple[str, int], Tensor]):
    """Recorded values by (point, layer), float32 on the CPU; logits are under layer -1.

    Rows are padded on the right to the longest prompt; `lengths` says how long each one is. Padding
    is zero. `row` gives one prompt's values without it.
    """

    def __init__(
        self,
        values: Mapping[tuple[str, int], Tensor],
        lengths: Series[int],
        positions: Positions = "all",
    ) -> None:
        self._values, self._positions = dict(values), positions
        self.lengths = tuple(lengths)

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        try:
            return self._values[key]
        except KeyError:
            recorded = ", ".join(f"{point} of layer {layer}" for point, layer in self._values)
            raise HookError(f"{key} was not recorded, only {recorded}.") from None

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def row(self, row: int) -> dict[tuple[str, int], Tensor]:
        """The values of one prompt, without the axis of rows and without padding."""
        return {key: self._cut(key[0], value[row], row) for key, value in self._values.items()}

    def _cut(self, point: str, value: Tensor, row: int) -> Tensor:
        if self._positions == "all":
            value = value.narrow(QUERY_AXIS.get(point, 1) - 1, 0, self.lengths[row])
        return value[..., : self.lengths[row]] if point == "attention.pattern" else value


class PointRecorder:
    """A hook that keeps what passes some points of some layers in one forward.

    The forward's rows begin at position 0 and have the given lengths, padded on the right.
    """

    def __init__(
        self,
        points: Series[str],
        layers: Chosen,
        heads: Chosen,
        positions: Positions,
        lengths: Series[int],
    ) -> None:
        self.points = tuple(check_point(point) for point in points)
        self.layers, self.heads, self.positions = layers, heads, positions
        self.lengths = lengths
        self.values: dict[tuple[str, int], Tensor] = {}

    def wants(self, point: str, layer: int) -> bool:
        chosen = point == "logits" or self.layers == "all" or layer in self.layers
        return point in self.points and chosen

    def take(self, point: str, layer: int, value: Tensor, positions_BT: Tensor) -> None:  # noqa: ARG002
        if self.heads != "all" and point in HEAD_AXIS:
            heads = torch.tensor(self.heads, device=value.device)
            value = value.index_select(HEAD_AXIS[point], heads)
        axis = QUERY_AXIS.get(point, 1)
        kept = self._at_positions(value.movedim(axis, 1)).movedim(1, axis)
        self.values[point, layer] = kept.detach().to("cpu", torch.float32, copy=True)

    def _at_positions(self, value: Tensor) -> Tensor:
        """The chosen positions of values [B, T, ...], and zeros at padding."""
        lengths_B1 = torch.tensor(self.lengths, device=value.device)[:, None]
        if self.positions == "all":
            padding_BT = torch.arange(value.shape[1], device=value.device) >= lengths_B1
            return value.masked_fill(padding_BT.view(*value.shape[:2], *[1] * (value.dim() - 2)), 0)
        if self.positions == "last":
            chosen_BP = lengths_B1 - 1
        else:
            chosen_BP = torch.tensor([self.positions], device=value.device)
        return value[torch.arange(len(value), device=value.device)[:, None], chosen_BP]


def record(
    model: Transformer,
    prompts: Series[Series[int]],
    *,
    points: Series[str],
    layers: Chosen = "all",
    heads: Chosen = "all",
    positions: Positions = "all",
    interventions: Series[Intervention] = (),
) -> Recording:
    """The values at the chosen points in one forward over token ids, padded on the right.

    "last" is each prompt's own last position. Raises PromptError where a prompt is missing, empty
    or too long, HookError for a point, layer, head or position that is not there.
    """
    lengths = [len(prompt) for prompt in prompts]
    _check(model, lengths, layers, heads, positions)
    recorder = PointRecorder(points, layers, heads, positions, lengths)
    hooks = Hooks(interventions, [recorder])
    rows = [[*prompt, *[0] * (max(lengths) - len(prompt))] for prompt in prompts]
    ids_BT = torch.tensor(rows, device=model.device)
    with torch.inference_mode():
        hidden_BTC = model.hidden(ids_BT, hooks=hooks)
        if "logits" in recorder.points:
            model.logits(hidden_BTC, hooks=hooks)
    layer_order = sorted(recorder.values, key=lambda key: (key[1] == LOGITS_LAYER, key[1]))
    values = {key: recorder.values[key] for key in layer_order}
    return Recording(values, lengths, positions)


def _check(
    model: Transformer, lengths: Series[int], layers: Chosen, heads: Chosen, positions: Positions
) -> None:
    if not lengths or not min(lengths):
        raise PromptError("There is nothing to record: no prompt, or one without a token.")
    for layer in () if layers == "all" else layers:
        check_layer(layer, model.config)
    check_heads(() if heads == "all" else heads, model.config)
    for position in () if isinstance(positions, str) else positions:
        if not 0 <= position < min(lengths):
            last = min(lengths) - 1
            raise HookError(f"The shortest prompt has positions 0..{last}, not {position}.")
