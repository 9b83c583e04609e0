"""Hook points: named places in the forward pass where a value can be read or changed.

    point               shape         where
    residual.before     [B, T, C]     what enters a block
    attention.pattern   [B, H, T, S]  attention probabilities
    attention.heads     [B, T, H, D]  each head's output, before the output projection
    attention.output    [B, T, C]     after the output projection, before it is added
    mlp.output          [B, T, C]     before it is added
    residual.after      [B, T, C]     what leaves a block
    logits              [B, T, V]     the head's output (layer -1)

Owns the edits that interventions are made of, and how a forward in torch applies them. A forward
without hooks does not compute, keep or test anything for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from stepwell.errors import HookError, suggest
from stepwell.model.config import ModelConfig
from stepwell.model.places import Places, Positions, absolute, indexes, is_nowhere, needs_prompt

POINTS = (
    "residual.before",
    "attention.pattern",
    "attention.heads",
    "attention.output",
    "mlp.output",
    "residual.after",
    "logits",
)
PATTERN = "attention.pattern"
LOGITS_LAYER = -1
HEAD_AXIS: Mapping[str, int] = {"attention.pattern": 1, "attention.heads": 2}
QUERY_AXIS: Mapping[str, int] = {"attention.pattern": 2}

Heads = tuple[int, ...] | None
"""Which heads of a layer; None for all of them, or at a point that has none."""


@dataclass(frozen=True, eq=False)
class Edit:
    """One change at one point of one layer.

    action: "scale" by `number`, "add" `values`, or "set" to `values`, else to `number`.
    values: float32 [P, H, W] on the CPU, W as wide as the point's last axis; P is 1, or there is
    one for each of the numbered positions; H is 1, or there is one for each of the heads.
    """

    point: str
    layer: int
    action: Literal["scale", "add", "set"]
    number: float = 0.0
    values: Tensor | None = None
    heads: Heads = None
    positions: Positions = "all"

    def __post_init__(self) -> None:
        values = self.values
        if values is None:
            if self.action == "add":
                raise HookError("An edit that adds needs values.", fix="give values [P, H, W].")
            return
        sound = values.dtype == torch.float32 and values.is_cpu and values.is_contiguous()
        if values.dim() != 3 or not sound:
            raise HookError(
                f"The values of an edit are {values.dtype} {list(values.shape)} on {values.device},"
                " expected float32 [P, H, W] on the CPU, contiguous."
            )

    @property
    def is_idle(self) -> bool:
        """Whether it changes nothing, in any text."""
        return self.heads == () or is_nowhere(self.positions)

    @property
    def needs_prompt(self) -> bool:
        """Whether what it changes depends on how long the prompt is."""
        return needs_prompt(self.positions)

    def check(self, config: ModelConfig) -> None:
        """Raises HookError where the model lacks the layer or a head, or is not as wide."""
        if self.point != "logits":
            check_layer(self.layer, config)
        elif self.layer != LOGITS_LAYER:
            raise HookError(f"logits belong to no layer, not to {self.layer}.", fix="leave it out.")
        if self.heads is not None:
            if self.point not in HEAD_AXIS:
                raise HookError(f"{self.point} has no heads.", fix="leave `heads` out.")
            check_heads(self.heads, config)
        if self.values is not None:
            self._check_values(self.values, config)

    def _check_values(self, values_PHW: Tensor, config: ModelConfig) -> None:
        num_positions, num_heads, width = values_PHW.shape
        expected = width_of(self.point, config)
        if expected is not None and width != expected:
            raise HookError(f"{self.point} is {expected} wide, the value for it {width}.")
        wanted_heads = config.num_heads if self.heads is None else len(self.heads)
        if num_heads not in (1, wanted_heads):
            raise HookError(f"There are values of {num_heads} heads for {wanted_heads} of them.")
        numbered = indexes(self.positions)
        if num_positions != 1 and (numbered is None or num_positions != len(numbered)):
            raise HookError(
                f"There are values for {num_positions} positions, but the positions are"
                f" {self.positions!r}.",
                fix="number them, one for each value, or give one value for all.",
            )

    def apply(self, value: Tensor, places: Places, heads: Heads = None) -> Tensor:
        """The changed value, as a new tensor; the value's head axis holds `heads`, or all."""
        if self.heads is None:
            return self._changed(value, places)
        axis = HEAD_AXIS[self.point]
        found = self.heads if heads is None else [heads.index(head) for head in self.heads]
        index = torch.tensor(found, device=value.device)
        part = self._changed(value.index_select(axis, index), places)
        return value.index_copy(axis, index, part)

    def _changed(self, value: Tensor, places: Places) -> Tensor:
        """`value` [B, T, ...] or, of the pattern, [B, H, T, S], changed where a position is."""
        at_BT = places.chosen(self.positions)
        mask = at_BT.reshape(*at_BT.shape, *[1] * (value.dim() - 2))
        mask = mask.movedim(1, QUERY_AXIS.get(self.point, 1))
        if self.action == "scale":
            return torch.where(mask, value * self.number, value)
        given = self._given(value, places)
        return torch.where(mask, value + given if self.action == "add" else given, value)

    def _given(self, value: Tensor, places: Places) -> Tensor:
        """The number or values to be added or set, in a shape that broadcasts against `value`."""
        if self.values is None:
            return value.new_tensor(self.number)
        values_PHW = self.values.to(value)
        given = values_PHW[0] if len(values_PHW) == 1 else values_PHW[self._which(places)]
        if self.point == PATTERN:
            given = _fitted(given, value.shape[-1])
            return given.unsqueeze(-2) if given.dim() == 2 else given.transpose(1, 2)
        return given if self.point in HEAD_AXIS else given.squeeze(-2)

    def _which(self, places: Places) -> Tensor:
        """Which of the numbered positions each token's is, int64 [B, T]: the last; 0 for none."""
        numbered = indexes(self.positions)
        assert numbered is not None, "checked: values by position have numbered positions"
        prompt = places.num_prompt_B1
        which_BT = torch.zeros_like(places.positions_BT)
        for place, index in enumerate(numbered):
            here_BT = places.positions_BT == absolute(index, prompt)
            which_BT = which_BT.masked_fill(here_BT, place)
        return which_BT


class Call(Edit):
    """A change by a function of one's own, for forwards of torch: `Hooks([Call("logits", -1, f)])`.

    The function gets the value at the point and gives another of the same shape; gradients flow
    through it.
    """

    def __init__(self, point: str, layer: int, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(check_point(point), layer, "scale", 1.0)
        object.__setattr__(self, "_function", function)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Itself: it is both what is declared and what is done."""
        return (self,)

    def apply(self, value: Tensor, places: Places, heads: Heads = None) -> Tensor:  # noqa: ARG002
        """What the function makes of the value."""
        changed: Tensor = self._function(value)  # type: ignore[attr-defined]
        if changed.shape != value.shape:
            raise HookError(
                f"{self.point} of layer {self.layer} is {list(value.shape)}, what was put there"
                f" {list(changed.shape)}."
            )
        return changed


class HasEdits(Protocol):
    """What changes a forward: above all an intervention (see `stepwell.model.interventions`)."""

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What it changes, in order."""


class Recorder(Protocol):
    """Something that reads values as they pass."""

    def wants(self, point: str, layer: int) -> bool:
        """Whether the value at this point is to be computed and handed over."""

    def heads(self, point: str, layer: int) -> Heads:
        """Which heads it wants there, of a point that has heads; None for all."""

    def take(self, point: str, layer: int, value: Tensor, places: Places, heads: Heads) -> None:
        """Receives a value, after every edit. Must copy what it keeps.

        heads: those on the value's head axis, None for all. With gradient checkpointing a value
        comes again while the backward pass recomputes it.
        """


class Hooks:
    """What is read and changed during a forward pass: edits in order, then recorders.

    prompt_lengths: tokens of each row's prompt, which some positions are counted by; without a
    cache the whole row where not given. `by_row` gives each row edits of its own.
    """

    def __init__(
        self,
        interventions: Iterable[HasEdits] = (),
        recorders: Iterable[Recorder] = (),
        *,
        prompt_lengths: Sequence[int] | None = None,
    ) -> None:
        edits = [edit for each in interventions for edit in each.edits]
        self._start([(edit, None) for edit in edits], recorders, prompt_lengths)

    @classmethod
    def by_row(
        cls,
        edits: Sequence[Sequence[Edit]],
        recorders: Iterable[Recorder] = (),
        *,
        prompt_lengths: Sequence[int],
    ) -> Hooks:
        """Hooks that change each row of a batch by its own edits."""
        hooks = cls()
        hooks._start(_together(edits), recorders, prompt_lengths)
        return hooks

    def _start(
        self,
        edits: Sequence[tuple[Edit, list[int] | None]],
        recorders: Iterable[Recorder],
        prompt_lengths: Sequence[int] | None,
    ) -> None:
        self.recorders = tuple(recorders)
        self.prompt_lengths = None if prompt_lengths is None else tuple(prompt_lengths)
        self._edits: dict[tuple[str, int], list[tuple[Edit, list[int] | None]]] = {}
        for edit, rows in edits:
            if not edit.is_idle:
                self._edits.setdefault((edit.point, edit.layer), []).append((edit, rows))

    def check(self, config: ModelConfig) -> None:
        """Raises HookError where an edit names what the model does not have."""
        for edits in self._edits.values():
            for edit, _ in edits:
                edit.check(config)

    def changes(self, point: str, layer: int) -> bool:
        """Whether anything changes the value at this point."""
        return (point, layer) in self._edits

    def wants(self, point: str, layer: int) -> bool:
        """Whether anything reads or changes this point (so that it must be computed)."""
        return self.changes(point, layer) or any(r.wants(point, layer) for r in self.recorders)

    def heads(self, point: str, layer: int) -> Heads:
        """Which heads anything reads or changes there, in order; None for all."""
        wanted = [edit.heads for edit, _ in self._edits.get((point, layer), ())]
        wanted += [r.heads(point, layer) for r in self.recorders if r.wants(point, layer)]
        if any(heads is None for heads in wanted):
            return None
        return tuple(sorted({head for heads in wanted for head in heads or ()}))

    def at(
        self,
        point: str,
        layer: int,
        value: Tensor,
        places: Places,
        *,
        allowed: Tensor | None = None,
        heads: Heads = None,
    ) -> Tensor:
        """The value that goes on: changed by the edits, then shown to the recorders.

        heads: those on the value's head axis, None for all. Where `allowed` is false a change is
        undone: no edit lets a token see a later one.
        """
        for edit, rows in self._edits.get((point, layer), ()):
            if rows is None:
                value = _edited(edit, value, places, allowed, heads)
            else:
                value = _edited_in_rows(edit, rows, value, places, allowed, heads)
        for recorder in self.recorders:
            if recorder.wants(point, layer):
                recorder.take(point, layer, value, places, heads)
        return value


def _together(edits: Sequence[Sequence[Edit]]) -> list[tuple[Edit, list[int] | None]]:
    """Each row's edits in their order, those that several rows have as their n-th only once."""
    found: list[tuple[Edit, list[int] | None]] = []
    for number in range(max(map(len, edits), default=0)):
        rows: dict[Edit, list[int]] = {}
        for row, own in enumerate(edits):
            if number < len(own):
                rows.setdefault(own[number], []).append(row)
        everyone = len(edits)
        found += [(edit, None if len(at) == everyone else at) for edit, at in rows.items()]
    return found


def _edited(
    edit: Edit, value: Tensor, places: Places, allowed: Tensor | None, heads: Heads
) -> Tensor:
    """The value after an edit of all rows; zero where it is not allowed."""
    changed = edit.apply(value, places, heads)
    return changed if allowed is None else changed.masked_fill(~allowed, 0.0)


def _edited_in_rows(
    edit: Edit,
    rows: Sequence[int],
    value: Tensor,
    places: Places,
    allowed: Tensor | None,
    heads: Heads,
) -> Tensor:
    """The value after an edit of some rows of the batch; the others go on as they are."""
    named = torch.tensor(rows, device=value.device)
    index = torch.isin(places.rows_B, named).nonzero()[:, 0]
    if allowed is not None and len(allowed) > 1:
        allowed = allowed[index]
    part = _edited(edit, value[index], places.take(index), allowed, heads)
    return value.index_copy(0, index, part)


def _fitted(pattern: Tensor, num_keys: int) -> Tensor:
    """A pattern over so many keys: cut, or followed by zeros."""
    short = max(0, num_keys - pattern.shape[-1])
    return torch.nn.functional.pad(pattern, (0, short))[..., :num_keys]


def width_of(point: str, config: ModelConfig) -> int | None:
    """How wide the last axis of a point is; None for the pattern, where it grows with the text."""
    if point == PATTERN:
        return None
    widths = {"attention.heads": config.head_dim, "logits": config.vocab_size}
    return widths.get(point, config.width)


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
