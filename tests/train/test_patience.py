"""A run that gets no better ends early; it is finished until it is given more patience."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepwell.storage.sealed import sha256
from stepwell.train.checkpoint import checkpoints, read_state
from stepwell.train.log import TIME_FIELDS
from stepwell.train.trainer import Trainer

LOSSES = (3.0, 2.0, 2.5, 2.0, 1.0, 1.5, 1.2, 1.1, 1.3)
"""The validation losses of a run: its best are the second and, after two worse, the fifth."""


class Told(Trainer):
    """A trainer whose evaluations say what they are told, by the step."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.last_step = 0

    def update(self, step, loss):
        self.last_step = step
        return super().update(step, loss)

    def metrics(self, batch):
        return {**super().metrics(batch), "loss": (LOSSES[self.last_step // 2], 1.0)}


@pytest.fixture
def config(small):
    """A run of 18 steps that is evaluated at every other."""
    return small(steps=18, evaluate_every=2, save_every=8, log_every=3, keep_checkpoints=9)


def records(directory: Path) -> list[dict[str, object]]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [{key: each[key] for key in each if key not in TIME_FIELDS} for each in lines]


def last_step(directory: Path) -> int:
    return read_state(checkpoints(directory)[0]).step


@pytest.mark.parametrize(
    ("patience", "end", "best"), [(0, 18, 10), (1, 6, 4), (2, 8, 4), (3, 16, 10)]
)
def test_it_ends_after_so_many_evaluations_without_a_better_loss(config, patience, end, best):
    run = Told(config.changed(patience=patience)).train()
    assert last_step(run.directory) == end
    assert run.step == best


def test_the_records_say_how_many_there_were(config):
    run = Told(config.changed(patience=2)).train()
    counts = [each["since_lowest"] for each in records(run.directory) if "since_lowest" in each]
    assert counts == [0, 0, 1, 2]


def test_a_run_that_ended_early_is_finished(config):
    run = Told(config.changed(patience=2)).train()
    before = sha256(run.directory / "metrics.jsonl")
    Told(config.changed(patience=2)).train()
    assert sha256(run.directory / "metrics.jsonl") == before


def test_more_patience_goes_on_as_if_there_had_been_more_from_the_start(config, tmp_path):
    whole = Told(config.changed(patience=3, runs=tmp_path / "whole")).train().directory
    Told(config.changed(patience=2)).train()
    raised = Told(config.changed(patience=3)).train().directory
    assert records(raised) == records(whole)
    for name in ("model.safetensors", "checkpoint-16/optimizer.safetensors"):
        assert sha256(raised / name) == sha256(whole / name)


@pytest.mark.parametrize("step", [5, 7, 9, 11])
def test_a_resumed_run_ends_where_an_undisturbed_one_does(config, step, tmp_path):
    """Its evaluations are counted over all sessions."""
    config = config.changed(patience=3)
    whole = Told(config.changed(runs=tmp_path / "whole")).train().directory
    calls = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        Told(config).train(stop_requested=lambda: next(calls) == step)
    resumed = Told(config).train().directory
    assert records(resumed) == records(whole)
    assert last_step(resumed) == 16


def test_a_resume_that_forgets_the_count_is_seen(config, monkeypatch):
    """Negative control of the law above."""
    config = config.changed(patience=3)
    calls = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        Told(config).train(stop_requested=lambda: next(calls) == 15)
    state = checkpoints(config.directory)[0]
    assert read_state(state).since_lowest == 2
    forgotten = read_state(state).changed(since_lowest=0)
    monkeypatch.setattr("stepwell.train.loop.read_state", lambda path: forgotten)
    assert last_step(Told(config).train().directory) == 18
