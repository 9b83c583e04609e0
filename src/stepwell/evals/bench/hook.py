"""What a generation that is timed is hooked with, as a value; and the four that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from stepwell.evals.bench.peers.conversation import random_prompts
from stepwell.evals.bench.plan import BenchPlan
from stepwell.generate.record import record
from stepwell.generate.tape import Record
from stepwell.model.interventions import (
    Intervention,
    Patch,
    Scale,
    Steer,
    ZeroHeads,
    plain_interventions,
)
from stepwell.model.transformer import Transformer

HEADS, PATTERN = "attention.heads", "attention.pattern"
OTHER_RUN: Final = -1
"""The seed of the prompt from which a patch is taken; no round has it."""
PATCHED: Final = 8
"""Positions that a patch changes, from the middle of the prompt on."""


@dataclass(frozen=True)
class Hook:
    """An intervention, or a layer whose attention pattern is recorded, or nothing."""

    intervention: Intervention | None = None
    layer: int | None = None

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """What a request takes."""
        return () if self.intervention is None else (self.intervention,)

    @property
    def record(self) -> Record | None:
        """What a request keeps."""
        return None if self.layer is None else Record(points=(PATTERN,), layers=(self.layer,))

    @property
    def plain(self) -> Mapping[str, Any] | None:
        """What a peer is told."""
        if self.intervention is not None:
            return plain_interventions([self.intervention])[0]
        return None if self.layer is None else {"record": self.layer}


def middle_layer(model: Transformer) -> int:
    """The layer that is hooked."""
    return model.config.num_layers // 2


def interventions_of(model: Transformer, plan: BenchPlan) -> dict[str, Intervention]:
    """An intervention of each kind on the middle layer and a middle head, by the table's name."""
    layer, head = middle_layer(model), model.config.num_heads // 2
    source = torch.Generator().manual_seed(0)
    return {
        "head zeroed": ZeroHeads({layer: [head]}),
        "head scaled": Scale(point=HEADS, layer=layer, heads=(head,), factor=2.0),
        "steered": Steer(layer=layer, vector=torch.randn(model.config.width, generator=source)),
        "prompt patched": recorded_patch(model, plan, layer, head),
    }


def recorded_patch(model: Transformer, plan: BenchPlan, layer: int, head: int) -> Patch:
    """A head's output in the middle of a prompt, as it was behind other tokens."""
    length = min(plan.prompt_tokens, model.config.context_length)
    positions = tuple(range(length // 2, min(length, length // 2 + PATCHED)))
    prompts = random_prompts(OTHER_RUN, [length], model.config.vocab_size)
    seen = record(model, prompts, Record(points=(HEADS,), layers=(layer,))).row(0)
    return Patch.of(seen, HEADS, layer, positions=positions, heads=[head])
