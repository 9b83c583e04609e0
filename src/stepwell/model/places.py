"""Positions by name: which tokens of a row a hook is about, as data, and where tokens stand.

    "all"                    every position
    "prompt", "generated"    those of the prompt; those of the answer
    "last"                   the prompt's last one, from which the answer's first token comes
    [0, 5, -1]               by number, from the start of the row; negative: from the prompt's end
    {"start": 2, "stop": 8}  2 to 7; without a stop, to the end
    {"tokens": [17]}         wherever one of these token ids was read

A position is where a token is read. The last token of an answer is never read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Discriminator, Field, Tag
from torch import Tensor

from stepwell.config import Config
from stepwell.errors import HookError


class Range(Config):
    """Positions from `start` up to, not including, `stop`; to the end where there is none."""

    start: Annotated[int, Field(ge=0)] = 0
    stop: Annotated[int, Field(ge=0)] | None = None


class Tokens(Config):
    """Positions at which one of these token ids is read."""

    tokens: tuple[Annotated[int, Field(ge=0)], ...]


def _from_range(value: Any) -> Any:
    """A Range from Python's own."""
    if isinstance(value, range) and value.step == 1 and value.start >= 0:
        return Range(start=value.start, stop=value.stop)
    return value


def _kind(value: Any) -> str:
    """Which form of a selection a value has: so that an error is about that one."""
    if isinstance(value, Tokens) or (isinstance(value, Mapping) and "tokens" in value):
        return "tokens"
    if isinstance(value, Range | Mapping):
        return "range"
    return "name" if isinstance(value, str) else "list"


Positions = Annotated[
    Annotated[Literal["all", "prompt", "generated", "last"], Tag("name")]
    | Annotated[tuple[int, ...], Tag("list")]
    | Annotated[Range, Tag("range")]
    | Annotated[Tokens, Tag("tokens")],
    Discriminator(_kind),
    BeforeValidator(_from_range),
]


def covers(positions: Positions, position: Any, token: Any, num_prompt: Any) -> Any:
    """Whether a selection has a position, for ints; for tensors that broadcast, elementwise.

    token: the id that is read there. num_prompt: tokens of the row's prompt.
    """
    match positions:
        case "all":
            return position >= 0
        case "prompt":
            return position < num_prompt
        case "generated":
            return position >= num_prompt
        case "last":
            return position == num_prompt - 1
        case Range(start=start, stop=None):
            return position >= start
        case Range(start=start, stop=stop):
            return (position >= start) & (position < stop)
        case Tokens(tokens=ids):
            return reduce(or_, (token == each for each in ids), position < 0)
    found = (position == absolute(each, num_prompt) for each in positions)
    return reduce(or_, found, position < 0)


def absolute(index: int, num_prompt: Any) -> Any:
    """A position by its number, which counts from the prompt's end where it is negative."""
    return index if index >= 0 else num_prompt + index


def needs_prompt(positions: Positions) -> bool:
    """Whether a selection depends on how long the prompt is."""
    if isinstance(positions, tuple):
        return any(each < 0 for each in positions)
    return positions in ("prompt", "generated", "last")


def indexes(positions: Positions) -> tuple[int, ...] | None:
    """The numbers of the positions, in their order; None where they are not numbered."""
    if isinstance(positions, Range) and positions.stop is not None:
        return tuple(range(positions.start, positions.stop))
    return positions if isinstance(positions, tuple) else None


def is_nowhere(positions: Positions) -> bool:
    """Whether a selection has no position, in any text."""
    return indexes(positions) == () or (isinstance(positions, Tokens) and not positions.tokens)


@dataclass(frozen=True)
class Places:
    """Where the tokens of a forward stand: positions_BT in their rows, and the ids read there.

    rows: which row of the batch each row of these is; 0 to B - 1 where None. num_prompt_B1: tokens
    of each row's prompt, None where that is not known.
    """

    positions_BT: Tensor  # noqa: N815
    ids_BT: Tensor | None = None  # noqa: N815
    num_prompt_B1: Tensor | None = None  # noqa: N815
    rows: Tensor | None = None

    @property
    def rows_B(self) -> Tensor:  # noqa: N802
        """Which row of the batch each row is, int64 [B]."""
        if self.rows is not None:
            return self.rows
        return torch.arange(len(self.positions_BT), device=self.positions_BT.device)

    def take(self, rows: Tensor) -> Places:
        """The places of some of these rows, all their columns."""
        ids, prompts = self.ids_BT, self.num_prompt_B1
        return Places(
            self.positions_BT[rows],
            None if ids is None else ids[rows],
            None if prompts is None else prompts[rows],
            self.rows_B[rows],
        )

    def select(self, rows: Tensor, columns: Tensor) -> Places:
        """Single tokens of these, [N, 1]: those at rows[n], columns[n]."""
        ids, prompts = self.ids_BT, self.num_prompt_B1
        return Places(
            self.positions_BT[rows, columns][:, None],
            None if ids is None else ids[rows, columns][:, None],
            None if prompts is None else prompts[rows],
            self.rows_B[rows],
        )

    def chosen(self, positions: Positions) -> Tensor:
        """Which tokens a selection has, bool [B, T]. Raises HookError where that is not known."""
        ids, num_prompt = self.ids_BT, self.num_prompt_B1
        if num_prompt is None and needs_prompt(positions):
            raise HookError(
                f"Positions {positions!r} depend on the prompt, whose length is not known here.",
                fix="say where it ends: Hooks(..., prompt_lengths=[...]), one number a row.",
            )
        if ids is None and isinstance(positions, Tokens):
            raise HookError("Positions by token need the token ids.", fix="give Places the ids.")
        found: Tensor = covers(positions, self.positions_BT, ids, num_prompt)
        return found
