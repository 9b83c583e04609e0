"""The user's cache folder: what is in it can be removed at any time, and comes again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder stepwell/NAME in XDG_CACHE_HOME, or else in ~/.cache. It may not be there yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "stepwell" / name
