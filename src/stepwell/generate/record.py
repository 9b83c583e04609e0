"""Recording: what passes chosen hook points, for chosen layers, heads and positions.

A `Recorder` is handed to a forward pass as a hook and copies what was asked for, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence as Series
from typing import Literal

import torch
from torch import Tensor

from stepwell.errors import HookError
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


class Recording(Mapping[tuple[str, int], Tensor]):
    """Recorded values by (point, layer), float32 on the CPU; logits are under layer -1.

    Rows are padded on the right to the longest prompt; `lengths` says how long each one is.
    """

    def __init__(self, values: Mapping[tuple[str, int], Tensor], lengths: Series[int]) -> None:
        self._values = dict(values)
        self.lengths = tuple(lengths)

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        try:
            return self._values[key]
        except KeyError:
            recorded = ", ".join(f"{point} of layer {layer}" for point, layer in self._values)
            raise HookError(
                f"{key[0]} of layer {key[1]} was not recorded, only {recorded}."
            ) from None

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class PointRecorder:
    """A hook that keeps one forward's values at some points of some layers."""

    def __init__(
        self,
        points: Series[str],
        layers: Chosen,
        heads: Chosen,
        positions: Chosen | Literal["last"],
    ) -> None:
        self.points = tuple(check_point(point) for point in points)
        self.layers, self.heads, self.positions = layers, heads, positions
        self.values: dict[tuple[str, int], Tensor] = {}

    def wants(self, point: str, layer: int) -> bool:
        chosen = point == "logits" or self.layers == "all" or layer in self.layers
        return point in self.points and chosen

    def take(self, point: str, layer: int, value: Tensor, positions_BT: Tensor) -> None:
        if self.heads != "all" and point in HEAD_AXIS:
            value = value.index_select(HEAD_AXIS[point], torch.tensor(self.heads))
        if self.positions != "all":
            axis = QUERY_AXIS.get(point, 1)
            length = value.shape[axis]
            chosen = [length - 1] if self.positions == "last" else list(self.positions)
            value = value.index_select(axis, torch.tensor(chosen))
        self.values[point, layer] = value.detach().float().cpu().clone()


def record(
    model: Transformer,
    prompts: Series[Series[int]],
    *,
    points: Series[str],
    layers: Chosen = "all",
    heads: Chosen = "all",
    positions: Chosen | Literal["last"] = "all",
    interventions: Series[Intervention] = (),
) -> Recording:
    """The values at the chosen points in one forward over token ids, padded on the right.

    Raises HookError for a point, layer, head or position that is not there, and for "last" over
    prompts that differ in length.
    """
    lengths = [len(prompt) for prompt in prompts]
    _check(model, lengths, layers, heads, positions)
    recorder = PointRecorder(points, layers, heads, positions)
    hooks = Hooks(interventions, [recorder])
    hooks.check(model.config)
    rows = [[*prompt, *[0] * (max(lengths) - len(prompt))] for prompt in prompts]
    with torch.inference_mode():
        model(torch.tensor(rows, device=model.device), hooks=hooks)
    layer_order = sorted(recorder.values, key=lambda key: (key[1] == LOGITS_LAYER, key[1]))
    return Recording({key: recorder.values[key] for key in layer_order}, lengths)


def _check(
    model: Transformer,
    lengths: Series[int],
    layers: Chosen,
    heads: Chosen,
    positions: Chosen | Literal["last"],
) -> None:
    for layer in () if layers == "all" else layers:
        check_layer(layer, model.config)
    check_heads(() if heads == "all" else heads, model.config)
    if positions == "last" and len(set(lengths)) > 1:
        raise HookError(
            "positions='last' needs prompts of one length.", fix="record the prompts one by one."
        )
    for position in () if isinstance(positions, str) else positions:
        if not 0 <= position < min(lengths):
            raise HookError(
                f"The shortest prompt has positions 0..{min(lengths) - 1}, not {position}."
            )
