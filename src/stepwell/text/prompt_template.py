"""Prompt templates: named texts with places for the fields of a row, several models a task.

    format_version: 1
    templates:
      sums:
        fields: [question]
        text: "Q: {question}\\nA:"
        system: You calculate.                    # optional
        models:                                   # optional: other words for some models
          qwen*: "{question}"
          llama*: {text: "Problem: {question}", system: ""}

A place is {field}; {{ and }} are braces. Owns the file and how a row fills the places: a template
runs nothing, and what a row holds is never read as a template. Knows no tokenizer; how messages
become tokens is the business of `chat`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any, Final, Self

from pydantic import Field

from stepwell.config import Config, fingerprint, read_yaml
from stepwell.errors import ConfigError, FormatError, PromptError, suggest
from stepwell.text.messages import Message

FORMAT_VERSION: Final = 1
_BRACES: Final = "write {field} for a place, and {{ }} for braces."


class ModelWords(Config):
    """What one model is told; None leaves the system message as it is for all."""

    text: str
    system: str | None = None


class TemplateEntry(Config):
    """A template as a file has it."""

    fields: tuple[str, ...]
    text: str
    system: str = ""
    models: dict[str, str | ModelWords] = Field(default_factory=dict)


class TemplateFile(Config):
    """What a file of templates holds."""

    format_version: int
    templates: dict[str, TemplateEntry]


@dataclass(frozen=True)
class PromptTemplate:
    """A text with places for declared fields. Raises ConfigError for a place that is none of them.

    system: what is said before; it may have places too.
    """

    name: str
    fields: tuple[str, ...]
    text: str
    system: str = ""

    def __post_init__(self) -> None:
        for part, template in (("text", self.text), ("system", self.system)):
            for _, place in _pieces(template, f"Template {self.name!r}, {part}"):
                if place and place not in self.fields:
                    raise ConfigError(
                        f"Template {self.name!r}, {part}: {{{place}}} is not one of its fields. "
                        + suggest(place, self.fields),
                        fix=f"declare it under fields; {_BRACES}",
                    )

    @property
    def places(self) -> frozenset[str]:
        """The fields that text or system have a place for."""
        pieces = (*_pieces(self.text, self.name), *_pieces(self.system, self.name))
        return frozenset(place for _, place in pieces if place)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides what is rendered; the name does not."""
        return fingerprint([FORMAT_VERSION, sorted(self.fields), self.system, self.text])

    def render(
        self, row: Mapping[str, Any] | None = None, /, *, strict: bool = False, **fields: Any
    ) -> str:
        """The prompt: the filled system message and an empty line, where there is one; the text.

        A row may hold more than the declared fields, unless `strict`. Numbers are written as Python
        does. Raises PromptError for a field that is missing or is neither text nor number.
        """
        return "\n\n".join(
            message.content for message in self.messages(row, strict=strict, **fields)
        )

    def messages(
        self, row: Mapping[str, Any] | None = None, /, *, strict: bool = False, **fields: Any
    ) -> list[Message]:
        """The same for a chat: the system message, where there is one, and the text as the user's.

        Raises as `render` does.
        """
        given = {**(row or {}), **fields}
        if strict:
            self._refuse_others(given)
        values = {field: self._value(field, given) for field in self.fields}
        user = Message("user", _filled(self.text, values))
        return [Message("system", _filled(self.system, values)), user] if self.system else [user]

    def _refuse_others(self, given: Iterable[str]) -> None:
        for key in given:
            if key not in self.fields:
                raise PromptError(
                    f"Template {self.name!r} has no field {key!r}. {suggest(key, self.fields)}"
                )

    def _value(self, field: str, given: Mapping[str, Any]) -> str:
        """The text that fills the places of a field."""
        if field not in given:
            others = [key for key in given if key not in self.fields]
            problem = f"Template {self.name!r} needs the field {field!r}."
            raise PromptError(f"{problem} {_given(field, others)}".rstrip())
        value = given[field]
        if not isinstance(value, str | int | float):
            raise PromptError(
                f"Template {self.name!r}: the field {field!r} is of type {type(value).__name__},"
                " expected text or a number.",
            )
        return str(value)


class PromptTemplates:
    """The templates of a file, by task and by model."""

    def __init__(self, file: TemplateFile, where: str) -> None:
        self._where = where
        self._variants = {name: _variants(name, entry) for name, entry in file.templates.items()}
        if not self._variants:
            raise ConfigError(f"{where} holds no template.")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The templates of a YAML file.

        Raises ConfigError that names the template at fault, FormatError for a newer file.
        """
        values = read_yaml(path)
        version = values.get("format_version") if isinstance(values, Mapping) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise FormatError(
                f"{path} has format_version {version}, this reads up to {FORMAT_VERSION}.",
                fix="update stepwell.",
            )
        file = TemplateFile.parse(values, where=str(path))
        try:
            return cls(file, str(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.problem}", fix=error.fix) from None

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks that there are templates for, in the order of the file."""
        return tuple(self._variants)

    def get(self, task: str = "", model: str = "") -> PromptTemplate:
        """The template of a task in the words for a model; the only one where none is named.

        Of the patterns under `models` the first counts that fits the model's name, or the last part
        of it; upper and lower case are the same. Raises ConfigError where there is no such task.
        """
        if not task and len(self.names) == 1:
            task = self.names[0]
        if task not in self._variants:
            problem = f"{self._where} has no template {task!r}. " if task else "Which template? "
            raise ConfigError(problem + suggest(task, self.names))
        patterns = self._variants[task]
        name = model.lower().rstrip("/")
        for pattern, template in patterns.items():
            if pattern and any(fnmatchcase(each, pattern) for each in (name, Path(name).name)):
                return template
        return patterns[""]


def _variants(name: str, entry: TemplateEntry) -> dict[str, PromptTemplate]:
    """The template for each pattern of a model's name, in order; "" is that of all others.

    Raises ConfigError for a field without a place, which would be asked of every row for nothing.
    """
    if "" in entry.models:
        raise ConfigError(f"Template {name!r}, models: a pattern is empty.")
    found = {"": PromptTemplate(name, entry.fields, entry.text, entry.system)}
    for pattern, words in entry.models.items():
        own = ModelWords(text=words) if isinstance(words, str) else words
        system = entry.system if own.system is None else own.system
        template = PromptTemplate(f"{name} for {pattern}", entry.fields, own.text, system)
        found[pattern.lower()] = template
    used = frozenset[str]().union(*(template.places for template in found.values()))
    for field in entry.fields:
        if field not in used:
            raise ConfigError(
                f"Template {name!r} declares the field {field!r}, which has no place in its text.",
                fix=f"leave it out of fields, or write {{{field}}} where it shall stand.",
            )
    return found


def _pieces(template: str, where: str) -> list[tuple[str, str]]:
    """(text, the field after it) in order; "" for the field after the last text.

    Raises ConfigError for what is no place: {}, {a.b}, {a[0]}, {a!r}, {a:x}, or a lone brace.
    """
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}.", fix=_BRACES) from None
    for _, field, form, conversion in parsed:
        if field is not None and (not field.isidentifier() or form or conversion):
            written = (
                field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            )
            raise ConfigError(f"{where}: {{{written}}} is no name of a field.", fix=_BRACES)
    return [(text, field or "") for text, field, _, _ in parsed]


def _filled(template: str, values: Mapping[str, str]) -> str:
    pieces = _pieces(template, "template")
    return "".join(text + (values[field] if field else "") for text, field in pieces)


def _given(field: str, others: list[str]) -> str:
    """What a row has instead of a field: the nearest of its keys, or all of them."""
    return suggest(field, others).replace("Known:", "The row has:") if others else ""
