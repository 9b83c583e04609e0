"""What a sweep varies: fields of a training configuration, each over values or over a range.

    num_layers=2,3,4     num_layers=2..4     lr=log:1e-4..1e-2     optimizer.lr=1e-3,3e-3

Owns this notation, the way from a name to a field, and the names of trials. Pure.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from stepwell.config import Config, fingerprint, merge
from stepwell.errors import UsageError, suggest
from stepwell.model.config import ModelConfig
from stepwell.train.config import TrainerConfig

MOST_TRIALS: Final = 10_000
LONGEST_NAME: Final = 120
PARTS: Final = ("optimizer", "model", "task")
SPELLED: Final[Mapping[str, tuple[str, ...]]] = {
    "preset": ("model",),
    "data_seed": ("task", "seed"),
    "dtype": ("precision",),
}
"""Flags of training that are not called after their field."""

NOT_VARIED: Final = frozenset({"run_name", "runs", "keep_checkpoints", "threads", "device"})
"""Fields that say where a run is computed and kept."""

RANGE: Final = re.compile(r"(log:)?(.+?)\.\.(.+)")
EXAMPLE: Final = "write it like num_layers=2,3,4, num_layers=2..4 or lr=log:1e-4..1e-2."

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """One of some values, in the order given."""

    values: tuple[Any, ...]

    @property
    def plain(self) -> list[Any]:
        """As it is kept in a file."""
        return list(self.values)


@dataclass(frozen=True)
class Span:
    """The numbers from `low` to `high`, both included; `log`: even in their logarithm."""

    low: float
    high: float
    log: bool
    whole: bool

    @property
    def plain(self) -> str:
        """As it is written, and kept in a file."""
        return f"{'log:' if self.log else ''}{self.low:g}..{self.high:g}"


Axis = Choice | Span


def parse_axes(assignments: Sequence[str]) -> dict[str, str]:
    """The text of each axis by name, from words such as "num_layers=2,3". Raises UsageError."""
    axes: dict[str, str] = {}
    for word in assignments:
        name, equals, text = word.partition("=")
        if not equals or not name or not text:
            raise UsageError(f"{word!r} says not what to vary and how.", fix=EXAMPLE)
        if _named(name) in axes:
            raise UsageError(f"{name} is varied twice.", fix="put all its values into one.")
        axes[_named(name)] = text
    return axes


def parse_axis(name: str, given: str | Sequence[Any]) -> Axis:
    """The axis that a text or a list of values stands for. Raises UsageError."""
    if not isinstance(given, str):
        return _choice(name, list(given))
    match = RANGE.fullmatch(given)
    if match is None:
        return _choice(name, [_value(part) for part in given.split(",")])
    low, high = _value(match[2]), _value(match[3])
    if not all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high)):
        raise UsageError(f"{name}={given}: the ends of a range are numbers.", fix=EXAMPLE)
    if low >= high or (match[1] and low <= 0):
        problem = f"{name}={given} is an empty range, or not one of logarithms."
        raise UsageError(problem, fix=EXAMPLE)
    whole = isinstance(low, int) and isinstance(high, int)
    return Span(low, high, log=bool(match[1]), whole=whole)


def grid_values(axes: Mapping[str, Axis]) -> list[dict[str, Any]]:
    """Every combination of the axes' values, the last axis changing fastest. Raises UsageError."""
    listed = {name: _listed(name, axis) for name, axis in axes.items()}
    count = math.prod(map(len, listed.values()))
    if count > MOST_TRIALS:
        raise UsageError(f"A grid of {count:,} trials.", fix="give fewer values, or use --search.")
    return [
        dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())
    ]


def field_path(name: str, config: TrainerConfig) -> tuple[str, ...]:
    """Where in the configuration the field of this name is: ("optimizer", "lr").

    Raises UsageError where there is none, or none that changes what is computed.
    """
    word = _named(name)
    first, *rest = word.split(".")
    if word in SPELLED:
        return SPELLED[word]
    if word in NOT_VARIED:
        raise UsageError(f"{name} changes nothing that is computed.", fix="vary another field.")
    if first in type(config).model_fields:
        return _checked(name, (first, *rest), config)
    found = [part for part in PARTS if first in type(getattr(config, part)).model_fields]
    if not found:
        near = suggest(word, _known_fields(config))
        raise UsageError(f"Training has no field {name!r}.", fix=near)
    return _checked(name, (found[0], first, *rest), config)


def configured(base: TrainerConfig, values: Values) -> TrainerConfig:
    """The configuration with the fields set that the values name. Raises ConfigError.

    A preset replaces the whole shape; what follows from a changed size is derived anew.
    """
    fields = {field_path(name, base): value for name, value in values.items()}
    base = base.changed(**{path[0]: value for path, value in fields.items() if len(path) == 1})
    parts: dict[str, Any] = {}
    for path, value in fields.items():
        place = parts
        for parent in path[:-1]:
            place = place.setdefault(parent, {})
        if len(path) > 1:
            place[path[-1]] = value
    return base.changed(**{name: _with(getattr(base, name), parts[name]) for name in parts})


def trial_name(values: Values) -> str:
    """A name for a folder that says the values: `num_layers=2+lr=0.001`."""
    parts = {name: _written(value) for name, value in values.items()}
    name = "+".join(f"{_named(key)}={text}" for key, text in parts.items())
    whole = all(text == _full(values[key]) for key, text in parts.items())
    if whole and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}+{fingerprint(dict(values))[:6]}"


def _with(part: Any, changes: Mapping[str, Any]) -> Any:
    """A part of the configuration with fields changed; a new one where it has not been there."""
    if isinstance(part, ModelConfig):
        return part.resized(**changes)
    return part.changed(**changes) if isinstance(part, Config) else dict(changes)


def _checked(name: str, path: tuple[str, ...], config: TrainerConfig) -> tuple[str, ...]:
    """The path, if its second word is a field of its first."""
    part = getattr(config, path[0])
    if len(path) > 1 and isinstance(part, Config) and path[1] not in type(part).model_fields:
        near = suggest(path[1], type(part).model_fields)
        raise UsageError(f"Training has no field {name!r}.", fix=near)
    if len(path) == 1 and isinstance(part, Config) and path[0] == "optimizer":
        raise UsageError(f"{name} is a group of fields.", fix="vary one, such as optimizer.lr.")
    return path


def _known_fields(config: TrainerConfig) -> set[str]:
    kinds = [type(config), *(type(getattr(config, part)) for part in PARTS)]
    return {name for kind in kinds for name in kind.model_fields} - NOT_VARIED


def _choice(name: str, values: Sequence[Any]) -> Choice:
    distinct = [value for at, value in enumerate(values) if value not in values[:at]]
    if not distinct or None in distinct:
        raise UsageError(f"{name} has no values to vary.", fix=EXAMPLE)
    return Choice(tuple(distinct))


def _listed(name: str, axis: Axis) -> tuple[Any, ...]:
    if isinstance(axis, Choice):
        return axis.values
    if axis.whole and not axis.log:
        return tuple(range(int(axis.low), int(axis.high) + 1))
    raise UsageError(
        f"{name}={axis.plain} is a range without steps, which no grid can try.",
        fix=f"list its values, or use --search {name}={axis.plain}.",
    )


def _value(text: str) -> Any:
    return merge({}, f"value={text.strip()}")["value"]


def _named(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _full(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _written(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "-", _full(value))
