"""Flags made of configuration models: one for each field, with its help, type and default.

Owns the way from a pydantic field to a flag and from the flags that were given back to nested
values. What is allowed in a field is checked by the model, when it is made of these values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import yaml
from cyclopts import Group, Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stepwell.errors import UsageError

SIMPLE: Final = (bool, int, float, str, Path)
METAVARS: Final[Mapping[Any, str]] = {
    int: "N",
    float: "X",
    str: "TEXT",
    Path: "PATH",
    tuple[int, ...]: "N",
    tuple[str, ...]: "TEXT",
}


@dataclass(frozen=True)
class Flag:
    """A flag, as the parameter of a command, and the field that it sets: ("optimizer", "lr")."""

    parameter: inspect.Parameter
    field: tuple[str, ...]
    takes_yaml: bool = False


def model_flags(
    model: type[BaseModel],
    group: Group,
    *,
    at: tuple[str, ...] = (),
    names: Mapping[str, tuple[str, ...]] | None = None,
    without: Collection[str] = (),
    show_defaults: bool = True,
) -> list[Flag]:
    """A flag for each field of the model but those in `without`; it is passed where it is given.

    at: where the model is in the configuration. names: flags that are not called after their
    field, such as {"n": ("-n", "--n")}; a flag's parameter is named after the last of them.
    """
    return [
        _flag(
            field,
            (*at, name),
            group,
            (names or {}).get(name, (_spelled(name),)),
            show_defaults,
        )
        for name, field in model.model_fields.items()
        if name not in without
    ]


def with_flags(
    body: Callable[..., Any], flags: Iterable[Flag], *, without: Collection[str] = ()
) -> Callable[..., Any]:
    """`body`, with the flags in the place of its `**given`, and without some parameters."""
    signature = inspect.signature(body, eval_str=True)
    own = [
        parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name not in without
    ]
    parameters = [*own, *(flag.parameter for flag in flags)]
    body.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    body.__annotations__ = {p.name: p.annotation for p in parameters}
    return body


def given_values(flags: Iterable[Flag], given: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of the flags that were given: {"optimizer": {"lr": 3e-4}, "steps": 5}."""
    values: dict[str, Any] = {}
    for flag in flags:
        if flag.parameter.name not in given:
            continue
        value = given[flag.parameter.name]
        inner = values
        for parent in flag.field[:-1]:
            inner = inner.setdefault(parent, {})
        inner[flag.field[-1]] = _read_yaml(flag, value) if flag.takes_yaml else value
    return values


def _flag(
    field: FieldInfo,
    path: tuple[str, ...],
    group: Group,
    spelled: tuple[str, ...],
    show_default: bool,
) -> Flag:
    kind = simple_type(field.annotation)
    known = str if kind is None else kind
    default = None
    if kind is not None and not field.is_required():
        default = field.get_default(call_default_factory=True)
    parameter = Parameter(
        name=spelled,
        help=_sentence(field.description or ""),
        group=group,
        metavar=METAVARS.get(known) if kind else "YAML",
        show_default=_shown(default) if show_default else False,
        negative=None if kind is bool else (),
    )
    return Flag(
        inspect.Parameter(
            spelled[-1].lstrip("-").replace("-", "_"),
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[known if default is not None else known | None, parameter],
        ),
        path,
        takes_yaml=kind is None,
    )


def simple_type(annotation: Any) -> Any:
    """The type that a flag is read as: int for `Annotated[int, ...] | None`. None where YAML is."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if annotation in SIMPLE or get_origin(annotation) is Literal:
        return annotation
    arguments = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType) and NoneType in arguments:
        others = [argument for argument in arguments if argument is not NoneType]
        return simple_type(others[0]) if len(others) == 1 else None
    if get_origin(annotation) is tuple and arguments[1:] == (...,):
        element = simple_type(arguments[0])
        return None if element is None else tuple[element, ...]  # type: ignore[valid-type]
    return None


def _shown(default: Any) -> str | bool:
    """What help says of a default; nothing where it is off, empty or not there."""
    if isinstance(default, bool):
        return "on" if default else False
    if default in (None, "", ()):
        return False
    if isinstance(default, tuple):
        return ", ".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _sentence(text: str) -> str:
    """The text with a full stop at its end, and a capital where it begins with a word."""
    begin = text.partition(" ")[0]
    capital = text[:1].upper() if begin.isalpha() else text[:1]
    return f"{capital}{text[1:].removesuffix('.')}." if text else ""


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")


def _read_yaml(flag: Flag, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        name = _spelled(flag.parameter.name)
        raise UsageError(
            f"{name} {text!r} is not valid YAML.", fix=f"write it like {name} '{{key: value}}'."
        ) from None
