"""Help pages as they were shown last time, so that --help need not import what it describes.

A page belongs to the words that asked for it, to the terminal, and to the sources of this package:
when one of these is another, it is made anew. Nothing depends on the pages being kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, Final, TextIO, cast

from stepwell.cli.words import before_delimiter
from stepwell.version import __version__

SEEN_IN_PAGES: Final = (
    *("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TERM", "COLORTERM", "COLUMNS"),
    "STEPWELL_RUNS",
)
"""Environment variables that pages depend on."""


class Copied:
    """A stream that keeps a copy of what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.text = ""

    def write(self, text: str) -> int:
        """Writes and keeps the text."""
        self.text += text
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def with_kept_pages(words: Sequence[str], run: Callable[[], int]) -> int:
    """The exit code of `run`; a page that it has printed before is printed without running it."""
    path = page_path(words)
    if path is None:
        return run()
    with suppress(OSError, UnicodeDecodeError):
        sys.stdout.write(path.read_text(encoding="utf-8"))
        return 0
    copied = Copied(sys.stdout)
    with redirect_stdout(cast(TextIO, copied)):
        code = run()
    if code == 0:
        with suppress(OSError):
            keep(path, copied.text)
    return code


def page_path(words: Sequence[str]) -> Path | None:
    """Where the page that these words ask for is kept; None where they ask for none.

    A page whose flags depend on a file (--config) is not kept.
    """
    options = before_delimiter(words)
    if not {"--help", "-h"} & set(options) or any(word.startswith("--config") for word in options):
        return None
    terminal = shutil.get_terminal_size() if sys.stdout.isatty() else None
    seen = [os.environ.get(name) for name in SEEN_IN_PAGES]
    key = repr((list(words), terminal, sys.stdout.encoding, seen)).encode()
    return _cache() / _stamp() / f"{hashlib.sha256(key).hexdigest()[:32]}.txt"


def keep(path: Path, text: str) -> None:
    """Keeps a page, and lets go of those of other sources."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.parent.iterdir():
        if other != path.parent:
            shutil.rmtree(other, ignore_errors=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "stepwell" / "help"


def _stamp() -> str:
    """What is another when a file of this package is: the version, and all times of change."""
    package = Path(__file__).parent.parent
    times = sorted((str(path), path.stat().st_mtime_ns) for path in package.rglob("*.py"))
    return f"{__version__}-{hashlib.sha256(repr(times).encode()).hexdigest()[:16]}"
