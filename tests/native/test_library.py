"""Loading the kernels: only what fits is believed, and threads are shared with torch, safely."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stepwell.errors import ConfigError
from stepwell.native import library
from stepwell.native.build import LIBRARY, build, note_of
from stepwell.native.library import ABI, Library, Unavailable, open_library

Write = Callable[..., Path]

SUM = sum(range(1000))


def run_python(script: str, *words: object, **environment: str) -> str:
    """What a script prints in a process of its own, which has to end soon and well."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *map(str, words)],
        env={**os.environ, **environment}, timeout=60, text=True, capture_output=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_sound_library_is_loaded_with_its_identity(made: Path) -> None:
    found = open_library(made, "")
    assert isinstance(found, Library)
    built = json.loads(note_of(made).read_text())
    assert found.build_id == f"{built['build_id']}-{found.instruction_set}"
    assert found.handle.sum_on(1) == SUM + 1_000_000


def test_the_environment_chooses_the_instruction_set(made: Path) -> None:
    found = open_library(made, "baseline")
    assert isinstance(found, Library)
    assert found.instruction_set == "baseline"
    assert found.build_id.endswith("-baseline")
    off = open_library(made, "off")
    assert isinstance(off, Unavailable)
    assert off == Unavailable("switched off by STEPWELL_NATIVE=off")


@pytest.mark.parametrize(
    ("choice", "words"), [("avx51", "'avx512'"), ("avx512", "lacks avx512"), ("1", "Known: ")]
)
def test_a_choice_that_cannot_be_had_is_an_error(made: Path, choice: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        open_library(made, choice)
    assert "STEPWELL_NATIVE" in caught.value.problem
    assert "unset" in caught.value.fix


def test_a_choice_is_an_error_where_nothing_was_built(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="they were not built"):
        open_library(tmp_path / LIBRARY, "baseline")


def test_a_library_of_another_interface_is_refused(write: Write, compiler, tmp_path: Path) -> None:
    target = tmp_path / LIBRARY
    assert build(write(tmp_path / "source", abi=ABI + 1), target).built
    found = open_library(target, "")
    assert isinstance(found, Unavailable)
    assert f"interface {ABI + 1}" in found.reason
    assert f"expects {ABI}" in found.reason
    assert "stepwell.native.build" in found.fix


def test_a_failed_build_gives_its_reason(write: Write, tmp_path: Path) -> None:
    build(write(tmp_path / "source"), tmp_path / LIBRARY, compiler="false")
    found = open_library(tmp_path / LIBRARY, "")
    assert isinstance(found, Unavailable)
    assert found.reason == "false failed: exit code 1"
    assert "install a C++ compiler" in found.fix


def test_a_library_without_its_note_is_not_believed(made: Path, tmp_path: Path) -> None:
    (tmp_path / LIBRARY).write_bytes(made.read_bytes())
    found = open_library(tmp_path / LIBRARY, "")
    assert isinstance(found, Unavailable)
    assert found.reason == "they were not built"


def test_a_file_that_is_no_library_is_a_reason(made: Path, tmp_path: Path) -> None:
    note_of(tmp_path / LIBRARY).write_bytes(note_of(made).read_bytes())
    (tmp_path / LIBRARY).write_bytes(b"not a library")
    found = open_library(tmp_path / LIBRARY, "")
    assert isinstance(found, Unavailable)
    assert "cannot be loaded" in found.reason


def test_a_library_that_lacks_a_function_is_a_reason(compiler, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "kernels.cpp").write_text("namespace STEPWELL_ISA { int nothing() { return 0; } }")
    assert build(source, tmp_path / LIBRARY).built
    found = open_library(tmp_path / LIBRARY, "")
    assert isinstance(found, Unavailable)
    assert "stepwell_abi" in found.reason


def test_importing_loads_neither_torch_nor_the_library() -> None:
    script = """
import sys, stepwell.native.library
print("torch" in sys.modules, "_kernels" in open("/proc/self/maps").read())
"""
    if not Path("/proc/self/maps").exists():
        pytest.skip("this system does not tell what a process has mapped")
    assert run_python(script).split() == ["False", "False"]


def test_load_settles_it_once_and_says_why_not() -> None:
    script = """
import os
from stepwell.native import library
print(library.load(), library.unavailable_reason(), library.threads(), sep="|")
os.environ["STEPWELL_NATIVE"] = "nonsense"
print(library.load())
"""
    said = run_python(script, STEPWELL_NATIVE="off").splitlines()
    assert said == ["None|switched off by STEPWELL_NATIVE=off|1", "None"]


SHARED_POOL = """
import ctypes, pathlib, sys, torch
from stepwell.native import library
torch.set_num_threads(2)
torch.ones(500, 500) @ torch.ones(500, 500)
found = library.open_library(pathlib.Path(sys.argv[1]), "")
library.outcome = lambda: found
if not found.shares_pool:
    sys.exit(print("no pool"))

def threads_now():
    return len(list(pathlib.Path("/proc/self/task").iterdir()))

before = threads_now()
print(library.threads(), found.handle.sum_on(library.threads()), threads_now() - before)
torch.set_num_threads(1)
print(library.threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_the_kernels_compute_on_the_threads_that_torch_has_started(made: Path) -> None:
    said = run_python(SHARED_POOL, made)
    if said == "no pool\n":
        pytest.skip("this torch was built without OpenMP")
    assert said.split() == ["2", str(SUM + 2_000_000), "0", "1"]


def test_another_runtime_would_start_threads_of_its_own(made: Path, tmp_path: Path) -> None:
    """The control of the test above: a copy of the runtime is a second pool, and is seen."""
    runtime = [
        line.split()[-1] for line in mapped_by_torch() if "gomp" in Path(line.split()[-1]).name
    ]
    if not runtime:
        pytest.skip("torch uses no libgomp here that could be copied")
    copy = tmp_path / "libother.so"
    copy.write_bytes(Path(runtime[0]).read_bytes())
    own = f"""
other = ctypes.CDLL({str(copy)!r})
found.handle.stepwell_use_openmp(*(library._address(other, name) for name in library.OPENMP))
before = threads_now()
"""
    said = run_python(SHARED_POOL.replace("before = threads_now()\n", own), made)
    assert said.split() == ["2", str(SUM + 2_000_000), "1", "1"]


def mapped_by_torch() -> list[str]:
    """The lines of the files that a process with torch has mapped."""
    maps = Path("/proc/self/maps")
    import torch

    assert torch.get_num_threads() >= 1
    return [line for line in maps.read_text().splitlines() if "/" in line] if maps.exists() else []


FORK = """
import os, pathlib, sys, torch
from stepwell.native import library
torch.set_num_threads(2)
found = library.open_library(pathlib.Path(sys.argv[1]), "")
library.outcome = lambda: found
if not found.shares_pool:
    sys.exit(print("no pool"))

def result():
    threads = library.threads()
    return f"{threads} {found.handle.sum_on(threads) % 1_000_000}"

print(result(), flush=True)
child = os.fork()
if child == 0:
    print(result(), flush=True)
    if os.fork() == 0:
        print(result(), flush=True)
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
assert os.waitpid(child, 0)[1] == 0
print(result())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_the_same_on_one_thread(made: Path) -> None:
    said = run_python(FORK, made)
    if said == "no pool\n":
        pytest.skip("this torch was built without OpenMP")
    total = SUM % 1_000_000
    assert said.splitlines() == [f"2 {total}", f"1 {total}", f"1 {total}", f"2 {total}"]


def test_without_a_pool_there_is_one_thread(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "openmp_of_torch", lambda: None)
    found = open_library(made, "")
    assert isinstance(found, Library)
    assert not found.shares_pool
    monkeypatch.setattr(library, "outcome", lambda: found)
    assert library.threads() == 1


def test_a_torch_without_openmp_has_no_runtime_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.backends.openmp, "is_available", lambda: False)
    assert library.openmp_of_torch() is None


def test_the_kernels_of_this_installation_load_or_say_why() -> None:
    found = library.outcome()
    assert bool(library.load()) != bool(library.unavailable_reason())
    if isinstance(found, Library):
        assert isinstance(found.handle, ctypes.CDLL)
        assert found.handle.stepwell_abi() == ABI
