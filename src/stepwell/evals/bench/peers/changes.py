"""Interventions as peers read them: what passes one place of one layer, changed where it lies.

They arrive as the JSON that stepwell writes: {"zero_heads": ...}, {"scale": ...}, {"steer": ...}
and {"patch": ...}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

HEADS, RESIDUAL = "attention.heads", "residual.after"


class Change(NamedTuple):
    """A change at a point of a layer.

    apply: writes into a value, [B, T, H, D] at HEADS and [B, T, C] at RESIDUAL. prompt_only: the
    first step of an answer is all that it is about.
    """

    point: str
    layer: int
    apply: Callable[[torch.Tensor], None]
    prompt_only: bool = False


def change_of(hook: Mapping[str, Any]) -> Change:
    """The change that an intervention declares."""
    [(kind, body)] = hook.items()
    if kind == "zero_heads":
        [(layer, heads)] = body["heads"].items()
        return Change(HEADS, int(layer), partial(scale, heads=heads, factor=0.0))
    point, layer = body["point"], body["layer"]
    if kind == "scale":
        by = partial(scale, heads=body["heads"], factor=body["factor"])
        return Change(point, layer, by)
    if kind == "steer":
        vector = body["scale"] * torch.tensor(body["vector"])
        return Change(point, layer, partial(add, vector=vector))
    assert kind == "patch", f"{kind!r} is no intervention that is known here"
    places, values = torch.tensor(body["positions"]), torch.tensor(body["values"])
    put_here = partial(put, places=places, heads=body["heads"], values=values)
    return Change(point, layer, put_here, prompt_only=True)


def scale(value: torch.Tensor, heads: list[int], factor: float) -> None:
    """Multiplies some heads."""
    value[:, :, heads] *= factor


def add(value: torch.Tensor, vector: torch.Tensor) -> None:
    """Adds a vector at every position."""
    value += vector


def put(value: torch.Tensor, places: torch.Tensor, heads: list[int], values: torch.Tensor) -> None:
    """Writes values [positions, heads, D] over those of some heads at some positions."""
    value[:, places[:, None], torch.tensor(heads)] = values
