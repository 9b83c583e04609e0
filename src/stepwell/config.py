"""Configurations: how values that come from outside are read, merged, saved and hashed.

Owns the base class `Config` and everything that turns files and `key=value` strings into one. Knows
nothing of models, tasks or flags: those are subclasses elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, get_args

import pydantic
import yaml

from stepwell.errors import ConfigError, suggest


class Config(pydantic.BaseModel):
    """A frozen set of named values. Unknown keys and values of a wrong kind are a `ConfigError`."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise ConfigError(explain(error, type(self))) from None

    # Pydantic then validates nested configurations without calling their __init__, so that an error
    # knows its whole path, and a union tries its next member.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def parse(cls, values: Any, *, where: str = "") -> Self:
        """An instance from a mapping (of YAML or JSON); `where` names its source in errors."""
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{where or cls.__name__}: expected keys and values, got {type(values).__name__}."
            )
        try:
            return cls(**{str(key): value for key, value in values.items()})
        except ConfigError as error:
            prefix = f"{where}: " if where else ""
            raise ConfigError(prefix + error.problem, fix=error.fix) from None

    def changed(self, **values: Any) -> Self:
        """A copy with some fields replaced, validated like a new one."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **values})

    def plain(self) -> dict[str, Any]:
        """The values as plain Python that JSON and YAML can hold."""
        return self.model_dump(mode="json")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the values, independent of the order in which they were given."""
        return fingerprint(self.plain())


def fingerprint(value: Any) -> str:
    """SHA-256, in hexadecimal, of the canonical JSON of a plain value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def explain(error: pydantic.ValidationError, kind: type[pydantic.BaseModel]) -> str:
    """One fault of a validation error, in a sentence that names the field and the fix.

    An unknown key before all others: what else is missing is often that key. Then the first field's
    fault that goes deepest: each member of a union has its own, and the nearest gets furthest.
    """
    faults = error.errors(include_url=False)
    unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"]
    first = [fault for fault in faults if fault["loc"][:1] == faults[0]["loc"][:1]]
    fault = max(unknown or first, key=lambda fault: len(fault["loc"]))
    # pydantic adds the types of a union's members to the path, such as tuple[int, ...]
    field = ".".join(str(part) for part in fault["loc"] if "[" not in str(part))
    if fault["type"] == "extra_forbidden":
        hint = suggest(str(fault["loc"][-1]), _fields_at(kind, fault["loc"][:-1]))
        return f"{kind.__name__} has no field {field!r}. {hint}"
    if fault["type"] == "missing":
        return f"{kind.__name__} needs a value for {field!r}."
    reason = fault["msg"].removeprefix("Value error, ").rstrip(".")
    if not field:
        return f"{kind.__name__}: {reason}."
    shown = repr(fault["input"])
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{kind.__name__}.{field} is {shown}: {reason}."


def _fields_at(kind: type[pydantic.BaseModel], path: tuple[int | str, ...]) -> set[str]:
    """Names of the fields of the (possibly nested) model that the path of a fault leads to."""
    kinds = [kind]
    for part in path:
        fields = [inner.model_fields[str(part)] for inner in kinds if part in inner.model_fields]
        if fields:
            kinds = [model for field in fields for model in _models_in(field.annotation)]
        else:  # the index in a list, a key of a mapping, or the member of a union by its name
            kinds = [inner for inner in kinds if inner.__name__ == part] or kinds
    return {field.alias or name for inner in kinds for name, field in inner.model_fields.items()}


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    """The models that a type such as `tuple[A | None, ...]` is made of."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def merge(base: Mapping[str, Any], *assignments: str) -> dict[str, Any]:
    """A copy of nested values with each `a.b=value` applied; values are read as YAML.

    Raises ConfigError where an assignment has no `=` or leads through something that is no mapping.
    """
    merged: dict[str, Any] = json.loads(json.dumps(base))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(
                f"--set {assignment!r}: expected key=value, for example optimizer.lr=3e-4."
            )
        *parents, last = path.replace("-", "_").split(".")
        inner = merged
        for parent in parents:
            if inner.get(parent) is None:
                inner[parent] = {}
            inner = inner[parent]
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"--set {assignment!r}: {parent!r} is a single value, not a group."
                )
        try:
            inner[last] = _scalar(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {assignment!r}: {text!r} is not valid YAML.") from None
    return merged


_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def _scalar(text: str) -> Any:
    """`text` as YAML reads it, but with 3e-4 a number (YAML 1.1 wants 3.0e-4)."""
    value = yaml.safe_load(text)
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML (or JSON) file. Raises ConfigError that names file and line."""
    path = Path(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}."
        raise ConfigError(problem, fix="check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML.", fix="correct the file.") from None


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises ConfigError that names file and line."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.", fix="check the path.") from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}, line {error.lineno}: not valid JSON.", fix="correct the file."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text.", fix="correct the file.") from None


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file whole or not at all: to a temporary neighbour, flushed, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_yaml(path: str | Path, values: Mapping[str, Any]) -> None:
    """Save plain values as YAML, atomically, keys in the order given."""
    write_atomically(path, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))


def write_json(path: str | Path, values: Any) -> None:
    """Save a plain value as indented JSON, atomically."""
    write_atomically(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
