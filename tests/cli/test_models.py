"""The list of models: what is in it, and what is left out."""

from __future__ import annotations

import shutil
from pathlib import Path

from stepwell.cli.models import Listed, models_table


def test_a_run_is_listed_with_what_it_is_and_how_good(run, own_run: Path) -> None:
    shutil.copytree(own_run, own_run.parent / "group" / "deep")
    rows = run("models", "--runs", own_run.parent, "--json").json
    assert [row["directory"] for row in rows] == [
        str(own_run.parent / "group" / "deep"),
        str(own_run),
    ]
    metrics = run("train", "--config", own_run / "run.yaml", "--json").json["metrics"]
    assert rows[1] == {
        "directory": str(own_run),
        "family": "llama",
        "parameters": 3424,
        "task": "facts",
        "step": 5,
        "steps": 5,
        "loss": metrics["loss"],
        "problem": "",
    }


def test_the_table_holds_the_same(run, own_run: Path) -> None:
    table = run("models", "--runs", own_run.parent).out
    for word in (str(own_run), "llama", "3.4k", "facts", "5 of 5"):
        assert word in table.replace("\n", "")
    assert "checkpoint" not in table


def test_a_model_that_is_no_run_is_listed_too(run, own_run: Path) -> None:
    for name in ("run.yaml", "manifest.json"):
        (own_run / name).unlink()
    [row] = run("models", "--runs", own_run.parent, "--json").json
    assert (row["parameters"], row["task"], row["loss"]) == (3424, "", None)


def test_a_run_without_weights_is_listed_as_such(run, own_run: Path) -> None:
    for path in own_run.iterdir():
        if path.name != "run.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    [row] = run("models", "--runs", own_run.parent, "--json").json
    assert (row["task"], row["step"], row["steps"], row["problem"]) == ("facts", None, 5, "")


def test_the_folder_is_that_of_the_environment(run, own_run: Path, monkeypatch) -> None:
    monkeypatch.setenv("STEPWELL_RUNS", str(own_run.parent))
    assert len(run("models", "--json").json) == 1


def test_no_model_is_no_fault(run, tmp_path: Path) -> None:
    ended = run("models", "--runs", tmp_path)
    assert ended.code == 0
    assert "stepwell demo" in ended.err


def test_the_lowest_loss_of_a_task_is_bold() -> None:
    rows = [Listed(name, task="facts", loss=loss) for name, loss in (("a", 2.0), ("b", 1.0))]
    alone = Listed("c", task="dag", loss=3.0)
    cells = list(models_table([*rows, alone]).columns[-1].cells)
    assert [cell.style for cell in cells] == ["", "bold", ""]
