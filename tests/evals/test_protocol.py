"""The whole evaluation in miniature: a ladder trained, asked, fitted and run, over seeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_ladders import tiny_ladder

from stepwell.errors import CascadeError, UsageError
from stepwell.evals.cascade import LADDER
from stepwell.evals.ladders import LadderRecipe, StageRecipe
from stepwell.evals.live import ANEW, LOOKUP
from stepwell.evals.protocol import Evaluation, evaluate_cascade
from stepwell.evals.protocol_live import Pass
from stepwell.evals.protocol_summary import summarise
from stepwell.evals.protocol_tasks import arena_of_recipe
from stepwell.evals.protocol_trial import Event, Trial, certificate_of
from stepwell.tasks.arithmetic import Arithmetic
from stepwell.train.trainer import Trainer

STEPS = ["train small", "train large", "collect", "calibrate", "fit", "replay rules", "run live"]
PICTURES = {f"tiny-{name}.png" for name in ("frontier", "lambda", "reliability", "depth")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation, list[Event]]:
    """The folder of an evaluation with one seed, to be read only; what it found, what it said."""
    root = tmp_path_factory.mktemp("evaluation")
    heard: list[Event] = []
    found = evaluate_cascade(
        tiny_ladder(root / "tiny.yaml"), seeds=1, directory=root / "out", on_event=heard.append
    )
    return root, found, heard


@pytest.fixture
def copied(finished: tuple[Path, Evaluation, list[Event]], tmp_path: Path) -> Path:
    """A copy of that folder, to be changed."""
    return shutil.copytree(finished[0], tmp_path / "copy")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of training that are taken while a test runs."""
    taken: list[int] = []
    real = Trainer.gradients

    def gradients(trainer: Trainer, batch: Any) -> Any:
        taken.append(1)
        return real(trainer, batch)

    monkeypatch.setattr(Trainer, "gradients", gradients)
    return taken


def again(root: Path, **options: Any) -> tuple[Evaluation, list[str]]:
    """The same call once more, and the steps that it said had ended."""
    ended: list[str] = []

    def hear(event: Event) -> None:
        if event.state in ("ended", "kept"):
            ended.append(event.step if event.state == "ended" else "kept")

    found = evaluate_cascade(
        root / "tiny.yaml", seeds=1, directory=root / "out", on_event=hear, **options
    )
    return found, ended


def decided(evaluation: Evaluation) -> dict[str, Any]:
    """What does not depend on a clock: who is right, and by which measure of cost."""
    trial = evaluation.tasks[0].first
    return {
        "gates": [gate.value for gate in trial.gates[:3]],
        "by depth": trial.by_depth,
        "fixed": [(row.name, row.quality, row.flops) for row in trial.rules[:2]],
        "beliefs": trial.calibration,
        "counts": trial.counts,
    }


def test_it_leaves_a_report_and_a_folder_for_each_trial(
    finished: tuple[Path, Evaluation, list[Event]],
) -> None:
    root, found, _ = finished
    made = {path.name for path in (root / "out").iterdir()}
    assert made == {"tiny", "report.html", "results.json", "tables.md", *PICTURES}
    trial = {path.name for path in (root / "out/tiny/seed-0").iterdir()}
    assert {"ladder.yaml", "models", "results.json", "outcomes.safetensors"} <= trial
    assert {"ladder.collected", "ladder.fitted"} <= trial
    written = json.loads((root / "out/results.json").read_text())
    assert written == json.loads(json.dumps(found.plain()))
    assert (root / "out/tables.md").read_text() == found.markdown()
    page = (root / "out/report.html").read_text()
    for words in ("gap closed", LOOKUP, "oracle that pays the path", "Budgets, live"):
        assert words in page


def test_every_contestant_is_there_and_speculation_says_what_the_largest_says(
    finished: tuple[Path, Evaluation, list[Event]],
) -> None:
    trial = finished[1].task("tiny").first
    rows = {row.name: row for row in trial.live}
    always = {"always small", "always large"}
    assert set(rows) == {LADDER, ANEW, LOOKUP, "large drafted by small", *always}
    largest = rows["always large"]
    assert largest.quality == rows["large drafted by small"].quality == rows[LOOKUP].quality
    assert largest.quality > rows["always small"].quality + 0.2
    assert all(row.seconds > 0 for row in trial.live)
    assert all(row.same == 1.0 for row in trial.lambdas)
    assert trial.counts == {"predictor": 16, "calibration": 16, "test": 16}


def test_what_is_measured_twice_is_the_same_twice(
    finished: tuple[Path, Evaluation, list[Event]],
) -> None:
    """Fixed stages: replayed by weight, and by the first batch of real answers."""
    summary = finished[1].task("tiny")
    trial = summary.first
    assert trial.certificate.excess >= 0
    for stage in trial.stages:
        replayed = trial.rule(f"always {stage}").quality
        assert summary.numbers[f"rule/always {stage}/quality"].estimate == pytest.approx(replayed)
        live = next(row for row in trial.live if row.name == f"always {stage}")
        assert live.quality == pytest.approx(replayed, abs=0.1)  # drawn as often as asked


def test_steps_are_told_in_order_with_their_times(
    finished: tuple[Path, Evaluation, list[Event]],
) -> None:
    heard = finished[2]
    ended = [event for event in heard if event.state == "ended"]
    assert [event.step for event in ended] == STEPS
    assert all(event.seconds > 0 for event in ended)
    assert {event.step for event in heard if event.total} == {
        "train small",
        "train large",
        "collect",
    }
    assert finished[1].task("tiny").first.seconds.keys() == set(STEPS)


def test_a_finished_trial_is_not_run_again(copied: Path, steps: list[int]) -> None:
    files = sorted((copied / "out/tiny").rglob("*.*"))
    before = {path: path.stat().st_mtime_ns for path in files}
    written = (copied / "out/results.json").read_bytes()
    _, ended = again(copied)
    assert ended == ["kept"]
    assert not steps
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert (copied / "out/results.json").read_bytes() == written


class KilledError(BaseException):
    """As a signal would end it."""


def killed_at(step: str, state: str) -> Callable[[Event], None]:
    def hear(event: Event) -> None:
        if (event.step, event.state) == (step, state):
            raise KilledError

    return hear


@pytest.mark.parametrize("step", ["collect", "fit", "run live"])
def test_a_trial_that_was_stopped_goes_on_and_finds_the_same(
    finished: tuple[Path, Evaluation, list[Event]], copied: Path, steps: list[int], step: str
) -> None:
    trial = copied / "out/tiny/seed-0"
    for name in ("results.json", "outcomes.safetensors"):
        (trial / name).unlink()
    shutil.rmtree(trial / "ladder.fitted")
    if step == "collect":
        shutil.rmtree(trial / "ladder.collected")
    options = {"seeds": 1, "directory": copied / "out"}
    with pytest.raises(KilledError):
        evaluate_cascade(copied / "tiny.yaml", on_event=killed_at(step, "begun"), **options)
    assert not (trial / "results.json").exists()
    found, ended = again(copied)
    assert ended == STEPS
    assert not steps  # nothing is trained twice
    assert decided(found) == decided(finished[1])


def test_results_of_another_evaluation_are_refused(copied: Path) -> None:
    with pytest.raises(CascadeError, match="number of questions"):
        again(copied, num_questions=77)
    tiny_ladder(copied / "tiny.yaml", facts=49)
    with pytest.raises(CascadeError, match="another ladder"):
        again(copied)


def test_damage_is_found(copied: Path) -> None:
    outcomes = copied / "out/tiny/seed-0/outcomes.safetensors"
    outcomes.write_bytes(outcomes.read_bytes()[:-1] + b"x")
    with pytest.raises(CascadeError, match="SHA-256"):
        again(copied)


def test_there_must_be_something_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no task"):
        evaluate_cascade(tasks=(), directory=tmp_path)
    with pytest.raises(UsageError, match="seeds is 0"):
        evaluate_cascade(seeds=0, directory=tmp_path)


def test_excess_loss_is_where_the_largest_stage_alone_is_right(world: Any) -> None:
    data = world.data("test")
    good = data.good[:, -1].copy()
    lost = np.flatnonzero(good == 1)[:5]
    good[lost] = 0.0
    good[data.good[:, -1] == 0] = 1.0  # what the ladder wins does not make up for it
    served = Pass(good, good, np.ones((len(good), 3), dtype=np.bool_), ())
    found = certificate_of(world.fitted, served, data)
    assert found.certified is None
    assert found.excess == pytest.approx(data.weights[lost].sum() / data.weights.sum())


@pytest.mark.slow
def test_a_recipe_is_certified_and_asked_harder_questions_too(tmp_path: Path) -> None:
    """Four of ten questions teach beliefs, two are for each of the rest; none is in two splits."""
    task = partial(Arithmetic, digits=1, operations="+")
    taught = lambda seed: task(terms=6, seed=seed)  # noqa: E731
    sizes = (("small", 16, 4), ("large", 32, 30))
    recipe = LadderRecipe(
        "short-sums",
        "Sums of a few digits.",
        tuple(StageRecipe(name, 1, width, 2, taught, n, 64, 1e-2) for name, width, n in sizes),
        asked=lambda seed: task(terms=4, seed=seed),
        harder=taught,
        mild=4,
    )
    arena = arena_of_recipe(recipe)
    result, arrays = Trial(arena, 1, tmp_path, 240, lambda event: None).run()
    assert sum(result.counts.values()) == 240
    assert set(result.counts) == {"predictor", "calibration", "certification", "test"}
    assert min(result.counts.values()) > 20
    assert result.certificate.epsilon == 0.02
    assert result.shift is not None
    assert [row.name for row in result.shift.rows] == [row.name for row in result.rules]
    assert 10 < result.shift.questions < 40  # a fifth of half as many
    summary = summarise(arena, [(result, arrays)])
    assert summary.numbers["shift/refitted/quality"].estimate == result.shift.refitted.quality
    assert "fit, harder" in result.seconds


@pytest.mark.slow
def test_seeds_are_trained_apart_and_summed_up_together(tmp_path: Path) -> None:
    ladder = tiny_ladder(tmp_path / "tiny.yaml", facts=96, steps=(30, 60))
    found = evaluate_cascade(ladder, seeds=2, directory=tmp_path / "out").task("tiny")
    assert [trial.seed for trial in found.trials] == [0, 1]
    weights = [
        (tmp_path / f"out/tiny/seed-{seed}/models/large/model.safetensors").read_bytes()
        for seed in (0, 1)
    ]
    assert weights[0] != weights[1]
    quality = [trial.rule(LADDER).quality for trial in found.trials]
    number = found.numbers[f"rule/{LADDER}/quality"]
    assert number.estimate == pytest.approx(np.mean(quality))
    assert number.low <= number.estimate <= number.high
