"""The command line: `stepwell train`, `stepwell generate` and the rest. One file an action.

Nothing here imports torch before a command runs, so that --help is instant.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from stepwell.cli.help_cache import with_kept_pages
from stepwell.cli.words import dashed

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, given without the program's name, and returns its exit code."""
    if argv is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a character
    words = dashed(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        from stepwell.cli.app import run_words

        return run_words(words)

    return with_kept_pages(words, run)
