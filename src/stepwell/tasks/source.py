"""The code of a class as text, so that data made by other code gets another fingerprint."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import textwrap
import tokenize
from types import CodeType, FunctionType
from typing import Any

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
CONSTANTS = (str, bytes, int, float, bool, tuple, type(None))


def code_of(kind: type) -> str:
    """The source that defines `kind`, without comments, docstrings and blank lines.

    A class that was typed at a prompt has no source file: there the compiled instructions of its
    functions stand in, which change with the Python version as well.
    """
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return _compiled(kind)
    return essential(textwrap.dedent(source))


def essential(source: str) -> str:
    """`source` without comments, docstrings and blank lines.

    Cut out of the text, not printed from the syntax tree: every Python version prints another way.
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            first, last = node.body[0].lineno, node.body[0].end_lineno or node.body[0].lineno
            lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _compiled(kind: type) -> str:
    """The instructions of every function in the body of `kind`, and its constants."""
    parts = [kind.__qualname__]
    for name, member in vars(kind).items():
        function = _function(member)
        if function is not None:
            parts.append(f"{name}: {_instructions(function.__code__)}")
        elif isinstance(member, CONSTANTS) and not name.startswith("__"):
            parts.append(f"{name} = {member!r}")
    return "\n".join(parts)


def _function(member: Any) -> FunctionType | None:
    """The function behind a method, a static or class method, or a (cached) property."""
    if isinstance(member, property):
        member = member.fget
    elif isinstance(member, functools.cached_property):
        member = member.func
    member = inspect.unwrap(getattr(member, "__func__", member))
    return member if isinstance(member, FunctionType) else None


def _instructions(code: CodeType) -> str:
    """Instructions, names and constants of `code`, without file names, lines and addresses."""
    constants = [_constant(value) for value in code.co_consts]
    return repr((code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars))


def _constant(value: object) -> str:
    """One constant as text that does not depend on the order of a set."""
    if isinstance(value, CodeType):
        return _instructions(value)
    if isinstance(value, frozenset):
        return repr(sorted(map(repr, value)))
    return repr(value)
