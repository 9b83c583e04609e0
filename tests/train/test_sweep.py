"""A sweep over processes is its trials trained alone, whatever is killed or stopped on the way."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from stepwell.config import read_json
from stepwell.errors import ConfigError, TrainingError, UsageError
from stepwell.storage.sealed import sha256
from stepwell.train.history import History
from stepwell.train.sweep import crew
from stepwell.train.sweep.crew import devices_of, own_files, share_of_cores
from stepwell.train.sweep.folder import SweepFolder
from stepwell.train.sweep.page import write_sweep
from stepwell.train.sweep.result import SweepResult
from stepwell.train.sweep.run import sweep
from stepwell.train.sweep.watching import Unwatched
from stepwell.train.trainer import Trainer


@pytest.fixture
def base(small):
    return small(run_name="sweep", evaluate_every=0, log_every=1, samples=0)


def steps_of(directory) -> list[int]:
    return [record["step"] for record in History.read(directory).training]


class Killer(Unwatched):
    """Kills, once, the worker that is first seen amid a trial that has a checkpoint."""

    def __init__(self):
        self.processes = {}
        self.killed = None
        self.num_replaced = 0

    def start(self, folder, workers):
        self.folder = folder

    def update(self, worker, trial, step, steps, loss):
        run = self.folder.directory / trial.name
        if self.killed is None and step < steps and list(run.glob("checkpoint-*")):
            self.killed = trial.name
            os.kill(self.processes[worker].pid, signal.SIGKILL)

    def replaced(self, worker):
        self.num_replaced += 1


def test_a_killed_worker_costs_no_trial_and_no_bit(base, small, monkeypatch):
    """Eight trials, two workers, one killed amid a trial: each is trained once, as if alone."""
    config = base.changed(steps=60, save_every=5)
    killer = Killer()
    start = crew.Crew._start

    def noted(self, number):
        start(self, number)
        killer.processes[number] = self._processes[number]

    monkeypatch.setattr(crew.Crew, "_start", noted)
    grid = {"seed": "0..3", "num_layers": "1,2"}
    result = sweep(config, grid=grid, workers=2, progress=killer)
    assert killer.killed
    assert killer.num_replaced == 1
    assert len(result.finished) == len(result.trials) == 8
    # on a busy machine the kill may come when the worker has gone on to its next trial
    [killed] = [trial.name for trial in result.trials if trial.begun > 1]
    for trial in result.trials:
        directory = result.directory / trial.name
        assert steps_of(directory) == list(range(1, 61)), "each step once"
        begun = 1 + (trial.name == killed)
        assert trial.begun == begun >= len(History.read(directory).sessions) >= 1
    assert {"sweep.html", "sweep.png", "sweep.json"} <= {p.name for p in result.directory.iterdir()}
    for name in (killed, "seed=3+num_layers=1"):
        [trial] = [each for each in result.trials if each.name == name]
        shape = config.model.resized(num_layers=trial.values["num_layers"])
        alone = config.changed(run_name=f"alone-{name}", model=shape, seed=trial.values["seed"])
        run = Trainer(alone).train()
        for file in ("model.safetensors", "checkpoint-60/optimizer.safetensors"):
            assert sha256(run.directory / file) == sha256(result.directory / name / file)


def test_a_trial_trained_with_another_seed_has_other_bits(base):
    """Negative control of the comparison above."""
    result = sweep(base, grid={"seed": [0, 1]}, workers=1)
    files = [result.directory / trial.name / "model.safetensors" for trial in result.trials]
    assert sha256(files[0]) != sha256(files[1])


def test_a_stop_saves_and_the_same_call_goes_on(base):
    asked = iter(range(1000))
    with pytest.raises(KeyboardInterrupt):
        sweep(base, grid={"seed": [0, 1, 2]}, workers=1, stop_requested=lambda: next(asked) > 18)
    stopped = SweepFolder(base.directory).trials()
    assert [trial.outcome for trial in stopped] == ["finished", "", ""]
    assert [trial.begun - trial.stopped for trial in stopped] == [1, 0, 0]
    result = sweep(base, grid={"seed": [0, 1, 2]}, workers=1)
    assert len(result.finished) == 3
    for trial in result.trials:
        assert steps_of(result.directory / trial.name) == list(range(1, 13))


def test_a_stop_ends_all_workers_after_saving(base):
    config = base.changed(steps=100_000, save_every=0)

    class Seen(Unwatched):
        steps = 0

        def update(self, worker, trial, step, steps, loss):
            Seen.steps = max(Seen.steps, step)

    with pytest.raises(KeyboardInterrupt):
        sweep(
            config,
            grid={"seed": [0, 1]},
            workers=2,
            progress=Seen(),
            stop_requested=lambda: Seen.steps > 0,
        )
    trials = SweepFolder(config.directory).trials()
    assert [trial.begun - trial.stopped for trial in trials] == [0, 0]
    saved = [list((config.directory / trial.name).glob("checkpoint-*")) for trial in trials]
    assert any(saved), "one had begun, and was saved"


def test_a_trial_that_fails_is_noted_and_the_others_go_on(base):
    grid = {"num_heads": [1, 3, 2], "weight_decay": [0.1, 1e300]}
    result = sweep(base, grid=grid, workers=1)
    reasons = {trial.name: trial.reason for trial in result.failed}
    assert len(result.finished) + len(result.failed) == 6
    assert {trial.name for trial in result.finished} == {
        "num_heads=1+weight_decay=0.1",
        "num_heads=2+weight_decay=0.1",
    }
    assert "head_dim" in reasons["num_heads=3+weight_decay=0.1"]
    assert "not finite" in reasons["num_heads=1+weight_decay=1e+300"]


def test_a_worker_that_cannot_begin_ends_the_sweep_with_its_words(base, monkeypatch):
    job = crew.job
    monkeypatch.setattr(crew, "job", lambda *given: {**job(*given), "own": {"gone": ""}})
    with pytest.raises(TrainingError, match="No module named 'gone'") as caught:
        sweep(base, grid={"seed": [0, 1]}, workers=2)
    assert "workers.log" in caught.value.fix


def test_a_changed_base_is_shown_and_fresh_begins_anew(base):
    sweep(base, grid={"seed": [0]})
    other = base.changed(steps=13)
    with pytest.raises(ConfigError, match="steps: 12 -> 13"):
        sweep(other, grid={"seed": [0]})
    result = sweep(other, grid={"seed": [0]}, fresh=True)
    assert steps_of(result.directory / "seed=0")[-1] == 13


def test_fresh_takes_nothing_from_those_who_work_and_nothing_that_is_no_sweep(base):
    sweep(base, grid={"seed": [0]})
    folder = SweepFolder(base.directory)
    claim = folder.take(lambda trials: {"seed": 7})
    with pytest.raises(TrainingError, match="Another process works"):
        sweep(base, grid={"seed": [0]}, fresh=True)
    claim.lock.release()
    run = Trainer(base.changed(run_name="run")).train()
    with pytest.raises(ConfigError, match="it is no sweep"):
        sweep(base.changed(run_name="run"), grid={"seed": [0]}, fresh=True)
    assert (run.directory / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "by a grid or by a search"),
        ({"grid": {"lr": [1]}, "search": {"lr": "0.1..1"}}, "by a grid or by a search"),
        ({"grid": {"lr": [1]}, "workers": 0}, "workers is 0"),
        ({"grid": {"lr": [1], "optimizer.lr": [2]}}, "are the same field"),
        ({"search": {"lr": "0.1..1"}, "trials": 0}, "trials is 0"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_it_begins(base, options, said):
    with pytest.raises(UsageError, match=said):
        sweep(base, **options)
    assert not base.directory.exists()


def test_a_metric_that_there_is_not_gets_a_suggestion(base):
    with pytest.raises(ConfigError, match="Did you mean 'accuracy'"):
        sweep(base, grid={"seed": [0]}, metric="acuracy")


# -- search ----------------------------------------------------------------------------------------


def test_a_search_tries_other_values_each_time_and_goes_on(base):
    pytest.importorskip("optuna")
    space = {"lr": "log:1e-4..1e-1", "num_layers": "1..2"}
    config = base.changed(steps=4, save_every=0)
    first = sweep(config, search=space, trials=3)
    assert len(first.finished) == 3
    more = sweep(config, search=space, trials=5)
    assert [trial.name for trial in more.trials[:3]] == [trial.name for trial in first.trials]
    assert len({trial.name for trial in more.trials}) == 5
    assert all(trial.begun == 1 for trial in more.trials)
    for trial in more.trials:
        assert 1e-4 <= trial.values["lr"] <= 1e-1
        assert trial.values["num_layers"] in (1, 2)


def test_a_search_learns_from_what_it_has_seen(base, tmp_path):
    """In a bowl of two dimensions the later half comes nearer than one that is told nothing."""
    pytest.importorskip("optuna")
    from stepwell.train.sweep.folder import Plan
    from stepwell.train.sweep.search import Search

    plan = Plan(base=base.plain(), search={"clip": "0.0..1.0", "beta1": "0.0..0.9"}, trials=60)

    def late_loss(told: bool) -> float:
        folder = SweepFolder(tmp_path / str(told))
        folder.set_up(plan, [])
        search = Search(folder.directory, plan)
        losses = []
        while claim := folder.take(search.propose):
            values = claim.trial.values
            losses.append((values["clip"] - 0.3) ** 2 + (values["beta1"] - 0.6) ** 2)
            metrics = {"loss": losses[-1]} if told else {}
            folder.end(claim, outcome="finished", metrics=metrics)
        return float(np.median(losses[30:]))

    assert late_loss(told=True) < 0.5 * late_loss(told=False)


def test_a_small_space_is_tried_out_once(base):
    pytest.importorskip("optuna")
    result = sweep(base.changed(steps=2), search={"num_layers": "1,2"}, trials=9)
    assert sorted(trial.values["num_layers"] for trial in result.finished) == [1, 2]


def test_without_optuna_a_search_says_what_to_install(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError) as caught:
        sweep(base, search={"lr": "0.1..1"})
    assert 'pip install "stepwell[sweep]"' in caught.value.fix
    assert sweep(base, grid={"seed": [0]}).finished


def test_a_grid_does_not_import_optuna():
    script = "import sys, stepwell.train.sweep.run; print('optuna' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


# -- what it came to -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid_result(small_in, tmp_path_factory):
    config = small_in(tmp_path_factory.mktemp("sweeps"), run_name="grid", steps=4, samples=0)
    return sweep(config, grid={"num_layers": [1, 2], "num_heads": [1, 2, 3]})


def test_the_table_is_ordered_by_the_metric(grid_result):
    losses = [trial.metric("loss") for trial in grid_result.finished]
    assert losses == sorted(losses)
    other = SweepResult.read(grid_result.directory, metric="accuracy")
    shares = [trial.metric("accuracy") for trial in other.finished]
    assert shares == sorted(shares, reverse=True)
    assert len(grid_result.table().rows) == 6


def test_two_axes_make_a_heatmap_with_what_failed_left_blank(grid_result):
    from stepwell.train.sweep.page import sweep_pictures

    picture = sweep_pictures(grid_result)["sweep"]
    expected = np.full((2, 3), math.nan)
    for trial in grid_result.finished:
        expected[trial.values["num_layers"] - 1, trial.values["num_heads"] - 1] = trial.metric(
            "loss"
        )
    assert np.array_equal(picture.array, expected, equal_nan=True)
    assert np.isnan(expected[:, 2]).all()
    assert "failed" in picture.note


@pytest.mark.parametrize(
    "grid",
    [{"schedule": ["cosine", "wsd"]}, {"seed": [0, 1], "lr": [1e-4, 1e-1], "pack": [True, False]}],
)
def test_other_grids_have_a_chart_for_each_axis(base, grid):
    from stepwell.train.sweep.page import sweep_pictures

    result = sweep(base.changed(steps=2), grid=grid)
    drawn = sweep_pictures(result)
    assert len(drawn) == len(grid)
    for chart, name in zip(drawn.values(), grid, strict=True):
        [points] = [series for series in chart.series if series.name == "trials"]
        assert sorted(points.y) == sorted(trial.metric("loss") for trial in result.finished)
        assert chart.x_label == name
        assert chart.x_log == (name == "lr")


def test_the_files_say_what_the_trials_came_to(grid_result):
    saved = read_json(grid_result.directory / "sweep.json")
    assert saved["best"] == grid_result.best.name
    assert {trial["name"]: trial["metrics"].get("loss") for trial in saved["trials"]} == {
        trial.name: trial.metrics.get("loss") for trial in grid_result.trials
    }
    page = write_sweep(grid_result, pictures=False).read_text()
    assert grid_result.best.name in page
    assert "head_dim" in page, "why some failed"
    assert json.loads((grid_result.directory / "sweep.json").read_text()) == saved


# -- where it runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("cores", "workers"), [(8, 2), (7, 3), (2, 2), (1, 1)])
def test_workers_share_no_core_where_there_are_enough(cores, workers):
    shares = [share_of_cores(range(cores), number, workers) for number in range(workers)]
    taken = [core for share in shares for core in share]
    assert len(taken) == len(set(taken))
    assert {len(share) for share in shares} == {cores // workers}


def test_with_fewer_cores_than_workers_each_has_one():
    assert [share_of_cores([4, 5], number, 3) for number in range(3)] == [[4], [5], [4]]
    assert share_of_cores([], 0, 2) == []


def test_devices_are_a_list_with_commas(monkeypatch):
    assert devices_of("cuda:0, cuda:2") == ["cuda:0", "cuda:2"]
    monkeypatch.setattr(crew.torch.cuda, "device_count", lambda: 2)
    assert devices_of("auto") == ["cuda:0", "cuda:1"]
    monkeypatch.setattr(crew.torch.cuda, "device_count", lambda: 0)
    assert devices_of("auto") == ["auto"]


OWN = '''
import stepwell as sw

class Tripling(sw.Task):
    """Three times a number."""
    alphabet = "0123456789*="

    def example(self, index):
        number = self.rng(index).randrange(100)
        return sw.Example.completion(f"{number}*3=", str(3 * number), depth=1)

class Halved(sw.Trainer):
    def loss(self, batch):
        return super().loss(batch) / 2

if __name__ == "__main__":
    config = sw.TrainerConfig(
        model=sw.presets["tiny"].resized(width=16, num_layers=1), task=Tripling(), steps=2,
        batch_size=2, runs="runs", run_name="own", evaluation_batches=1,
    )
    found = sw.sweep(config, grid={"seed": [0, 1]}, workers=2, trainer=Halved)
    losses = [found.directory / trial.name / "metrics.jsonl" for trial in found.finished]
    print(len(losses))
'''


@pytest.mark.slow
def test_workers_know_a_task_and_trainer_of_ones_own(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(OWN)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "2", done.stderr
    assert own_files(Trainer) == {}
