"""What this machine has: memory, disk, processor. Nothing here raises; what is unknown is None."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path


def free_disk(directory: Path) -> int | None:
    """Bytes free where `directory` is, or would be made."""
    directory = directory.absolute()
    present = next((path for path in (directory, *directory.parents) if path.exists()), None)
    try:
        return shutil.disk_usage(present).free if present else None
    except OSError:
        return None


def processor() -> str:
    """The processor's name, as its maker gives it where the system tells."""
    for line in _cpu_lines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def vector_instructions() -> list[str]:
    """The processor's vector instructions that matter to decoding, the widest last."""
    flags = {
        flag
        for line in _cpu_lines()
        if line.startswith(("flags", "Features"))
        for flag in line.split()
    }
    known = ("neon", "asimd", "sve", "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f")
    return [flag for flag in (*known, "avx512_bf16", "amx_bf16") if flag in flags]


def usable_cpus() -> int:
    """Processors that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
