"""Kept help pages: the same text, sooner, and never one of yesterday's sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwell.cli import app as app_module
from stepwell.cli import help_cache
from stepwell.cli.help_cache import page_path


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no command line may run."""

    def fail(_words: object) -> int:
        raise AssertionError("the page was made again")

    monkeypatch.setattr(app_module, "run_words", fail)


def test_a_kept_page_is_the_page(run, monkeypatch) -> None:
    first = run("models", "--help")
    forbid(monkeypatch)
    assert run("models", "--help") == first
    with pytest.raises(AssertionError):
        run("models")


def test_changed_sources_make_the_page_anew(run, monkeypatch) -> None:
    run("models", "--help")
    forbid(monkeypatch)
    monkeypatch.setattr(help_cache, "_stamp", lambda: "another")
    with pytest.raises(AssertionError):
        run("models", "--help")


@pytest.mark.parametrize(
    "change", [("COLUMNS", "50"), ("NO_COLOR", "1"), ("STEPWELL_RUNS", "elsewhere")]
)
def test_a_page_belongs_to_its_surroundings(run, monkeypatch, change: tuple[str, str]) -> None:
    before = page_path(["train", "--help"])
    monkeypatch.setenv(*change)
    assert page_path(["train", "--help"]) != before


def test_a_page_belongs_to_its_words() -> None:
    pages = [["train", "-h"], ["train", "--help"], ["train", "--task", "facts", "--help"]]
    assert len({page_path(words) for words in pages}) == 3


@pytest.mark.parametrize(
    "words", [["train"], ["train", "--help", "--config", "run.yaml"], ["generate", "--", "--help"]]
)
def test_nothing_else_is_kept(words: list[str]) -> None:
    assert page_path(words) is None


def test_an_error_is_not_kept(run, tmp_path: Path) -> None:
    assert run("train", "--task", "fatcs", "--help").code == 2
    assert not list(tmp_path.glob("cache/stepwell/help/*/*"))


def test_pages_of_other_sources_are_removed(run, tmp_path: Path, monkeypatch) -> None:
    run("models", "--help")
    [old] = tmp_path.glob("cache/stepwell/help/*")
    monkeypatch.setattr(help_cache, "_stamp", lambda: "another")
    run("models", "--help")
    assert [path.name for path in old.parent.iterdir()] == ["another"]


def test_without_a_folder_for_them_there_is_help_all_the_same(run, tmp_path, monkeypatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert "--runs PATH" in run("models", "--help").out
