"""What went wrong, in the words and with the exit code that the command line promises.

The one place that translates exceptions: stepwell's own tree, cyclopts' complaints about a command
line, what the operating system refuses, and everything that nobody expected.

    0 done    1 failure    2 the command line cannot be meant so    130 interrupted (Ctrl-C)
"""

from __future__ import annotations

import difflib
import json
import os
import tempfile
import traceback
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cyclopts import CycloptsError, UnknownCommandError, UnknownOptionError
from cyclopts.exceptions import UnusedCliTokensError
from rich.text import Text

from stepwell.cli.console import Output
from stepwell.errors import StepwellError, suggest

INTERRUPTED: Final = 130


@dataclass(frozen=True)
class Fault:
    """One problem: what it is, what to do about it, how the process ends."""

    kind: str
    problem: str
    fix: str = ""
    exit_code: int = 1


def show(fault: Fault, output: Output) -> None:
    """Says it on standard error: `error: ...` and `fix: ...`, or one line of JSON."""
    if output.json:
        error = {
            "type": fault.kind,
            "message": fault.problem,
            "fix": fault.fix,
            "exit_code": fault.exit_code,
        }
        output.err.print(json.dumps({"error": error}, ensure_ascii=False), soft_wrap=True)
        return
    output.err.print(Text.assemble(("error: ", "bold red"), fault.problem), soft_wrap=True)
    if fault.fix:
        output.err.print(Text.assemble(("fix: ", "bold cyan"), fault.fix), soft_wrap=True)


def fault_of(error: Exception, *, commands: Collection[str] = (), usage: str = "stepwell") -> Fault:
    """The fault that an exception stands for. `commands` may be suggested for an unknown one.

    usage: how the command is called, `stepwell train`, to point at its help.
    """
    if isinstance(error, CycloptsError):
        problem, fix = _of_command_line(error, commands, usage)
        return Fault("UsageError", one_line(problem), fix, 2)
    if isinstance(error, StepwellError):
        return Fault(
            type(error).__name__, one_line(error.problem), one_line(error.fix), error.exit_code
        )
    if isinstance(error, OSError) and error.strerror:
        return _of_system(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Fault("MemoryError", "There is not enough memory.", _LESS_MEMORY)
    return _unexpected(error)


_LESS_MEMORY: Final = "take a smaller model or batch; when training, --gradient-accumulation helps."


def _of_command_line(
    error: CycloptsError, commands: Collection[str], usage: str
) -> tuple[str, str]:
    """Problem and fix of a command line that cyclopts could not read."""
    see_help = f"`{usage} --help` lists what there is."
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        word = error.unused_tokens[0]
        if word.startswith("-"):
            return f"`{usage}` has no flag {word}.", see_help
        return f"There is no command {word!r}.", suggest(word, commands)
    if isinstance(error, UnknownOptionError):
        word = (error.token.keyword or error.token.value).split("=")[0]
        names = [name for each in error.argument_collection for name in each.names]
        near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
        fix = f"Did you mean {near[0]}? " if near else ""
        return f"`{usage}` has no flag {word}.", fix + see_help
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        word = error.unused_tokens[0]
        return f"`{usage}` does not know what to do with {word!r}.", f"quote texts. {see_help}"
    return str(error), see_help


def _of_system(error: OSError) -> Fault:
    """What the operating system refused, with the file that it is about."""
    reason = error.strerror or type(error).__name__
    problem = f"{error.filename}: {reason}." if error.filename else f"{reason}."
    return Fault(
        type(error).__name__, one_line(problem), "check the path, its permissions, the disk."
    )


def _unexpected(error: Exception) -> Fault:
    """A fault of ours: the traceback goes to a file, and its name on the screen."""
    path = _keep_traceback(error)
    summary = one_line(f"{type(error).__name__}: {error}")[:300]
    return Fault(
        type(error).__name__,
        f"stepwell failed in a way it should not: {summary}",
        f"report it, with the traceback in {path}.",
    )


def _keep_traceback(error: Exception) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="stepwell-", suffix=".traceback.txt")
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(traceback.format_exception(error))
    return Path(name)


def one_line(text: str) -> str:
    """The text without its line breaks, so that an error is at most three lines."""
    return " ".join(text.split())
