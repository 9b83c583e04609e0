"""Where chat templates run: Jinja that reaches nothing of Python's, for a short time.

A template is a program that came with a model. It may be broken or hostile: loop for hours, or
build a text of gigabytes. Every turn of a loop and every call of a macro looks at the clock here,
which counts the time of this thread only, since a busy machine is no fault of a template; and what
makes long texts of short ones is bounded or left out.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, NoReturn

from jinja2 import Template, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from stepwell.errors import TemplateError

SECONDS: Final = 1.0
CHARACTERS: Final = 2**20
STRETCHING: Final = frozenset(
    {"center", "expandtabs", "format", "format_map", "ljust", "rjust", "zfill"}
)
WIDE_FIELD: Final = re.compile(r"%[^a-zA-Z%]*(\d{4,}|\*)")

_deadline: ContextVar[float] = ContextVar("deadline")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of chat templates, with what transformers gives them."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        for name in ("center", "format", "indent"):
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters |= {"tojson": _to_json, "replace": _replaced, "join": self._joined}
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = datetime.now().strftime

    def run(self, source: str, values: Mapping[str, Any]) -> str:
        """What a template writes. Raises TemplateError past its time or room, or as it raises."""
        entered = _deadline.set(time.thread_time() + SECONDS)
        try:
            pieces, length = [], 0
            for piece in self._compiled(source).generate(values):
                self.tick()
                pieces.append(piece)
                length += len(piece)
                _check_length(length)
            return "".join(pieces)
        finally:
            _deadline.reset(entered)

    @functools.lru_cache(maxsize=16)  # noqa: B019  # there is one sandbox
    def _compiled(self, source: str) -> Template:
        return self.from_string(source)

    # -- what templates call, knowingly or not ---------------------------------------------------

    def tick(self) -> None:
        """Raises TemplateError once the thread's time is over."""
        if time.thread_time() > _deadline.get():
            raise TemplateError(
                f"The chat template took more than {SECONDS:g} s.", fix="give another one."
            )

    def concatenated(self, *parts: object) -> str:
        """The operator ~."""
        return _join("", parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The value of an operation, where that is no longer than a template may write."""
        if operator == "**" and not (abs(left) <= 1000 and 0 <= right <= 20):
            raise TemplateError("The chat template asks for a number that is too large.")
        if operator == "%" and isinstance(left, str) and WIDE_FIELD.search(left):
            raise TemplateError("The chat template asks for a field that is too wide.")
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_length(len(left) + len(right))
        if operator == "*":
            sizes = [len(side) if hasattr(side, "__len__") else abs(side) for side in (left, right)]
            _check_length(sizes[0] * sizes[1])
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """The value of a call; of a text's `replace` and `join`, where it is not too long."""
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return _replaced(owner, *args, **kwargs)
        if isinstance(owner, str) and name == "join":
            return _join(owner, *args)
        return super().call(context, obj, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Not what Python keeps to itself, and not what stretches a text."""
        return attr not in STRETCHING and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Nothing; raises TemplateError for a text's `format`, which can make any text as long."""
        if super().wrap_str_format(value) is not None:
            raise TemplateError("The chat template calls format, which no template may.")

    def _joined(self, values: Iterable[Any], by: str = "", attribute: str | None = None) -> str:
        parts = values if attribute is None else [self.getattr(each, attribute) for each in values]
        return _join(by, parts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        bounded: nodes.Template = _Bounds().visit(tree, self)
        return bounded


class _Bounds(NodeTransformer):
    """Puts a look at the clock in every loop and macro, and a bound on the operator ~."""

    def generic_visit(self, node: nodes.Node, sandbox: Sandbox) -> nodes.Node:
        """The node that takes the place of this one, which is looked through."""
        seen = super().generic_visit(node, sandbox)
        if isinstance(seen, nodes.Concat):
            return _call("concatenated", seen.nodes, seen.lineno, sandbox)
        if isinstance(seen, nodes.For | nodes.Macro | nodes.CallBlock):
            looking = nodes.ExprStmt(_call("tick", [], seen.lineno, sandbox))
            seen.body.insert(0, looking.set_lineno(seen.lineno).set_environment(sandbox))
        return seen


class _Generation(Extension):
    """{% generation %}, with which some templates mark what an assistant says: it is left as is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _call(name: str, arguments: list[nodes.Expr], line: int, environment: Sandbox) -> nodes.Call:
    """A call of the sandbox's own method, which no template can put another in the place of."""
    call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
    call.set_lineno(line).set_environment(environment)
    return call


def _check_length(length: int) -> None:
    """Nothing; raises TemplateError where something is longer than a template may write."""
    if length > CHARACTERS:
        raise TemplateError(
            f"The chat template makes a text of more than {CHARACTERS:,} characters.",
            fix="shorten the messages, or give another template.",
        )


def _join(by: str, parts: Iterable[object]) -> str:
    texts = [str(part) for part in parts]
    _check_length(sum(map(len, texts)) + len(by) * len(texts))
    return by.join(texts)


def _replaced(text: object, old: str, new: str, count: int | None = None) -> str:
    whole, times = str(text), -1 if count is None else count
    _check_length(len(whole) + whole.count(old) * len(new))
    return whole.replace(old, new, times)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """As transformers has it: no HTML escapes, no ASCII."""
    return json.dumps(value, ensure_ascii=False, indent=min(indent or 0, 8) or None, **options)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(
        f"The chat template refuses these messages: {message}", fix="check the order of the roles."
    )
