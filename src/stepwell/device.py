"""Where tensors live and how they are stored: device, its memory, number format, threads.

Owns the translation of what people type ("auto", "cuda:1", "bfloat16") into torch's objects. torch
is imported inside the functions, so that importing this module costs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stepwell.errors import ConfigError, DeviceError, suggest

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16", "float64")

WeightFormat = Literal["bf16", "int8", "int4"]
"""How weights are kept: in bfloat16, or the matrices rounded to 8 or 4 bits."""


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" is the first CUDA device, else Apple's GPU, else the CPU.

    Raises DeviceError where this machine has no such device.
    """
    import torch

    if name == "auto":
        return torch.device(_best_kind())
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps") or (device.type != "cuda" and device.index):
        raise DeviceError(
            f"{str(name)!r} is no device that stepwell knows.",
            fix='use "auto", "cpu", "cuda", "cuda:1" or "mps".',
        )
    present = _num_devices(device.type)
    if (device.index or 0) >= present:
        raise DeviceError(
            f"{str(name)!r} was asked for; the number of {device.type} devices here is {present}.",
            fix='use "auto" or "cpu", or install a torch build and driver that see the device.',
        )
    return device


def parse_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """The floating-point format of that name ("bfloat16" or "torch.bfloat16"); None stays None.

    Raises ConfigError for any other word, and for formats that no model is computed in.
    """
    import torch

    if name is None:
        return None
    word = str(name).removeprefix("torch.")
    if word not in DTYPES:
        raise ConfigError(
            f"dtype {word!r} is not one that models are kept in. {suggest(word, DTYPES)}"
        )
    dtype = getattr(torch, word)
    assert isinstance(dtype, torch.dtype)
    return dtype


def set_threads(count: int) -> None:
    """Compute on `count` CPU threads from now on, in this process. Raises ConfigError below 1."""
    import torch

    if count < 1:
        raise ConfigError(f"threads is {count}, expected 1 or more.")
    torch.set_num_threads(count)


def describe_device(device: torch.device) -> str:
    """One line for people: "cpu, 2 threads" or "cuda:0, NVIDIA H100 80GB HBM3, 79 GiB"."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gibibytes = properties.total_memory / 2**30
        return f"cuda:{device.index or 0}, {properties.name}, {gibibytes:.0f} GiB"
    if device.type == "mps":
        return "mps, Apple GPU"
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"


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


def _best_kind() -> str:
    return next((kind for kind in ("cuda", "mps") if _num_devices(kind)), "cpu")


def _num_devices(kind: str) -> int:
    import torch

    if kind == "cuda":
        return torch.cuda.device_count()
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return 1


def _container_limit() -> int | None:
    """Bytes left under the memory limit of a control group, version 2."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return limit - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return None
