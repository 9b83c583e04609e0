"""Interventions: declared changes of a forward pass, as Python values and as JSON.

    ZeroHeads({0: [1, 3]})                          {"zero_heads": {"0": [1, 3]}}
    Scale(point=..., layer=1, factor=0.5)           {"scale": {"point": ..., "layer": 1, ...}}
    Steer(layer=1, vector=v, scale=4.0)             {"steer": {"layer": 1, "vector": [...], ...}}
    Replace(point=..., layer=1, value=0.0)          {"replace": {...}}
    Patch(point=..., layer=1, values=..., ...)      {"patch": {...}}

Each takes `positions` (see `places`). Several apply in the order in which they stand. An
intervention is data: it names its layers, heads and positions and runs no code, so it travels
through files and over HTTP, and can be part of a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final

from pydantic import Field, field_validator
from torch import Tensor

from stepwell.config import Config
from stepwell.errors import HookError, suggest
from stepwell.model.config import ModelConfig
from stepwell.model.hooks import HEAD_AXIS, LOGITS_LAYER, PATTERN, Edit, check_point
from stepwell.model.places import Positions, indexes
from stepwell.model.values import Values


class Intervention(Config):
    """A declared change of the forward pass at some positions of each row."""

    positions: Positions = "all"

    @cached_property
    def edits(self) -> tuple[Edit, ...]:
        """What it changes, in order."""
        raise NotImplementedError

    def check(self, config: ModelConfig) -> None:
        """Raises HookError where the model lacks a layer, head or width that this names."""
        for edit in self.edits:
            edit.check(config)

    @property
    def is_idle(self) -> bool:
        """Whether this changes nothing, in any text."""
        return all(edit.is_idle for edit in self.edits)


class ZeroHeads(Intervention):
    """Zero the output of some heads: `ZeroHeads({0: [1, 3]})` silences heads 1 and 3 of layer 0.

    The same as zeroing those heads' columns of the output projection.
    """

    heads: dict[int, tuple[int, ...]]

    def __init__(self, heads: Mapping[int, Sequence[int]] | None = None, **values: Any) -> None:
        super().__init__(**({"heads": heads} if heads is not None else {}), **values)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # as in Config

    @cached_property
    def edits(self) -> tuple[Edit, ...]:
        """What it changes, in order."""
        return tuple(
            Edit("attention.heads", layer, "set", heads=heads, positions=self.positions)
            for layer, heads in self.heads.items()
        )


class _AtPoint(Intervention):
    """A change at one point of one layer; `heads` chooses some of a point that has heads."""

    point: str
    layer: int = LOGITS_LAYER
    heads: tuple[int, ...] | None = Field(None, description="all heads when not given")

    @field_validator("point")
    @classmethod
    def _known(cls, point: str) -> str:
        return check_point(point)

    def _edit(self, action: Any, number: float = 0.0, values: Tensor | None = None) -> Edit:
        heads, positions = self.heads, self.positions
        return Edit(self.point, self.layer, action, number, values, heads, positions)


class Scale(_AtPoint):
    """Multiply what passes a point: `Scale(point="mlp.output", layer=1, factor=0.5)`."""

    factor: float

    @cached_property
    def edits(self) -> tuple[Edit, ...]:
        """What it changes, in order."""
        return (self._edit("scale", self.factor),)


class Steer(_AtPoint):
    """Add `scale` times a vector to what leaves a layer, or to another point of it."""

    point: str = "residual.after"
    layer: int
    vector: Values
    scale: float = 1.0

    @cached_property
    def edits(self) -> tuple[Edit, ...]:
        """What it changes, in order."""
        return (self._edit("add", values=_vector(self.vector, self.point) * self.scale),)


class Replace(_AtPoint):
    """Put a given value at a point: a number, or a vector over the point's last axis.

    The pattern, whose last axis grows with the text, takes a number only.
    """

    value: float | Values

    @cached_property
    def edits(self) -> tuple[Edit, ...]:
        """What it changes, in order."""
        if isinstance(self.value, Values):
            return (self._edit("set", values=_vector(self.value, self.point)),)
        return (self._edit("set", self.value),)


class Patch(_AtPoint):
    """Put what passed a point in another run in its place, position by position.

    values: [positions, width], at a point with heads [positions, heads, width]; a pattern's width
    is its number of keys. `Patch.of` takes them from a recording.
    """

    positions: Positions
    values: Values

    @classmethod
    def of(
        cls,
        seen: Mapping[tuple[str, int], Tensor],
        point: str,
        layer: int,
        *,
        positions: Sequence[int],
        heads: Sequence[int] | None = None,
    ) -> Patch:
        """A patch from one row's values at all positions, such as `recording.row(0)`.

        Positions count in that row and in the row that is patched alike, negative ones from the end
        of each prompt.
        """
        numbered = tuple(positions)
        value = seen[check_point(point), layer]
        by_position = value.transpose(0, 1) if point == PATTERN else value
        _check_inside(numbered, len(by_position))
        taken = by_position[list(numbered)]
        if heads is not None and point in HEAD_AXIS:
            taken = taken[:, list(heads)]
        return cls(
            point=point,
            layer=layer,
            positions=numbered,
            values=taken,
            heads=None if heads is None else tuple(heads),
        )

    @cached_property
    def edits(self) -> tuple[Edit, ...]:
        """What it changes, in order."""
        numbered, values = _numbered(self.positions), self.values.tensor
        axes = 3 if self.point in HEAD_AXIS else 2
        if values.dim() != axes or len(values) != len(numbered):
            expected = f"[{len(numbered)}, {'heads, ' if axes == 3 else ''}width]"
            raise HookError(f"Patch.values is {list(values.shape)}, expected {expected}.")
        if self.point == PATTERN and max(numbered, default=-1) >= values.shape[-1]:
            raise HookError(
                f"Position {max(numbered)} looks at {max(numbered) + 1} keys, but the pattern has"
                f" {values.shape[-1]}."
            )
        values_PHW = values if axes == 3 else values[:, None]
        return (self._edit("set", values=values_PHW),)


KINDS: Final[Mapping[str, type[Intervention]]] = {
    "zero_heads": ZeroHeads,
    "scale": Scale,
    "steer": Steer,
    "replace": Replace,
    "patch": Patch,
}


def parse_interventions(values: Any, *, where: str = "interventions") -> tuple[Intervention, ...]:
    """The interventions of a JSON list such as `[{"zero_heads": {"0": [1, 3]}}]`.

    Raises HookError that names the entry, and ConfigError for a wrong field of one.
    """
    if not isinstance(values, list | tuple):
        kind = type(values).__name__
        raise HookError(f'{where}: expected a list like [{{"zero_heads": ...}}], got {kind}.')
    return tuple(_parse(value, f"{where}[{place}]") for place, value in enumerate(values))


def _parse(value: Any, where: str) -> Intervention:
    if isinstance(value, Intervention):
        return value
    if not isinstance(value, Mapping) or len(value) != 1:
        raise HookError(
            f"{where}: expected one of {', '.join(KINDS)} with its fields, got {value!r}.",
            fix='write each as {"zero_heads": {"0": [1, 3]}}.',
        )
    [(name, body)] = value.items()
    if name not in KINDS:
        raise HookError(f"{where}: there is no intervention {name!r}. {suggest(str(name), KINDS)}")
    if name == "zero_heads" and isinstance(body, Mapping) and _are_layers(body):
        body = {"heads": body}
    return KINDS[name].parse(body, where=f"{where}.{name}")


def _are_layers(body: Mapping[Any, Any]) -> bool:
    return all(str(key).isdecimal() for key in body)


def plain_interventions(interventions: Sequence[Intervention]) -> list[dict[str, Any]]:
    """The JSON of interventions, which `parse_interventions` reads."""
    names = {kind: name for name, kind in KINDS.items()}
    return [{names[type(each)]: each.plain()} for each in interventions]


def _vector(values: Values, point: str) -> Tensor:
    """A vector for all positions and heads, [1, 1, W]."""
    if len(values.shape) != 1:
        raise HookError(f"{point} takes a vector, not an array {list(values.shape)}.")
    if point == PATTERN:
        raise HookError(f"{point} is changed by a number, not by a vector: it grows with the text.")
    return values.tensor[None, None]


def _numbered(positions: Positions) -> tuple[int, ...]:
    numbered = indexes(positions)
    if numbered is None:
        raise HookError(
            f"Patch.positions is {positions!r}, but each value needs a position of its own.",
            fix="number the positions: [4, 5], [-1], or a range with start and stop.",
        )
    return numbered


def _check_inside(numbered: Sequence[int], length: int) -> None:
    for index in numbered:
        if not -length <= index < length:
            raise HookError(f"The recording has positions 0..{length - 1}, not {index}.")
