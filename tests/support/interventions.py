"""Interventions at random: of every kind, at every point, at every kind of position."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from stepwell.model.config import ModelConfig
from stepwell.model.hooks import HEAD_AXIS, POINTS, width_of
from stepwell.model.interventions import Intervention, Patch, Replace, Scale, Steer, ZeroHeads
from stepwell.model.places import Tokens


def some_positions(chance: random.Random, *, numbered: bool = False) -> Any:
    numbers = [
        (chance.randrange(8),),
        (-1,),
        (-2, 0),
        (chance.randrange(60), chance.randrange(60, 100)),
        range(chance.randrange(4), 8),
    ]
    names = ["all", "prompt", "generated", "last", Tokens(tokens=(3, chance.randrange(23)))]
    return chance.choice(numbers if numbered else [*numbers, *names])


def some_vector(chance: random.Random, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(chance.randrange(10**6))
    return torch.randn(shape, generator=generator)


def some_intervention(chance: random.Random, config: ModelConfig) -> Intervention:
    point = chance.choice(POINTS)
    where: dict[str, Any] = {"point": point, "positions": some_positions(chance)}
    where["layer"] = -1 if point == "logits" else chance.randrange(config.num_layers)
    if point in HEAD_AXIS:
        some = tuple(chance.sample(range(config.num_heads), chance.randrange(1, 4)))
        where["heads"] = chance.choice([None, some])
    width = width_of(point, config)
    kind = chance.choice(["zero", "scale", "steer", "replace", "patch"])
    if kind == "zero":
        heads = {0: [chance.randrange(4)], 1: chance.sample(range(4), 2)}
        return ZeroHeads(heads, positions=where["positions"])
    if kind == "scale":
        return Scale(**where, factor=chance.uniform(-1, 2))
    if width is None or (kind == "replace" and chance.random() < 0.3):
        return Replace(**where, value=chance.uniform(0, 0.5))
    if kind == "patch":
        return some_patch(chance, where, config, width)
    vector = some_vector(chance, width)
    if kind == "replace":
        return Replace(**where, value=vector)
    return Steer(**where, vector=vector, scale=0.5)


def some_patch(
    chance: random.Random, where: dict[str, Any], config: ModelConfig, width: int
) -> Patch:
    positions = some_positions(chance, numbered=True)
    heads = config.num_heads if where.get("heads") is None else len(where["heads"])
    axes = (heads, width) if where["point"] in HEAD_AXIS else (width,)
    values = some_vector(chance, len(positions), *axes)
    return Patch(**{**where, "positions": positions}, values=values)
