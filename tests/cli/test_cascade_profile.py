"""`stepwell cascade profile`: the parts of one answer's time, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.question_ladders import question_ladder

from stepwell.cascade.pipeline import Cascade
from stepwell.cli import main

Run = Callable[..., Any]
PROMPT = "the cat 1"
DEEP = ("--lambda", 1000)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ladder file that was fitted; to be read only."""
    file = question_ladder(tmp_path_factory.mktemp("profiled"), count=48)
    assert main(["cascade", "fit", str(file), "--quiet"]) == 0
    return file


def test_the_parts_add_up_to_the_run_in_the_middle(fitted: Path, run: Run) -> None:
    ended = run("cascade", "profile", fitted, PROMPT, *DEEP, "--repetitions", 3, "--json")
    assert ended.code == 0
    found = ended.json
    answer = Cascade.load(fitted).generate(PROMPT, lam=1000.0)
    assert (found["prompt"], found["text"]) == (PROMPT, answer.text)
    assert [each["stage"] for each in found["stages"]] == [each.stage for each in answer.trace]
    assert len(found["runs"]) == 3
    assert found["seconds"] == sorted(found["runs"])[1]
    taken = sum(each["seconds"] for each in found["stages"])
    assert found["deciding_s"] > 0
    assert found["seconds"] == pytest.approx(taken + found["deciding_s"])
    assert sum(each["share"] for each in found["stages"]) < 1


def test_a_shallow_answer_takes_the_small_stage_alone(fitted: Path, run: Run) -> None:
    words = ("cascade", "profile", fitted, PROMPT, "--repetitions", 1, "--json")
    deep, shallow = (run(*words, "--lambda", lam).json for lam in (1000, 0))
    assert [each["stage"] for each in shallow["stages"]] == ["small"]
    assert deep["stages"][-1]["stage"] == "large"


def test_the_table_has_a_row_for_each_part(fitted: Path, run: Run) -> None:
    shown = run("cascade", "profile", fitted, PROMPT, *DEEP, "--repetitions", 1)
    head, *table = shown.out.splitlines()
    assert head.startswith(PROMPT)
    assert "ms, stopped: last" in head
    rows = [line.split()[0] for line in table if line.strip()]
    asked = [visit.stage for visit in Cascade.load(fitted).generate(PROMPT, lam=1000.0).trace]
    assert [row for row in rows if row in ("small", "large", "deciding")] == [*asked, "deciding"]


def test_what_cannot_be_profiled_is_said_with_a_fix(fitted: Path, run: Run, tmp_path: Path) -> None:
    none = run("cascade", "profile", fitted, PROMPT, "--repetitions", 0)
    assert (none.code, "repetitions is 0" in none.err) == (2, True)
    price = run("cascade", "profile", fitted, PROMPT, "--lambda", -1)
    assert (price.code, "expected a finite number from 0" in price.err) == (2, True)
    file = shutil.copytree(fitted.parent, tmp_path / "unfitted") / "ladder.yaml"
    shutil.rmtree(file.with_suffix(".fitted"))
    ended = run("cascade", "profile", file, PROMPT)
    assert ended.code == 1
    assert "holds no fitted stopping rule" in ended.err
    assert "`stepwell cascade fit" in ended.err
