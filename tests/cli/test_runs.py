"""The list of runs says how far and how good each is; a comparison shows what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from stepwell.config import read_yaml, write_yaml


@pytest.fixture
def runs(own_run: Path) -> Path:
    """A folder with three runs: finished, stopped, and one whose records are damaged."""
    folder = own_run.parent
    stopped = shutil.copytree(own_run, folder / "deep" / "stopped")
    config = read_yaml(stopped / "run.yaml")
    config["steps"], config["optimizer"]["lr"] = 50, 0.5
    write_yaml(stopped / "run.yaml", config)
    manifest = json.loads((stopped / "manifest.json").read_text())
    manifest["metrics"]["loss"] /= 2
    (stopped / "manifest.json").write_text(json.dumps(manifest))
    damaged = shutil.copytree(own_run, folder / "damaged")
    (damaged / "metrics.jsonl").write_text("{]\n")
    return folder


def test_the_list_says_how_far_and_how_good(run, runs: Path) -> None:
    listed = {each["name"]: each for each in run("runs", "--runs", runs, "--json").json}
    assert set(listed) == {"tiny", "deep/stopped", "damaged"}
    best = json.loads((runs / "tiny" / "manifest.json").read_text())["metrics"]
    assert listed["tiny"]["loss"] == best["loss"]
    assert listed["tiny"]["accuracy"] == best["accuracy"]
    assert (listed["tiny"]["step"], listed["tiny"]["steps"]) == (5, 5)
    assert listed["tiny"]["state"] == "finished"
    assert listed["deep/stopped"]["state"] == "stopped"
    assert listed["tiny"]["tokens_per_s"] > 0
    assert "line 1" in listed["damaged"]["problem"]
    shown = run("runs", "--runs", runs).out
    assert all(name in shown for name in listed)


def test_a_run_whose_lock_is_held_is_running(run, runs: Path) -> None:
    def state() -> str:
        [tiny] = [e for e in run("runs", "--runs", runs, "--json").json if e["name"] == "tiny"]
        return tiny["state"]

    with FileLock(runs / "tiny" / ".lock"):
        assert state() == "running"
    assert state() == "finished"


def test_a_run_that_lost_patience_stopped_early(run, runs: Path) -> None:
    stopped = runs / "deep" / "stopped"
    config = read_yaml(stopped / "run.yaml")
    write_yaml(stopped / "run.yaml", {**config, "patience": 2})
    record = {"step": 5, "split": "validation", "loss": 1.0, "since_lowest": 2}
    for since, state in ((1, "stopped"), (2, "stopped early")):
        with (stopped / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({**record, "since_lowest": since}) + "\n")
        listed = {each["name"]: each for each in run("runs", "--runs", runs, "--json").json}
        assert listed["deep/stopped"]["state"] == state


@pytest.mark.parametrize(("key", "first"), [("loss", "deep/stopped"), ("name", "damaged")])
def test_the_list_is_sorted_and_what_is_unknown_comes_last(run, runs: Path, key, first) -> None:
    names = [e["name"] for e in run("runs", "--runs", runs, "--sort", key, "--json").json]
    assert names[0] == first
    assert key == "name" or names[-1] == "damaged"


def test_a_comparison_shows_what_differs_and_nothing_else(run, runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    ended = run("runs", "tiny", runs / "deep" / "stopped", "--runs", runs, "--out", page, "--json")
    assert ended.code == 0, ended.err
    assert set(ended.json["differences"]) == {"steps", "optimizer.lr"}
    assert ended.json["differences"]["optimizer.lr"] == ["0.001", "0.5"]
    text = page.read_text()
    assert "optimizer.lr" in text
    assert "Validation loss" in text
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    same = run("runs", "tiny", runs / "tiny", "--runs", runs, "--json")
    assert same.json["differences"] == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny"], "nothing to compare"),
        (["tiny", "gone"], "is no run folder"),
        (["--out", "x.html"], "for a comparison"),
        (["--sort", "beauty"], "Invalid value"),
    ],
)
def test_what_cannot_be_is_refused(run, runs: Path, words: list[str], said: str) -> None:
    ended = run("runs", *words, "--runs", runs)
    assert ended.code == 2
    assert said in ended.err
