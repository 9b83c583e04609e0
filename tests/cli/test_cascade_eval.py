"""`stepwell cascade eval` in miniature: what it says, and how it goes on after Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_ladders import tiny_ladder

from stepwell.cli.cascade_eval import ALL_TASKS, Watcher
from stepwell.cli.console import Output
from stepwell.cli.faults import INTERRUPTED
from stepwell.evals import protocol_trial
from stepwell.evals.protocol_tasks import TASKS
from stepwell.evals.protocol_trial import Event

Run = Callable[..., Any]


def test_ctrl_c_is_clean_and_the_same_command_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder, out = tiny_ladder(tmp_path / "tiny.yaml"), tmp_path / "out"
    words = ("cascade", "eval", ladder, "--seeds", "1", "--out", out)

    def pressed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(protocol_trial, "measure_live", pressed)
        stopped = run(*words)
    assert stopped.code == INTERRUPTED
    assert f"What is done is in {out}" in stopped.err
    assert "Traceback" not in stopped.err
    assert not (out / "results.json").exists()

    ended = run(*words, "--json")
    assert ended.code == 0
    assert "train small" in ended.err
    assert "finished before" in ended.err
    assert ended.json["report"] == str(out / "report.html")
    assert ended.json["tasks"]["tiny"]["stages"] == ["small", "large"]

    again = run(*words)
    assert "tiny, seed 0: finished before" in again.err
    assert "gap closed" in again.out


def test_a_ladder_and_tasks_are_not_given_together(run: Run, tmp_path: Path) -> None:
    ended = run("cascade", "eval", tmp_path / "tiny.yaml", "--tasks", "facts")
    assert ended.code == 2
    assert "in the place of --tasks" in ended.err


def test_an_unknown_task_is_named(run: Run, tmp_path: Path) -> None:
    ended = run("cascade", "eval", "--tasks", "fact", "--out", tmp_path)
    assert ended.code == 2
    assert "fact" in ended.err
    assert "facts" in ended.err


def test_all_tasks_are_those_of_the_evaluation() -> None:
    assert tuple(ALL_TASKS.split(",")) == TASKS


def test_each_step_is_a_line_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = Watcher(Output())
    watcher.hear(Event("facts", 2, "collect", "begun"))
    for done in (500, 1000):
        watcher.hear(Event("facts", 2, "collect", "going on", done, 1000))
    watcher.hear(Event("facts", 2, "collect", "ended", seconds=12.34))
    watcher.hear(Event("facts", 3, "trial", "kept"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("facts, seed 2: collect  500/1,000")
    assert any(line.startswith("facts, seed 2: collect  12.3 s") for line in lines)
    assert lines[-1] == "facts, seed 3: finished before"
