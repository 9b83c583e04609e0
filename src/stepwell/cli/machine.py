"""What this machine has: memory, disk, processor. Nothing here raises; what is unknown is None."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def free_memory(device: torch.device | None = None) -> int | None:
    """Bytes that can still be used: of the device's memory on a GPU, of the machine's elsewhere."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        [line] = [line for line in lines if line.startswith("MemAvailable:")]
        free = int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    limit = _container_limit()
    return free if limit is None else min(free, limit)


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


def _container_limit() -> int | None:
    """Bytes left under the memory limit of a control group, version 2."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return limit - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return None


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
