"""Building the kernels: whatever is there or missing ends in a library or in a reason."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from stepwell.native import build as builder
from stepwell.native.build import LIBRARY, Compiler, build, note_of, read_report
from stepwell.native.library import ABI

ROOT = Path(__file__).resolve().parents[2]
NATIVE = Path("src", "stepwell", "native")
SOURCE = ROOT / NATIVE / "source"

Write = Callable[..., Path]


def scripted(path: Path, script: str) -> str:
    """A command that runs a shell script in the compiler's place."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
def test_the_kernels_of_this_package_compile_without_a_warning(
    compiler: Compiler, tmp_path: Path
) -> None:
    report = build(SOURCE, tmp_path / LIBRARY)
    assert (report.reason, report.log) == ("", "")


def test_what_was_built_is_told_beside_the_library(made: Path, compiler: Compiler) -> None:
    report = read_report(made)
    assert report is not None
    assert report.built
    assert report.compiler == compiler.version
    assert report.instruction_sets[-1] == "baseline"
    ctypes.CDLL(str(made))
    assert {path.name for path in made.parent.iterdir()} == {"source", LIBRARY, "_kernels.json"}


def test_only_the_interface_is_exported(made: Path) -> None:
    handle = ctypes.CDLL(str(made))
    assert handle.shared_copy
    with pytest.raises(AttributeError):
        _ = handle._Z24instructions_of_the_copyv


def test_what_all_sets_share_runs_on_every_processor(
    write: Write, compiler: Compiler, tmp_path: Path
) -> None:
    """The linker keeps one copy of an inline function; in the other order it is the widest."""
    sets = builder.instruction_sets(compiler)
    if len(sets) == 1:
        pytest.skip("the compiler knows one instruction set only")
    source = write(tmp_path / "source")
    objects, _ = builder.compile_all(source, tmp_path, compiler, sets)
    copies = []
    for name, order in (("right", objects), ("wrong", objects[::-1])):
        linked = builder.link(order, tmp_path / f"{name}.so", compiler)
        copies.append(ctypes.CDLL(str(linked)).shared_copy())
    assert copies[0] == 128
    assert copies[1] > 128


def test_an_unchanged_library_is_kept_and_a_changed_one_is_not(
    write: Write, compiler: Compiler, tmp_path: Path
) -> None:
    source, target = write(tmp_path / "source"), tmp_path / LIBRARY
    first, made_at = build(source, target), target.stat().st_mtime_ns
    assert build(source, target) == first
    assert target.stat().st_mtime_ns == made_at
    header = source / "shared.h"
    header.write_text(header.read_text() + "// another line\n")
    assert build(source, target).build_id != first.build_id
    assert target.stat().st_mtime_ns != made_at


def test_the_build_id_tells_flags_and_compilers_apart(write: Write, tmp_path: Path) -> None:
    source, one = write(tmp_path / "source"), Compiler(("c++",), "one 1.0")
    identities = {
        builder.identify(source, one, {"baseline": ()}),
        builder.identify(source, one, {"avx2": ("-mavx2",), "baseline": ()}),
        builder.identify(source, Compiler(("c++",), "one 1.1"), {"baseline": ()}),
    }
    assert len(identities) == 3


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have one set")
def test_a_compiler_too_old_for_a_set_builds_the_others(
    write: Write, compiler: Compiler, tmp_path: Path
) -> None:
    old = scripted(
        tmp_path / "old-c++",
        'case "$*" in *-mavx512bf16*) echo "error: unknown option"; exit 1;; esac\n'
        f'exec {" ".join(compiler.command)} "$@"',
    )
    report = build(write(tmp_path / "source"), tmp_path / LIBRARY, compiler=old)
    assert report.instruction_sets == ("avx2", "baseline")


def test_a_linker_without_static_libraries_is_asked_again(
    write: Write, compiler: Compiler, tmp_path: Path
) -> None:
    bare = scripted(
        tmp_path / "bare-c++",
        'case "$*" in *-static-libstdc++*) echo "error: cannot find -lstdc++"; exit 1;; esac\n'
        f'exec {" ".join(compiler.command)} "$@"',
    )
    assert build(write(tmp_path / "source"), tmp_path / LIBRARY, compiler=bare).built


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("false", "false failed: exit code 1"),
        ("/nowhere/c++", "/nowhere/c++ cannot be run: No such file"),
        ("'c++", "which is no command"),
    ],
)
def test_a_compiler_that_does_not_work_is_a_reason(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, reason: str
) -> None:
    source, target = write(tmp_path / "source"), tmp_path / LIBRARY
    monkeypatch.setenv("CXX", command)
    report = build(source, target)
    assert reason in report.reason
    assert read_report(target) == report._replace(log="")
    assert not target.exists()


def test_no_compiler_at_all_is_a_reason(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    report = build(write(tmp_path / "source"), tmp_path / LIBRARY)
    assert report.reason == "no C++ compiler was found (c++, g++, clang++, or CXX)"


@pytest.mark.parametrize(
    ("kernels", "reason"),
    [
        ("int broken() { return nothing; }", "nothing"),
        ("int missing(); namespace STEPWELL_ISA { int shared_copy() { return missing(); } }",
         "missing"),
    ],
)  # fmt: skip
def test_a_broken_source_is_a_reason_and_removes_what_was_built_before(
    write: Write, compiler: Compiler, tmp_path: Path, kernels: str, reason: str
) -> None:
    target = tmp_path / LIBRARY
    assert build(write(tmp_path / "sound"), target).built
    report = build(write(tmp_path / "broken", kernels=kernels), target)
    assert reason in report.reason
    assert reason in report.log
    assert not target.exists()
    assert json.loads(note_of(target).read_text())["reason"] == report.reason


def test_other_systems_and_missing_sources_are_reasons(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "kernels.cpp does not exist" in build(tmp_path, tmp_path / LIBRARY).reason
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    reason = build(write(tmp_path / "source"), tmp_path / LIBRARY).reason
    assert reason == "there are no native kernels for Darwin yet"


def test_a_folder_that_cannot_be_written_is_a_reason(
    write: Write, compiler: Compiler, tmp_path: Path
) -> None:
    report = build(write(tmp_path / "source"), tmp_path / "missing" / LIBRARY)
    assert "missing" in report.reason


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"instruction_sets": [], "unknown": 1}'])
def test_a_damaged_note_is_no_report(tmp_path: Path, text: str) -> None:
    note_of(tmp_path / LIBRARY).write_text(text)
    assert read_report(tmp_path / LIBRARY) is None


def test_the_builder_runs_without_the_package_and_its_dependencies() -> None:
    script = "import runpy; runpy.run_path({!r})"
    path = str(ROOT / NATIVE / "build.py")
    subprocess.run([sys.executable, "-I", "-S", "-c", script.format(path)], check=True)


def packed(root: Path, out: Path, kind: str, **environment: str) -> Path:
    """What the build backend makes of the project at `root`: a wheel or an sdist."""
    script = f"import sys; from hatchling.build import build_{kind} as b; print(b(sys.argv[1]))"
    ended = subprocess.run(
        [sys.executable, "-c", script, str(out)],
        cwd=root, env={**os.environ, **environment}, check=True, text=True, capture_output=True,
    )  # fmt: skip
    return out / ended.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as the sources that are given away, unpacked."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("the build backend, hatchling, is not installed")
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(packed(ROOT, folder, "sdist")) as archive:
        archive.extractall(folder, filter="data")
    [unpacked] = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


@pytest.fixture
def project(sdist: Path, write: Write, tmp_path: Path) -> Path:
    """A copy of the unpacked sdist, with the small library in the place of the kernels."""
    copy = Path(shutil.copytree(sdist, tmp_path / "project"))
    shutil.rmtree(copy / NATIVE / "source")
    write(copy / NATIVE / "source")
    return copy


def unpacked(wheel: Path, folder: Path) -> Path:
    """The folder, with the content of a wheel in it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_sdist_holds_the_sources_and_nothing_compiled(sdist: Path) -> None:
    native = sdist / NATIVE
    assert {path.name for path in (native / "source").iterdir()} == {
        path.name for path in SOURCE.iterdir()
    }
    assert not list(native.glob("_kernels*"))
    assert (sdist / "hatch_build.py").is_file()


def test_a_wheel_of_the_sdist_holds_the_kernels_for_this_platform(
    project: Path, compiler: Compiler, tmp_path: Path
) -> None:
    wheel = packed(project, tmp_path, "wheel")
    assert wheel.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
    native = unpacked(wheel, tmp_path / "wheel") / "stepwell" / "native"
    report = read_report(native / LIBRARY)
    assert report is not None
    assert report.built
    assert ctypes.CDLL(str(native / LIBRARY)).stepwell_abi() == ABI
    assert (native / "source" / "kernels.cpp").is_file()  # to build in place later
    assert not list((project / NATIVE).glob("_kernels*"))


def test_a_wheel_made_without_a_compiler_is_for_all_and_works(
    project: Path, tmp_path: Path
) -> None:
    wheel = packed(project, tmp_path, "wheel", CXX="false")
    assert wheel.name.endswith("-py3-none-any.whl")
    folder = unpacked(wheel, tmp_path / "wheel")
    assert not (folder / "stepwell" / "native" / LIBRARY).exists()
    ended = subprocess.run(
        [sys.executable, "-m", "stepwell", "doctor", "--json", "--runs", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(folder)}, text=True, capture_output=True, check=True,
    )  # fmt: skip
    [check] = (c for c in json.loads(ended.stdout)["checks"] if c["name"] == "native kernels")
    assert check["state"] == "warning"
    assert "false failed" in check["found"]
    assert "install a C++ compiler" in check["fix"]


def test_an_editable_install_has_the_kernels_in_its_sources(
    project: Path, compiler: Compiler, tmp_path: Path
) -> None:
    packed(project, tmp_path, "editable")
    report = read_report(project / NATIVE / LIBRARY)
    assert report is not None
    assert report.built
    assert (project / NATIVE / LIBRARY).is_file()
    # A library that lies in the sources is no part of what is made of them later.
    elsewhere = packed(project, tmp_path, "wheel", CXX="false")
    names = zipfile.ZipFile(elsewhere).namelist()
    assert f"stepwell/native/{LIBRARY}" not in names
    assert names.count("stepwell/native/_kernels.json") == 1
