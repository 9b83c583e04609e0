"""Compiling the C++ kernels into one shared library, with the compiler that is here.

Owns flags, instruction sets and the note beside the library: what was built, or why nothing was.
Not how the library is loaded and checked: library.py. It needs the standard library alone, because
the installer runs this file before anything else is there; to build in place, run

    python -m stepwell.native.build
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

LIBRARY: Final = "_kernels.so"
COMPILERS: Final = ("c++", "g++", "clang++")
CLONED: Final = "kernels.cpp"  # compiled once for each instruction set, all other sources once
BASELINE: Final = "baseline"

Flags = tuple[str, ...]

COMMON: Final[Flags] = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    # No sum may be reordered and no product fused that the source does not fuse itself.
    *("-ffp-contract=off", "-fno-math-errno"),
)
LINK: Final[Flags] = ("-shared", "-Wl,-z,defs")
STATIC: Final[Flags] = ("-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL")

X86_SETS: Final[Mapping[str, Flags]] = {
    "avx512": (
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mavx512vnni"),
        *("-mfma", "-mavx2", "-mf16c"),
    ),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
}
INSTRUCTION_SETS: Final = (*X86_SETS, BASELINE)
"""The names of all sets, the best first."""


class BuildReport(NamedTuple):
    """What was built, or in `reason` why nothing was; kept as JSON by the library, less `log`."""

    build_id: str = ""
    instruction_sets: Flags = ()
    compiler: str = ""
    reason: str = ""
    log: str = ""  # all that the compiler said

    @property
    def built(self) -> bool:
        """Whether there is a library."""
        return not self.reason


class Compiler(NamedTuple):
    """The words that call it and the first line of its --version."""

    command: Flags
    version: str


class BuildError(Exception):
    """Why there is no library, as a phrase for people. Never leaves this module."""

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(reason)
        self.log = log


def build(source: Path, target: Path, *, compiler: str | None = None) -> BuildReport:
    """What came of compiling the folder `source` into the library `target`. Raises nothing.

    `compiler` is the command; else $CXX, else the first of c++, g++ and clang++. A library of the
    same sources, flags and compiler is kept; where none can be made, an old one is removed.
    """
    try:
        report = _build(source, target, compiler)
    except (BuildError, OSError) as error:
        log = error.log if isinstance(error, BuildError) else ""
        report = BuildReport(reason=str(error), log=log)
        with suppress(OSError):
            target.unlink(missing_ok=True)
    with suppress(OSError):
        kept = {key: value for key, value in report._asdict().items() if key != "log"}
        note_of(target).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    return report


def note_of(library: Path) -> Path:
    """Where the report of a library is kept: beside it."""
    return library.with_suffix(".json")


def read_report(library: Path) -> BuildReport | None:
    """The report kept beside a library; None where there is none, or none that can be read."""
    try:
        values: dict[str, Any] = json.loads(note_of(library).read_text(encoding="utf-8"))
        sets = tuple(values.pop("instruction_sets"))
        return BuildReport(**values, instruction_sets=sets)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _build(source: Path, target: Path, named: str | None) -> BuildReport:
    if platform.system() != "Linux":
        raise BuildError(f"there are no native kernels for {platform.system()} yet")
    if not (source / CLONED).is_file():
        raise BuildError(f"{source / CLONED} does not exist")
    compiler = find_compiler(named)
    sets = instruction_sets(compiler)
    build_id = identify(source, compiler, sets)
    kept = read_report(target)
    if kept and kept.built and kept.build_id == build_id and target.is_file():
        return kept
    # Without its note a library is not loaded: a build that is cut off leaves no false pair.
    note_of(target).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.stem}-") as folder:
        objects, log = compile_all(source, Path(folder), compiler, sets)
        linked = link(objects, Path(folder) / target.name, compiler)
        linked.replace(target)
    return BuildReport(build_id, tuple(sets), compiler.version, log=log)


def find_compiler(named: str | None = None) -> Compiler:
    """The compiler to use, which has answered. Raises BuildError where there is none."""
    given = (named or os.environ.get("CXX", "")).strip()
    try:
        words = shlex.split(given)
    except ValueError:
        raise BuildError(f"CXX is {given!r}, which is no command") from None
    words = words or [name for name in COMPILERS if shutil.which(name)][:1]
    if not words:
        raise BuildError(f"no C++ compiler was found ({', '.join(COMPILERS)}, or CXX)")
    version = _run([*words, "--version"]).partition("\n")[0]
    return Compiler(tuple(words), version)


def instruction_sets(compiler: Compiler) -> dict[str, Flags]:
    """The flags of each instruction set that the compiler knows on this kind of machine."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return {BASELINE: ()}
    with ThreadPoolExecutor() as pool:
        known = pool.map(lambda flags: _accepts(compiler, flags), X86_SETS.values())
    sets = zip(X86_SETS.items(), known, strict=True)
    return {**{name: flags for (name, flags), yes in sets if yes}, BASELINE: ()}


def identify(source: Path, compiler: Compiler, sets: Mapping[str, Flags]) -> str:
    """A hash of all that the library's bits depend on: sources, flags, compiler, machine."""
    parts = {
        "sources": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((*source.glob("*.cpp"), *source.glob("*.h")))
        },
        "flags": [COMMON, LINK, STATIC, sets],
        "compiler": compiler.version,
        "machine": platform.machine(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def compile_all(
    source: Path, folder: Path, compiler: Compiler, sets: Mapping[str, Flags]
) -> tuple[list[Path], str]:
    """The object files, made in `folder` side by side, and what the compiler said of them.

    The linker takes the first copy of an inline function that several objects hold, so those of the
    plainest instructions come first: every processor can run them.
    """
    present = tuple(f"-DSTEPWELL_HAS_{name.upper()}=1" for name in sets)
    others = sorted(path for path in source.glob("*.cpp") if path.name != CLONED)
    jobs: dict[Path, tuple[Path, Flags]] = {
        **{folder / f"{path.stem}.o": (path, present) for path in others},
        **{
            folder / f"{name}.kernels.o": (
                source / CLONED,
                (*present, *sets[name], f"-DSTEPWELL_ISA={name}"),
            )
            for name in reversed(list(sets))
        },
    }
    commands = [
        [*compiler.command, *COMMON, *flags, "-c", str(path), "-o", str(made)]
        for made, (path, flags) in jobs.items()
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        said = list(pool.map(_run, commands))
    return list(jobs), "".join(said)


def link(objects: Sequence[Path], library: Path, compiler: Compiler) -> Path:
    """The library of these objects, with the C++ runtime inside where the compiler can do that."""
    command = [*compiler.command, *map(str, objects), "-o", str(library), *LINK]
    try:
        _run([*command, *STATIC])
    except BuildError:  # a system without the static libraries, or another kind of linker
        _run(command)
    return library


def _accepts(compiler: Compiler, flags: Flags) -> bool:
    try:
        _run([*compiler.command, *flags, "-fsyntax-only", "-x", "c++", os.devnull])
    except BuildError:
        return False
    return True


def _run(command: Sequence[str]) -> str:
    """What a command printed. Raises BuildError with its first complaint where it failed."""
    english = {**os.environ, "LC_ALL": "C"}
    try:
        ended = subprocess.run(
            command, env=english, check=False, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror}") from None
    if ended.returncode == 0:
        return ended.stdout
    lines = ended.stdout.splitlines()
    faults = (line.strip() for line in lines if "error" in line or "undefined" in line)
    complaint = next(faults, f"exit code {ended.returncode}")
    raise BuildError(f"{command[0]} failed: {complaint}", ended.stdout)


def main() -> int:
    """Builds the kernels in place; the exit code is 1 where that failed."""
    here = Path(__file__).resolve().parent
    report = build(here / "source", here / LIBRARY)
    built = f"Native kernels {report.build_id}: {', '.join(report.instruction_sets)}."
    sys.stderr.write(report.log)
    sys.stdout.write(f"{built if report.built else f'No native kernels: {report.reason}.'}\n")
    return 0 if report.built else 1


if __name__ == "__main__":
    sys.exit(main())
