"""A run that is killed and goes on is the run that was never disturbed, bit for bit."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stepwell
from stepwell.errors import CheckpointError, ConfigError, StepwellError, TrainingError
from stepwell.storage.sealed import sha256
from stepwell.tasks.facts import Facts
from stepwell.train import checkpoint, loop
from stepwell.train.log import TIME_FIELDS
from stepwell.train.trainer import Trainer


class Killed(BaseException):
    """Ends a run as abruptly as a process can be ended from inside."""


class Noisy(Trainer):
    """Draws random numbers in its loss; `before_loss` is called with the number of each call."""

    calls = 0

    def before_loss(self, call: int) -> None: ...

    def loss(self, batch):
        self.before_loss(self.calls)
        self.calls += 1
        return super().loss(batch) * (0.5 + torch.rand(()))


def killed_at(config, call: int) -> None:
    trainer = Noisy(config)

    def kill(number: int) -> None:
        if number == call:
            raise Killed

    trainer.before_loss = kill
    with pytest.raises(Killed):
        trainer.train()


def outcome(directory: Path) -> dict[str, object]:
    """What of a run must not depend on interruptions: records without times, and all weights."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    records = [{k: v for k, v in line.items() if k not in TIME_FIELDS} for line in lines]
    files = ["model.safetensors", "manifest.json", "checkpoint-12/model.safetensors"]
    files += ["checkpoint-12/optimizer.safetensors", "samples/step-00000008.jsonl"]
    return {"records": records, **{name: sha256(directory / name) for name in files}}


@pytest.fixture(scope="module")
def undisturbed(small_in, tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed")
    config = small_in(runs, gradient_accumulation=2, keep_checkpoints=5)
    return outcome(Noisy(config).train().directory)


@pytest.fixture
def config(small):
    return small(gradient_accumulation=2, keep_checkpoints=5)


@pytest.mark.parametrize("call", [0, 1, 7, 8, 13, 16, 23])
def test_killed_and_resumed_is_undisturbed(config, undisturbed, call):
    """At a step's begin and amid its accumulation; before, at and after checkpoints at 4 and 8."""
    killed_at(config, call)
    assert outcome(Noisy(config).train().directory) == undisturbed


def test_killed_again_and_again_is_undisturbed(config, undisturbed):
    for call in (5, 9, 3, 11):
        killed_at(config, call)
    assert outcome(Noisy(config).train().directory) == undisturbed


@pytest.mark.parametrize("skipped", ["restore_random_states", "read_optimizer"])
def test_a_resume_that_skips_a_part_of_the_state_is_seen(config, undisturbed, skipped, monkeypatch):
    """Negative control of the laws above."""
    killed_at(config, 21)
    monkeypatch.setattr(loop, skipped, lambda *arguments: None)
    assert outcome(Noisy(config).train().directory) != undisturbed


def test_a_resume_that_forgets_the_losses_since_the_last_record_is_seen(
    config, undisturbed, monkeypatch
):
    killed_at(config, 21)
    monkeypatch.setattr(checkpoint.TrainerState, "window", lambda self: [])
    assert outcome(Noisy(config).train().directory) != undisturbed


@pytest.mark.parametrize("every", [61, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_a_file_operation_is_undisturbed(config, undisturbed, every, disk, tmp_path):
    """The run's folder, copied before an operation, is what a kill there leaves behind."""
    copies = tmp_path / "copies"

    def copy(number: int) -> None:
        if number % every == 0 and config.directory.exists():
            shutil.copytree(config.directory, copies / str(number) / "run")

    with disk.watched(copy):
        Noisy(config).train()
    assert len(disk.operations) > 300
    for runs in copies.iterdir():
        assert outcome(Noisy(config.changed(runs=runs)).train().directory) == undisturbed


@pytest.mark.parametrize("every", [61, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_for_a_moment_costs_nothing_but_time(config, undisturbed, every, disk):
    """At any operation: an error that says so, or a warning where it is the report; no remnants."""
    with disk.watched():
        Noisy(config).train()
    for number in range(0, len(disk.operations), every):
        own = config.changed(run_name=f"full-{number}")
        said = "could not be written: No space left; make room"
        with disk.failing_at(number):
            try:
                Noisy(own).train()
            except StepwellError as error:
                said = f"{error.problem}; {error.fix}"
        assert re.search("could not be written: .*No space left.*; make room", said)
        assert [path for path in own.directory.glob(".*") if path.name != ".lock"] == []
        assert outcome(Noisy(own).train().directory) == undisturbed


SCRIPT = """
import os, signal, sys
from pathlib import Path
from stepwell.config import read_yaml
from stepwell.train.config import TrainerConfig
sys.path.insert(0, {folder!r})
from test_resume import Noisy

trainer = Noisy(TrainerConfig.parse(read_yaml({path!r})))
trainer.before_loss = lambda call: call == {call} and os.kill(os.getpid(), signal.SIGKILL)
trainer.train()
"""


def kill_process(config, folder: Path, call: int) -> None:
    """Trains in a process of its own that is killed, really, at a call of its loss."""
    path = folder / "config.yaml"
    stepwell.config.write_yaml(path, config.plain())
    here = str(Path(__file__).parent)
    source = Path(stepwell.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(folder=here, path=str(path), call=call)],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_a_killed_process_is_undisturbed(config, undisturbed, tmp_path):
    kill_process(config, tmp_path, 13)
    assert outcome(Noisy(config).train().directory) == undisturbed


@pytest.mark.slow
def test_processes_killed_at_random_are_undisturbed(small, undisturbed, tmp_path):
    source = random.Random(0)
    for trial in range(50):
        config = small(run_name=f"run-{trial}", gradient_accumulation=2, keep_checkpoints=5)
        kill_process(config, tmp_path, source.randrange(24))
        assert outcome(Noisy(config).train().directory) == undisturbed


def test_a_damaged_checkpoint_costs_steps_but_no_bits(config, undisturbed, caplog):
    killed_at(config, 21)
    (config.directory / "checkpoint-8" / "trainer.json").write_text("{}")
    assert outcome(Noisy(config).train().directory) == undisturbed
    assert "checkpoint-8 passed over" in caplog.text


def test_what_a_killed_save_left_is_cleared_away(config, undisturbed):
    killed_at(config, 21)
    for name in (".checkpoint-8.saving", ".checkpoint-4.old", ".saving"):
        (config.directory / name).mkdir()
        (config.directory / name / "model.safetensors").write_text("torn")
    (config.directory / ".run.yaml.x1y2").write_text("torn")
    assert outcome(Noisy(config).train().directory) == undisturbed
    assert [path.name for path in config.directory.glob(".*")] == [".lock"]


def test_ctrl_c_saves_where_the_run_stands(config, undisturbed):
    trainer = Noisy(config)

    def interrupt(call: int) -> None:
        if call == 13:
            raise KeyboardInterrupt

    trainer.before_loss = interrupt
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert checkpoint.newest(config.directory).name == "checkpoint-6"
    again = Noisy(config)
    assert outcome(again.train().directory) == undisturbed
    assert again.calls == 2 * 6


def test_ctrl_c_within_an_update_saves_nothing_that_is_half_done(
    config, undisturbed, monkeypatch, caplog
):
    trainer = Noisy(config)
    update = trainer.update

    def interrupted(step, loss):
        done = update(step, loss)
        if step == 5:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(trainer, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert "step 4 is the last saved" in caplog.text
    assert outcome(Noisy(config).train().directory) == undisturbed


def test_a_requested_stop_saves_between_two_steps(config, undisturbed):
    trainer = Noisy(config)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(stop_requested=lambda: trainer.calls >= 2 * 7)
    assert checkpoint.newest(config.directory).name == "checkpoint-7"
    assert outcome(Noisy(config).train().directory) == undisturbed


def test_the_same_trainer_goes_on_or_begins_anew(config, undisturbed):
    trainer = Noisy(config)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(stop_requested=lambda: trainer.calls >= 2 * 7)
    assert outcome(trainer.train().directory) == undisturbed
    assert outcome(trainer.train(fresh=True).directory) == undisturbed


def test_a_finished_run_returns_at_once(config):
    first = Noisy(config).train()
    again = Noisy(config)
    assert again.train() == first
    assert again.calls == 0
    saved = checkpoint.checkpoint_path(config.directory, 12)
    weights = stepwell.model.weights.load_model(saved).state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in again.model.state_dict().items())


def test_fresh_begins_anew(config):
    killed_at(config, 21)
    trainer = Noisy(config)
    trainer.train(fresh=True)
    assert trainer.calls == 24


def test_another_configuration_shows_its_difference_and_the_fix(config):
    killed_at(config, 21)
    other = config.changed(
        steps=13, optimizer=config.optimizer.changed(lr=0.5), task=Facts(facts=17)
    )
    with pytest.raises(ConfigError) as caught:
        Noisy(other).train()
    message = str(caught.value)
    assert "optimizer.lr: 0.01 -> 0.5; steps: 12 -> 13; task.facts: 16 -> 17" in message
    assert "another run name" in message
    assert "fresh=True" in message
    assert Noisy(other).train(fresh=True).metrics


def test_what_is_free_may_change(config, undisturbed):
    killed_at(config, 21)
    assert outcome(Noisy(config.changed(keep_checkpoints=2)).train().directory) == undisturbed


def test_other_code_of_the_task_is_a_difference(config, monkeypatch):
    killed_at(config, 21)
    changed = config.changed(task=Facts(facts=16))
    vars(changed.task)["fingerprint"] = "f" * 64
    with pytest.raises(ConfigError, match=r"data \(code of the task\): .* -> ffffffffffff"):
        Noisy(changed).train()


def test_another_number_of_threads_is_reported(config, caplog):
    killed_at(config, 21)
    with caplog.at_level(logging.WARNING):
        Noisy(config.changed(threads=2)).train()
    assert "computed with 1 threads, now there are 2" in caplog.text


def test_a_foreign_checkpoint_is_refused(config):
    killed_at(config, 21)
    other = config.changed(run_name="other", seed=1)
    Noisy(other).train()
    (other.directory / "checkpoint-12").rename(config.directory / "checkpoint-12")
    with pytest.raises(CheckpointError, match="belongs to another run"):
        Noisy(config).train()


class Diverging(Trainer):
    """Its loss is NaN at the steps in `bad`."""

    bad: tuple[int, ...] = ()
    step = 0

    def loss(self, batch):
        self.step += 1
        return super().loss(batch) * (math.nan if self.step - 1 in self.bad else 1.0)


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_checkpoint_stays(small):
    config = small(run_name="diverging")
    trainer = Diverging(config)
    trainer.bad = (6,)
    with pytest.raises(TrainingError, match=r"Step 6: .* not finite.* of step 4") as caught:
        trainer.train()
    assert "optimizer.lr" in str(caught.value)
    saved = checkpoint.newest(config.directory)
    assert saved.name == "checkpoint-4"
    assert all(v.isfinite().all() for v in trainer.model.state_dict().values())
    assert Trainer(config).train().metrics["loss"] < math.inf


def test_a_loss_that_is_not_finite_can_be_skipped(small):
    config = small(run_name="skipping", on_nan="skip")
    trainer = Diverging(config)
    trainer.bad = (5, 6)
    trainer.train()
    lines = (config.directory / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if '"train"' in line]
    assert [record["skipped"] for record in records] == [0, 1, 1, 0]
    assert all(math.isfinite(record["loss"]) for record in records)


def test_skipped_steps_are_remembered_across_a_resume(small):
    outcomes = []
    for name, stop in (("whole", 99), ("halved", 7)):
        config = small(run_name=name, on_nan="skip", log_every=6)
        trainer = Diverging(config)
        trainer.bad = (6,)
        try:
            trainer.train(stop_requested=lambda stop=stop, one=trainer: one.step >= stop)
        except KeyboardInterrupt:
            resumed = Diverging(config)
            resumed.train()
        outcomes.append(outcome(config.directory))
    assert outcomes[0] == outcomes[1]
