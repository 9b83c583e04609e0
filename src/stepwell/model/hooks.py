"""Hook points: named places in the forward pass where a value can be read or changed.

    point               shape         where
    residual.before     [B, T, C]     what enters a block
    attention.pattern   [B, H, T, S]  attention probabilities
    attention.heads     [B, T, H, D]  each head's output, before the output projection
    attention.output    [B, T, C]     after the output projection, before it is added
    mlp.output          [B, T, C]     before it is added
    residual.after      [B, T, C]     what leaves a block
    logits              [B, T, V]     the head's output (layer -1)

An intervention is a declared value, not code: it travels as Python or JSON and names its layers,
heads and positions. A forward without hooks does not compute, keep or test anything for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field, field_validator
from torch import Tensor

from stepwell.config import Config
from stepwell.errors import HookError, suggest
from stepwell.model.config import ModelConfig

POINTS = (
    "residual.before",
    "attention.pattern",
    "attention.heads",
    "attention.output",
    "mlp.output",
    "residual.after",
    "logits",
)
LOGITS_LAYER = -1
HEAD_AXIS: Mapping[str, int] = {"attention.pattern": 1, "attention.heads": 2}
QUERY_AXIS: Mapping[str, int] = {"attention.pattern": 2}

Positions = Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...]


class Intervention(Config):
    """A declared change of the forward pass; `positions` count from the start of each row."""

    positions: Positions = "all"

    def check(self, config: ModelConfig) -> None:
        """Raises HookError where the model lacks a layer, head or point that this names."""
        raise NotImplementedError

    def changes(self, point: str, layer: int) -> bool:
        """Whether this changes the value at a point of a layer."""
        raise NotImplementedError

    def is_idle(self, config: ModelConfig) -> bool:
        """Whether this changes nothing, at no point of such a model."""
        layers = (LOGITS_LAYER, *range(config.num_layers))
        changed = any(self.changes(point, layer) for point in POINTS for layer in layers)
        return not (changed and self.positions)

    def apply(self, point: str, layer: int, value: Tensor, at_BT: Tensor) -> Tensor:
        """The changed value; `at_BT` is true where a position is one of `positions`."""
        raise NotImplementedError


class ZeroHeads(Intervention):
    """Zero the output of some heads: `ZeroHeads({0: [1, 3]})` silences heads 1 and 3 of layer 0.

    The same as zeroing those heads' columns of the output projection.
    """

    heads: dict[int, tuple[int, ...]]

    def __init__(self, heads: Mapping[int, Sequence[int]] | None = None, **values: Any) -> None:
        super().__init__(**({"heads": heads} if heads is not None else {}), **values)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # as in Config

    def check(self, config: ModelConfig) -> None:
        for layer, heads in self.heads.items():
            check_layer(layer, config)
            check_heads(heads, config)

    def changes(self, point: str, layer: int) -> bool:
        return point == "attention.heads" and bool(self.heads.get(layer))

    def apply(self, point: str, layer: int, value: Tensor, at_BT: Tensor) -> Tensor:  # noqa: ARG002
        silenced = torch.zeros(value.shape[2], dtype=torch.bool, device=value.device)
        silenced[list(self.heads[layer])] = True
        return value.masked_fill((at_BT[:, :, None] & silenced)[..., None], 0.0)


class Replace(Intervention):
    """Put a given value at a point: a number, or a vector over the point's last axis.

    The pattern, whose last axis grows with the text, takes a number only. With `heads` (points
    "attention.heads" and "attention.pattern") the other heads stay.
    """

    point: str
    layer: int = LOGITS_LAYER
    value: float | tuple[float, ...]
    heads: tuple[int, ...] | None = Field(None, description="all heads when not given")

    @field_validator("point")
    @classmethod
    def _known(cls, point: str) -> str:
        return check_point(point)

    def check(self, config: ModelConfig) -> None:
        if self.point != "logits":
            check_layer(self.layer, config)
        elif self.layer != LOGITS_LAYER:
            raise HookError(f"logits belong to no layer, not to {self.layer}.", fix="leave it out.")
        if self.heads is not None:
            if self.point not in HEAD_AXIS:
                raise HookError(f"{self.point} has no heads.", fix="leave `heads` out.")
            check_heads(self.heads, config)
        if isinstance(self.value, tuple):
            self._check_vector(self.value, config)

    def _check_vector(self, value: Sequence[float], config: ModelConfig) -> None:
        if self.point == "attention.pattern":
            raise HookError("attention.pattern is replaced by a number, not by a vector.")
        widths = {"attention.heads": config.head_dim, "logits": config.vocab_size}
        expected = widths.get(self.point, config.width)
        if len(value) != expected:
            raise HookError(f"{self.point} is {expected} wide, the replacement {len(value)}.")

    def changes(self, point: str, layer: int) -> bool:
        return point == self.point and layer == self.layer

    def apply(self, point: str, layer: int, value: Tensor, at_BT: Tensor) -> Tensor:  # noqa: ARG002
        mask = at_BT.reshape(at_BT.shape[0], at_BT.shape[1], *[1] * (value.dim() - 2))
        if point in QUERY_AXIS:
            mask = mask.transpose(1, QUERY_AXIS[point])
        if self.heads is not None:
            shape = [1] * value.dim()
            shape[HEAD_AXIS[point]] = value.shape[HEAD_AXIS[point]]
            chosen = torch.zeros(shape[HEAD_AXIS[point]], dtype=torch.bool, device=value.device)
            chosen[list(self.heads)] = True
            mask = mask & chosen.reshape(shape)
        return torch.where(mask, torch.tensor(self.value).to(value), value)


class Recorder(Protocol):
    """Something that reads values as they pass."""

    def wants(self, point: str, layer: int) -> bool:
        """Whether the value at this point is to be computed and handed over."""

    def take(self, point: str, layer: int, value: Tensor, positions_BT: Tensor) -> None:
        """Receives a value, after every intervention. Must copy what it keeps.

        With gradient checkpointing a value comes again while the backward pass recomputes it.
        """


class Hooks:
    """What is read and changed during a forward pass: interventions in order, then recorders."""

    def __init__(
        self, interventions: Iterable[Intervention] = (), recorders: Iterable[Recorder] = ()
    ) -> None:
        self.interventions = tuple(interventions)
        self.recorders = tuple(recorders)

    def check(self, config: ModelConfig) -> None:
        """Raises HookError where an intervention names what the model does not have."""
        for intervention in self.interventions:
            intervention.check(config)

    def wants(self, point: str, layer: int) -> bool:
        """Whether anything reads or changes this point (so that it must be computed)."""
        return any(i.changes(point, layer) for i in self.interventions) or any(
            r.wants(point, layer) for r in self.recorders
        )

    def at(
        self,
        point: str,
        layer: int,
        value: Tensor,
        positions_BT: Tensor,
        *,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """The value that goes on: changed by the interventions, then shown to the recorders.

        Where `allowed` is false a change is undone: no intervention lets a token see a later one.
        """
        for intervention in self.interventions:
            if intervention.changes(point, layer):
                touched = _where(intervention.positions, positions_BT)
                value = intervention.apply(point, layer, value, touched)
                value = value if allowed is None else value.masked_fill(~allowed, 0.0)
        for recorder in self.recorders:
            if recorder.wants(point, layer):
                recorder.take(point, layer, value, positions_BT)
        return value


def _where(positions: Positions, positions_BT: Tensor) -> Tensor:
    """True at each position that is named, bool [B, T]."""
    if positions == "all":
        return torch.ones_like(positions_BT, dtype=torch.bool)
    return torch.isin(positions_BT, torch.tensor(positions, device=positions_BT.device))


def check_point(point: str) -> str:
    """The name of a hook point as it came in. Raises HookError where there is none of that name."""
    if point not in POINTS:
        raise HookError(f"There is no hook point {point!r}. {suggest(point, POINTS)}")
    return point


def check_layer(layer: int, config: ModelConfig) -> None:
    """Raises HookError where the model has no such layer."""
    if not 0 <= layer < config.num_layers:
        raise HookError(f"The model has layers 0..{config.num_layers - 1}, not {layer}.")


def check_heads(heads: Sequence[int], config: ModelConfig) -> None:
    """Raises HookError where a layer of the model lacks one of the heads."""
    for head in heads:
        if not 0 <= head < config.num_heads:
            raise HookError(f"A layer has heads 0..{config.num_heads - 1}, not {head}.")
