"""The doctor: each fault it can find is found, with its fix."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from stepwell.cli import checks, doctor
from stepwell.cli.checks import Check
from stepwell.errors import ConfigError
from stepwell.model import memory
from stepwell.native import library


def test_a_sound_machine_is_healthy(run, tmp_path: Path) -> None:
    ended = run("doctor", "--runs", tmp_path, "--json")
    report = ended.json
    assert ended.code == 0
    assert report["healthy"] is True
    names = [check["name"] for check in report["checks"]]
    for name in ("python", "torch", "transformers", "processor", "memory", "disk", "threads"):
        assert name in names
    assert "native kernels" in names
    assert not list(tmp_path.iterdir())


def test_what_is_broken_makes_the_exit_code_1_and_shows_the_fix(run, monkeypatch) -> None:
    broken = Check("run folder", "broken", "runs cannot be written", "ask for the right.")
    monkeypatch.setattr(doctor, "all_checks", lambda _runs: [broken, Check("a", "ok", "b")])
    ended = run("doctor")
    assert ended.code == 1
    assert "fix: ask for the right." in ended.out
    assert "1 of 2 checks failed" in ended.err
    assert run("doctor", "--json").json["healthy"] is False


def test_each_check_tells_good_from_bad(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    pairs = [
        (checks.check_python((3, 13)), checks.check_python((3, 10)), "broken"),
        (checks.check_memory(2**33), checks.check_memory(2**20), "warning"),
        (checks.check_disk(tmp_path, 2**33), checks.check_disk(tmp_path, 2**20), "warning"),
        (checks.check_threads(2, 2), checks.check_threads(8, 2), "warning"),
        (checks.check_writable("a", tmp_path / "new"), checks.check_writable("a", file), "broken"),
    ]
    for good, bad, state in pairs:
        assert good.state == "ok", good
        assert not good.fix
        assert bad.state == state, bad
        assert bad.fix


def test_a_missing_library_is_broken_and_a_missing_extra_is_not(monkeypatch) -> None:
    assert checks.check_library("torch").state == "ok"

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert checks.check_library("torch") == Check(
        "torch", "broken", "not installed", "pip install torch"
    )
    assert checks.check_extra("datasets").state == "note"


def test_a_torch_that_does_not_load_is_broken(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    [check] = checks.torch_checks()
    assert check.state == "broken"
    assert "cannot be loaded" in check.found


@pytest.mark.parametrize(("value", "word"), [("1", "offline"), ("0", "online")])
def test_the_hub_is_offline_where_it_is_said_to_be(monkeypatch, value: str, word: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert checks.check_hub().found.startswith(word)


LOADED = library.Library(ctypes.CDLL(None), "avx2", "0123456789abcdef-avx2", shares_pool=True)


@pytest.mark.parametrize(
    ("outcome", "state", "words", "fix"),
    [
        (LOADED, "ok", "avx2, build 01234567", ""),
        (replace(LOADED, shares_pool=False), "ok", "on one thread", ""),
        (library.Unavailable("switched off"), "note", "switched off; decoding is about 3", ""),
        (library.Unavailable("no compiler", "install g++"), "warning", "no compiler", "install"),
    ],
)
def test_native_kernels_are_named_or_missed(
    monkeypatch, outcome: library.Library | library.Unavailable, state: str, words: str, fix: str
) -> None:
    monkeypatch.setattr(library, "outcome", lambda: outcome)
    check = checks.check_native()
    assert check.state == state
    assert words in check.found
    assert check.fix.startswith(fix)
    assert bool(check.fix) == bool(fix)


def test_kernels_that_cannot_be_had_are_broken_where_they_were_asked_for(monkeypatch) -> None:
    def refused() -> library.Library:
        raise ConfigError("STEPWELL_NATIVE=avx9 is not a choice.", fix="unset it.")

    monkeypatch.setattr(library, "outcome", refused)
    check = checks.check_native()
    assert (check.state, check.fix) == ("broken", "unset it.")
    assert "avx9" in check.found


@pytest.mark.parametrize(
    ("switch", "state"),
    [("always [madvise] never", "ok"), ("always madvise [never]", "warning"), (None, "note")],
)
def test_huge_pages_are_found_missed_or_unknown(
    monkeypatch, tmp_path: Path, switch: str | None, state: str
) -> None:
    path = tmp_path / "enabled"
    if switch is not None:
        path.write_text(switch)
    monkeypatch.setattr(memory, "SWITCH", path)
    monkeypatch.setattr(memory.mmap, "MADV_HUGEPAGE", 14, raising=False)
    memory.has_huge_pages.cache_clear()
    try:
        check = checks.check_huge_pages()
    finally:
        memory.has_huge_pages.cache_clear()
    assert check.state == state
    assert (f"echo madvise > {path}" in check.fix) == (state == "warning")
