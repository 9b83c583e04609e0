"""Loading the native kernels, once a process: which instruction set, which threads, or why not.

Owns the checks before the library is believed, the choice that STEPWELL_NATIVE makes and the number
of threads. Not how the kernels are built (build.py), nor what they compute.

STEPWELL_NATIVE in the environment is `off` (torch decodes), or the instruction set to use where
not the best that this processor has: `avx512`, `avx2` or `baseline`.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from contextlib import suppress
from ctypes import CDLL, c_char_p, c_int, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stepwell.errors import ConfigError, suggest
from stepwell.native.build import INSTRUCTION_SETS, LIBRARY, read_report

ABI: Final = 3
"""The version of the C interface that this Python speaks."""

VARIABLE: Final = "STEPWELL_NATIVE"
PLACE: Final = Path(__file__).with_name(LIBRARY)
REBUILD: Final = "run: python -m stepwell.native.build"

OPENMP: Final = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
"""What the kernels need of the OpenMP runtime, in the order of stepwell_use_openmp."""

_forked = False


@dataclass(frozen=True)
class Library:
    """The kernels, ready to be called through `handle`, with one instruction set in use."""

    handle: CDLL
    instruction_set: str
    build_id: str  # of sources, flags, compiler and instruction set: what the bits depend on
    shares_pool: bool  # whether it computes on torch's threads; else on the caller's alone


@dataclass(frozen=True)
class Unavailable:
    """Why the kernels are not used, as a phrase, and what would change that, if anything."""

    reason: str
    fix: str = ""


def load() -> Library | None:
    """The kernels; None where torch has to decode, and `unavailable_reason` says why.

    The first call settles it for the process. Raises ConfigError where STEPWELL_NATIVE is set to an
    unknown word, or to an instruction set that cannot be had.
    """
    found = outcome()
    return found if isinstance(found, Library) else None


def unavailable_reason() -> str:
    """Why `load` gives None, as a phrase; empty where it gives the kernels."""
    found = outcome()
    return found.reason if isinstance(found, Unavailable) else ""


def threads() -> int:
    """Threads that a call of the kernels may use now: torch's number, or 1.

    1 in a child of os.fork, where the threads of the parent's pool do not exist, and where there is
    no pool to share.
    """
    library = load()
    if _forked or library is None or not library.shares_pool:
        return 1
    import torch

    return torch.get_num_threads()


@functools.cache
def outcome() -> Library | Unavailable:
    """The kernels installed with this package, or why they are not used; the same ever after."""
    return open_library(PLACE, os.environ.get(VARIABLE, ""))


def open_library(path: Path, choice: str) -> Library | Unavailable:
    """The library at `path` with the instruction set of that name ("" is the best), or why not.

    Raises ConfigError for a `choice` that is unknown, or that names a set that cannot be had.
    """
    if choice not in ("", "off", *INSTRUCTION_SETS):
        known = ("off", *INSTRUCTION_SETS)
        raise ConfigError(
            f"{VARIABLE}={choice} is not a choice of kernels. {suggest(choice, known)}",
            fix=f"unset {VARIABLE} to use the best that this processor has.",
        )
    if choice == "off":
        return Unavailable(f"switched off by {VARIABLE}=off")
    found = _open(path, choice)
    if choice and isinstance(found, Unavailable):
        raise ConfigError(
            f"{VARIABLE}={choice} cannot be had: {found.reason}.",
            fix=f"unset {VARIABLE} to use what there is.",
        )
    return found


def _open(path: Path, choice: str) -> Library | Unavailable:
    report = read_report(path)
    if report is None:
        return Unavailable("they were not built", _rebuild())
    if not report.built:
        return Unavailable(report.reason, _rebuild("install a C++ compiler (such as g++), then "))
    try:
        handle = CDLL(str(path))
        declare(handle)
    except (OSError, AttributeError) as error:
        return Unavailable(f"{path.name} cannot be loaded: {error}", _rebuild())
    if (spoken := handle.stepwell_abi()) != ABI:
        reason = f"{path.name} has interface {spoken}, this version of stepwell expects {ABI}"
        return Unavailable(reason, _rebuild())
    if handle.stepwell_select(choice.encode()) != 0:
        built = ", ".join(report.instruction_sets)
        return Unavailable(f"this processor or this build ({built}) lacks {choice or 'all sets'}")
    instruction_set = str(handle.stepwell_instruction_set().decode())
    build_id = f"{report.build_id}-{instruction_set}"
    return Library(handle, instruction_set, build_id, share_pool(handle))


def declare(handle: CDLL) -> None:
    """Gives the four functions used here their C types. Raises AttributeError where one lacks."""
    for name, result, arguments in (
        ("stepwell_abi", c_int, []),
        ("stepwell_select", c_int, [c_char_p]),
        ("stepwell_instruction_set", c_char_p, []),
        ("stepwell_use_openmp", None, [c_void_p] * len(OPENMP)),
    ):
        function = getattr(handle, name)
        function.restype, function.argtypes = result, arguments


def share_pool(handle: CDLL) -> bool:
    """Whether torch's OpenMP runtime was found and handed over, so that both use one pool."""
    runtime = openmp_of_torch()
    if runtime is None:
        return False
    handle.stepwell_use_openmp(*runtime)
    return True


def openmp_of_torch() -> tuple[int, ...] | None:
    """Addresses of the OPENMP functions that torch itself calls; None where it was built without.

    They are looked up in the dynamic linker's order: first what the whole process shares (where a
    preloaded runtime is), then torch and all that it is linked to. Another library may have brought
    a second runtime, with a pool of its own; looking for file names could not tell them apart.
    """
    import torch

    if not torch.backends.openmp.is_available():  # type: ignore[no-untyped-call]
        return None
    for scope in (CDLL(None), CDLL(torch._C.__file__)):
        with suppress(AttributeError):
            return tuple(_address(scope, name) for name in OPENMP)
    return None


def _address(scope: CDLL, name: str) -> int:
    address = ctypes.cast(getattr(scope, name), c_void_p).value
    assert address is not None
    return address


def _rebuild(before: str = "") -> str:
    """What to do for kernels; nothing where there are none for this system."""
    return f"{before}{REBUILD}" if platform.system() == "Linux" else ""


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # when imported: a fork before the first load counts, too
    os.register_at_fork(after_in_child=_note_fork)
