"""What a run says about where it came from: versions, machine, git, and its own source files.

Owns what is collected; nothing here is secret or changes how the run goes.
"""

from __future__ import annotations

import inspect
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from stepwell.device import describe_device
from stepwell.version import __version__

LIBRARIES: Final = ("torch", "numpy", "safetensors", "tokenizers", "pydantic")
GIT_TIMEOUT_S: Final = 10


def environment(device: torch.device, step: int = 0) -> dict[str, Any]:
    """Versions, machine, thread count and git state of a session, and when it began after `step`.

    Plain values; the time is UTC.
    """
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "after_step": step,
        "stepwell": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": describe_device(device),
        "git": git_state(Path.cwd()),
    }


def git_state(directory: Path) -> dict[str, Any] | None:
    """Commit and changed files of the repository around `directory`, None where there is none."""
    commit = _git(directory, "rev-parse", "HEAD")
    changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changed is None:
        return None
    return {"commit": commit.strip(), "changed": [line[3:] for line in changed.splitlines()]}


def own_sources(*kinds: type) -> dict[str, Path]:
    """The files that define these classes and their bases, by name; installed packages left out."""
    found: dict[str, Path] = {}
    for base in (base for kind in kinds for base in kind.__mro__):
        path = _source_file(base)
        if path is not None:
            found[path.name if base.__module__ == "__main__" else f"{base.__module__}.py"] = path
    return found


def _source_file(kind: type) -> Path | None:
    package = kind.__module__.partition(".")[0]
    if package == "stepwell" or package in sys.stdlib_module_names:
        return None
    try:
        path = Path(inspect.getfile(kind)).resolve()
    except (OSError, TypeError):  # typed at a prompt
        return None
    return path if path.is_file() and "site-packages" not in path.parts else None


def _git(directory: Path, *arguments: str) -> str | None:
    """What git prints, None where there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
