"""No trial is taken twice, and none is lost: not by a kill, a stop or a full row of failures."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import ClassVar

import pytest

from stepwell.errors import ConfigError
from stepwell.train.run_folder import Run
from stepwell.train.sweep import folder as folder_module
from stepwell.train.sweep.folder import MOST_DEATHS, Plan, SweepFolder
from stepwell.train.sweep.search import no_more
from stepwell.train.sweep.work import work


@pytest.fixture
def plan(small):
    return Plan(base=small().plain(), grid={"seed": list(range(8))})


@pytest.fixture
def swept(plan, tmp_path):
    """The folder of a sweep of eight trials, none of them begun."""
    made = SweepFolder(tmp_path / "sweep")
    made.set_up(plan, [{"seed": seed} for seed in range(8)])
    return made


def die(claim) -> None:
    """What is left of a process that was killed: the system lets go of its locks."""
    claim.lock.release(force=True)


# -- taking ----------------------------------------------------------------------------------------


class Recorded:
    """Stands for a trainer: notes which configuration it was asked to train."""

    trained: ClassVar[Counter] = Counter()

    def __init__(self, config):
        self.config = config

    def train(self, **_):
        Recorded.trained[self.config.run_name] += 1
        time.sleep(0.02)
        self.config.directory.mkdir()
        (self.config.directory / "run.yaml").write_text("steps: 1")
        return Run(self.config.directory, 1, {"loss": float(self.config.seed)})


class Deaf:
    def progress(self, trial):
        return None

    def ended(self, trial):
        pass


def trained_by_two_at_once(folder) -> Counter:
    """How often each trial was trained by two workers."""
    Recorded.trained = Counter()
    workers = [
        threading.Thread(target=work, args=(folder, Deaf(), lambda: False, Recorded))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Recorded.trained


def test_two_workers_train_each_trial_once(swept):
    trained = trained_by_two_at_once(swept)
    assert trained == Counter({f"seed={seed}": 1 for seed in range(8)})
    assert {trial.outcome for trial in swept.trials()} == {"finished"}


def test_a_sweep_that_ignores_claims_is_seen_to_train_one_twice(swept, monkeypatch):
    """Negative control of the law above."""

    class Open(folder_module.FileLock):
        def acquire(self, *_, **__):
            return self

        def release(self, *_, **__):
            pass

    monkeypatch.setattr(folder_module, "FileLock", Open)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    assert max(trained_by_two_at_once(swept).values()) > 1


def test_what_is_held_is_not_taken_and_what_was_left_is(swept):
    first, second = swept.take(no_more), swept.take(no_more)
    assert [first.trial.number, second.trial.number] == [0, 1]
    die(first)
    again = swept.take(no_more)
    assert again.trial.number == 0
    assert again.trial.begun == 2
    assert swept.take(no_more).trial.number == 2


def test_what_has_an_outcome_is_never_taken_again(swept):
    claims = [swept.take(no_more) for _ in range(8)]
    for claim in claims:
        swept.end(claim, outcome="failed", reason="for a test")
    assert swept.take(no_more) is None


def test_a_trial_that_ends_its_process_again_and_again_counts_as_failed(swept):
    for _ in range(MOST_DEATHS):
        claim = swept.take(no_more)
        assert claim.trial.number == 0
        die(claim)
    assert swept.take(no_more).trial.number == 1
    assert swept.trial(0).outcome == "failed"
    assert "3 times" in swept.trial(0).reason


def test_a_stop_is_no_death(swept):
    for _ in range(MOST_DEATHS + 2):
        claim = swept.take(no_more)
        assert claim.trial.number == 0
        swept.end(claim, stopped=claim.trial.stopped + 1)
    assert swept.trial(0).outcome == ""


def test_what_is_proposed_becomes_a_trial(swept):
    claims = [swept.take(lambda trials: {"seed": 100 + len(trials)}) for _ in range(9)]
    assert claims[-1].trial.values == {"seed": 108}
    assert swept.trials()[-1].name == "seed=108"


# -- whose folder it is ----------------------------------------------------------------------------


def test_the_same_sweep_goes_on_with_its_trials(swept, plan):
    swept.end(swept.take(no_more), outcome="finished")
    swept.set_up(plan, [{"seed": seed} for seed in range(8)])
    assert [trial.outcome for trial in swept.trials()] == ["finished", *[""] * 7]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grid": {"seed": [0, 1]}}, "grid.seed"),
        ({"grid": {}, "search": {"lr": "log:0.1..1"}, "metric": "accuracy"}, "search"),
    ],
)
def test_another_sweep_is_refused_with_its_difference(swept, plan, change, said):
    with pytest.raises(ConfigError, match="is another sweep: .*" + said) as caught:
        swept.set_up(plan.changed(**change), [])
    assert "--fresh" in caught.value.fix


def test_another_base_is_refused_with_its_difference(swept, plan, small):
    with pytest.raises(ConfigError, match="steps: 12 -> 13"):
        swept.set_up(plan.changed(base=small(steps=13).plain()), [])


def test_where_it_runs_and_what_is_compared_may_change(swept, plan, small):
    moved = small(threads=2, device="cuda:1", run_name="other")
    swept.set_up(plan.changed(base=moved.plain(), metric="accuracy", goal="max"), [])
    assert swept.plan().metric == "accuracy"


def test_what_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no sweep"):
        SweepFolder(tmp_path).plan()
