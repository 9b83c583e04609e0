"""What `doctor` looks at: each check says what it found, how good that is, and the fix.

Nothing here raises for what is wrong with the machine: that is what a check is to report.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from stepwell.cli.machine import (
    free_disk,
    processor,
    usable_cpus,
    vector_instructions,
)
from stepwell.cli.numbers import bytes_of
from stepwell.device import free_memory
from stepwell.errors import ConfigError
from stepwell.version import __version__

State = Literal["ok", "note", "warning", "broken"]

OLDEST_PYTHON: Final = (3, 11)
LIBRARIES: Final = ("torch", "numpy", "safetensors", "tokenizers", "huggingface-hub", "pydantic")
EXTRAS: Final = ("transformers", "datasets")
ENOUGH: Final = 2**30  # bytes of memory or disk below which training soon fails
MATRIX: Final = 512  # rows and columns of the product that is timed


@dataclass(frozen=True)
class Check:
    """What was found about one thing; `fix` says what to do where it is not as it should be."""

    name: str
    state: State
    found: str
    fix: str = ""


def all_checks(runs: Path | None = None) -> list[Check]:
    """Every check, in the order in which one thing needs the other."""
    folder = runs or Path(os.environ.get("STEPWELL_RUNS", "runs"))
    checks = [
        Check("stepwell", "ok", __version__),
        check_python(sys.version_info[:2]),
        *map(check_library, LIBRARIES),
        *map(check_extra, EXTRAS),
        check_processor(),
        check_memory(free_memory()),
        check_disk(folder, free_disk(folder)),
        check_writable("run folder", folder),
        check_writable("temporary files", Path(tempfile.gettempdir())),
        check_hub(),
    ]
    return [*checks, *torch_checks()]


def check_python(version: tuple[int, int]) -> Check:
    """Whether this Python is new enough."""
    found = f"{platform.python_version()} on {platform.platform(terse=True)}"
    if version >= OLDEST_PYTHON:
        return Check("python", "ok", found)
    wanted = ".".join(map(str, OLDEST_PYTHON))
    return Check("python", "broken", found, f"install Python {wanted} or newer.")


def check_library(name: str) -> Check:
    """Whether a library that stepwell needs is there."""
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "broken", "not installed", f"pip install {name}")


def check_extra(name: str) -> Check:
    """Which version of an optional library is there."""
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "note", f"not installed (optional): pip install 'stepwell[{name}]'")


def check_processor() -> Check:
    """The processor, and whether it has the vector instructions that decoding lives on."""
    found = f"{processor()}, {usable_cpus()} usable, {' '.join(vector_instructions()) or 'scalar'}"
    if platform.machine() in ("x86_64", "AMD64") and "avx2" not in vector_instructions():
        return Check("processor", "warning", found, "generation is slow here: AVX2 is missing.")
    return Check("processor", "ok", found)


def check_memory(free: int | None) -> Check:
    """Whether there is memory to work in."""
    if free is None:
        return Check("memory", "note", "unknown on this system")
    if free < ENOUGH:
        return Check("memory", "warning", f"{bytes_of(free)} free", "end what else is running.")
    return Check("memory", "ok", f"{bytes_of(free)} free")


def check_disk(folder: Path, free: int | None) -> Check:
    """Whether there is room for checkpoints where runs go."""
    if free is None:
        return Check("disk", "warning", f"unknown for {folder}", "give --runs another folder.")
    found = f"{bytes_of(free)} free for {folder}"
    if free < ENOUGH:
        return Check("disk", "warning", found, "make room, or set STEPWELL_RUNS to another disk.")
    return Check("disk", "ok", found)


def check_writable(name: str, folder: Path) -> Check:
    """Whether files can be made in a folder, or the folder itself where it is not there yet."""
    present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=present):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        fix = f"give yourself the right to write in {present}, or name another folder."
        return Check(name, "broken", f"{folder} cannot be written: {reason}", fix)
    return Check(name, "ok", f"{folder} can be written")


def check_hub() -> Check:
    """Where models of the Hugging Face Hub come from."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Check("hugging face", "note", "offline (HF_HUB_OFFLINE): models from the cache only")
    token = "with a token" if os.environ.get("HF_TOKEN") else "without a token (HF_TOKEN)"
    return Check("hugging face", "ok", f"online, {token}")


def torch_checks() -> Iterator[Check]:
    """What torch was built for, what it sees, and how fast it computes."""
    try:
        import torch
    except (ImportError, OSError) as error:
        found = f"cannot be loaded: {str(error).splitlines()[0]}"
        yield Check("torch build", "broken", found, "install torch again: pip install torch")
        return
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    yield Check("torch build", "ok", f"for {built}")
    yield check_gpu(torch.cuda.device_count(), bool(torch.version.cuda))
    yield check_threads(torch.get_num_threads(), usable_cpus())
    yield check_native()
    yield check_huge_pages()
    yield Check("speed", "ok", f"{_gigaflops():.0f} GFLOP/s in float32 matrix products")


def check_gpu(count: int, built_for_cuda: bool) -> Check:
    """Whether a GPU of this machine is used."""
    import torch

    if count:
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
        return Check("gpu", "ok", names)
    if torch.backends.mps.is_available():
        return Check("gpu", "ok", "Apple GPU (mps)")
    if not Path("/proc/driver/nvidia").exists():
        return Check("gpu", "note", "none; everything runs on the CPU")
    fix = (
        "update the NVIDIA driver."
        if built_for_cuda
        else "install a torch build for CUDA: https://pytorch.org/get-started/locally"
    )
    return Check("gpu", "warning", "there is an NVIDIA GPU, but torch does not see it", fix)


def check_threads(threads: int, cpus: int) -> Check:
    """Whether torch computes on as many threads as there are processors."""
    found = f"{threads} for {cpus} processors"
    if threads > cpus:
        return Check("threads", "warning", found, f"set OMP_NUM_THREADS={cpus}, or use --threads.")
    return Check("threads", "ok", found)


def check_native() -> Check:
    """Whether the native kernels decode, with which instructions, or why they do not."""
    from stepwell.native.library import Library, outcome

    try:
        found = outcome()
    except ConfigError as error:
        return Check("native kernels", "broken", error.problem, error.fix)
    if isinstance(found, Library):
        pool = "" if found.shares_pool else ", on one thread: torch has no OpenMP"
        in_use = f"{found.instruction_set}, build {found.build_id[:8]}{pool}"
        return Check("native kernels", "ok", in_use)
    without = f"not in use: {found.reason}; decoding is about 3 to 7 times slower without"
    return Check("native kernels", "warning" if found.fix else "note", without, found.fix)


def check_huge_pages() -> Check:
    """Whether weights can lie on huge pages of memory."""
    from stepwell.model.memory import SWITCH, has_huge_pages

    if has_huge_pages():
        return Check("huge pages", "ok", "weights are copied onto them where memory is free")
    if not SWITCH.exists():
        return Check("huge pages", "note", "none on this system")
    found = "switched off; decoding on the CPU is about 10 to 20% slower without"
    return Check("huge pages", "warning", found, f"as root: echo madvise > {SWITCH}")


def _gigaflops() -> float:
    """Thousand millions of operations a second in matrix products, the best of a few."""
    import torch

    matrix = torch.ones(MATRIX, MATRIX)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        torch.mm(matrix, matrix)
        times.append(time.perf_counter() - begun)
    return 2 * MATRIX**3 / min(times) / 1e9
