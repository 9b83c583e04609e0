"""The command line: `stepwell train`, `stepwell generate` and the rest. One file an action.

Nothing here imports torch before a command runs, so that --help is instant.
"""

from __future__ import annotations

from stepwell.cli.app import main

__all__ = ["main"]
