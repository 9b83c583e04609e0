"""A sweep by command: every flag of training, a table at the end, errors before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY = (
    *("--task", "facts", "--facts", "8", "--num-layers", "1", "--width", "16"),
    *("--num-heads", "1", "--context-length", "16", "--batch-size", "4", "--steps", "3"),
    *("--evaluation-batches", "1", "--samples", "0", "--log-every", "1", "--threads", "1"),
)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return ["sweep", *TINY, "--runs", str(tmp_path / "runs"), "--name", "swept"]


def test_a_grid_by_command_is_its_runs_and_a_table(run, words: list[str], tmp_path: Path) -> None:
    ended = run(*words, "--grid", "num_heads=1,2", "optimizer.lr=1e-3,1e-1", "--json")
    assert ended.code == 0, ended.err
    assert len(ended.json["trials"]) == 4
    losses = [trial["metrics"]["loss"] for trial in ended.json["trials"]]
    assert losses == sorted(losses)
    folder = tmp_path / "runs" / "swept"
    assert {"sweep.html", "sweep.png", "sweep.json"} <= {path.name for path in folder.iterdir()}
    assert (folder / "num_heads=2+optimizer.lr=0.001" / "model.safetensors").exists()
    again = run(*words, "--grid", "num_heads=1,2", "optimizer.lr=1e-3,1e-1", "--json")
    assert again.json == ended.json, "nothing is trained again"
    assert "4 of them before" in again.err


def test_a_failing_trial_is_told_and_the_exit_code_is_0(run, words: list[str]) -> None:
    ended = run(*words, "--grid", "num_heads=1,3")
    assert ended.code == 0
    assert "num_heads=3  failed: " in ended.err
    assert "num_heads=1  done, loss" in ended.err


def test_a_sweep_can_be_shown_by_another_metric(run, words: list[str], tmp_path: Path) -> None:
    run(*words, "--grid", "seed=0,1,2")
    shown = run("sweep", "--show", tmp_path / "runs" / "swept", "--metric", "accuracy", "--json")
    shares = [trial["metrics"]["accuracy"] for trial in shown.json["trials"]]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "What shall be varied?"),
        (["--grid", "num_layer=1,2"], "Did you mean 'num_layers'?"),
        (["--grid", "lr"], "says not what to vary"),
        (["--grid", "seed=1", "--search", "lr=1..2"], "and not by both"),
        (["--grid", "seed=1", "--workers", "0"], "workers is 0"),
        (["--grid", "seed=1", "--run-name", "x"], "has no flag --run-name"),
        (["--show", "nowhere"], "is no sweep"),
    ],
)
def test_what_cannot_be_is_refused_before_it_begins(
    run, words: list[str], tmp_path: Path, given: list[str], said: str
) -> None:
    ended = run(*words, *given)
    assert ended.code == 2
    assert said in ended.err
    assert not (tmp_path / "runs").exists()


def test_another_base_shows_the_difference(run, words: list[str]) -> None:
    run(*words, "--grid", "seed=0")
    ended = run(*words, "--clip", "2.0", "--grid", "seed=0")
    assert ended.code == 2
    assert "clip: 1.0 -> 2.0" in ended.err
    assert run(*words, "--clip", "2.0", "--grid", "seed=0", "--fresh").code == 0


def test_ctrl_c_is_130_and_says_that_it_goes_on(run, words: list[str], monkeypatch) -> None:
    from stepwell.train.sweep import run as face

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(face, "work", interrupted)
    ended = run(*words, "--grid", "seed=0")
    assert ended.code == 130
    assert "the same command goes on" in ended.err
