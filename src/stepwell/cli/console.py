"""Where a command writes: its result on standard output, everything else on standard error.

Owns the two consoles and the flags --json, --quiet and --log-file. Colours follow the terminal and
NO_COLOR. Knows nothing of models, runs or errors.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

from cyclopts import Group, Parameter
from rich.console import Console, RenderableType
from rich.text import Text

PIPE_WIDTH: Final = 160  # columns of a result where there is no terminal to ask

OUTPUT_GROUP: Final = Group("Output", sort_key=90)


def make_console(file: TextIO, *, pipe_width: int = PIPE_WIDTH) -> Console:
    """A console on `file` that prints text as it is: no markup, emoji or highlighting in it."""
    asked = file.isatty() or "COLUMNS" in os.environ
    return Console(
        file=file,
        width=None if asked else pipe_width,
        markup=False,
        emoji=False,
        highlight=False,
    )


class Output:
    """The consoles of one command. `out` holds the result and nothing else; `err` the rest.

    json: the result is JSON. quiet: no notes and no progress, only results, warnings and errors.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        self.out, self.err = make_console(sys.stdout), make_console(sys.stderr)

    @property
    def interactive(self) -> bool:
        """Whether a person sits at the terminal who can be asked something."""
        return sys.stdin.isatty() and self.err.is_terminal and not self.json

    @property
    def in_colour(self) -> bool:
        """Whether colours say anything on standard output."""
        return self.out.color_system is not None and not self.out.no_color

    def note(self, *parts: RenderableType, style: str | None = None) -> None:
        """Says something to the person at the terminal; nothing where --quiet was given."""
        if not self.quiet:
            words = all(isinstance(part, str | Text) for part in parts)
            self.err.print(*parts, style=style, soft_wrap=words)  # paths and commands stay whole

    def warn(self, text: str) -> None:
        """Says something that must be heard, also with --quiet."""
        self.err.print(Text.assemble(("warning: ", "bold yellow"), text), soft_wrap=True)

    def result(self, plain: Any, view: RenderableType) -> None:
        """Prints what the command was asked for: `plain` as JSON, or `view` for people."""
        if self.json:
            self.write(as_json(plain) + "\n")
        elif isinstance(view, str):
            self.write(view + "\n")
        else:
            self.out.print(view)

    def write(self, text: str) -> None:
        """Puts text on standard output at once, neither wrapped nor styled."""
        self.out.file.write(text)
        self.out.file.flush()

    def confirm(self, question: str) -> bool:
        """The answer to a yes/no question at the terminal; no is what an empty line means."""
        self.err.print(Text.assemble((question, "bold"), " [y/N] "), end="")
        return sys.stdin.readline().strip().lower() in ("y", "yes")


@Parameter(name="*", group=OUTPUT_GROUP)
@dataclass(frozen=True)
class OutputFlags:
    """The flags of output; a command takes one, and writes to what `open` gives."""

    json: Annotated[bool, Parameter(negative=())] = False
    """Print the result as JSON; errors too."""
    quiet: Annotated[bool, Parameter(name=("--quiet", "-q"), negative=())] = False
    """Print no notes and no progress."""
    log_file: Path | None = None
    """Append log records with their times to this file."""

    @contextmanager
    def open(self) -> Iterator[Output]:
        """The output of one command; while it lasts, warnings are shown and records are logged."""
        output = Output(json=self.json, quiet=self.quiet)
        handlers: list[logging.Handler] = [WarningHandler(output)]
        if self.log_file is not None:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(_file_handler(self.log_file))
        with attached(logging.getLogger("stepwell"), handlers):
            yield output


class WarningHandler(logging.Handler):
    """Shows log records of level WARNING and above on the error console."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the record's message."""
        self._output.warn(record.getMessage())


@contextmanager
def attached(logger: logging.Logger, handlers: list[logging.Handler]) -> Iterator[None]:
    """While this lasts the logger writes to `handlers`, from level INFO on."""
    level, propagate = logger.level, logger.propagate
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)
        logger.propagate = propagate


def as_json(plain: Any) -> str:
    """JSON with two spaces of indentation; numbers that are not finite become null."""
    return json.dumps(finite(plain), indent=2, ensure_ascii=False, allow_nan=False, default=str)


def finite(plain: Any) -> Any:
    """The same nested value with None in place of numbers that JSON cannot hold."""
    if isinstance(plain, float):
        return plain if math.isfinite(plain) else None
    if isinstance(plain, Mapping):
        return {key: finite(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [finite(value) for value in plain]
    return plain


def _file_handler(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler
