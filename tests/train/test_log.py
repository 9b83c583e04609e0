from __future__ import annotations

import json
import math
import warnings

import pytest
import torch

from stepwell.errors import CheckpointError
from stepwell.train.log import Meter, MetricsLog, Window, rounded


def open_log(directory, **fields):
    return MetricsLog(directory, **{"step": 0, "committed_bytes": 0, "digits": 6, **fields})


def records(directory) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_records_are_lines_of_json_with_null_for_what_is_not_finite(tmp_path):
    log = open_log(tmp_path)
    log.write(3, "train", {"loss": 1.23456789, "tokens": 12345678})
    log.write(3, "validation", {"loss": math.nan, "accuracy": math.inf})
    log.close()
    assert records(tmp_path) == [
        {"step": 3, "split": "train", "loss": 1.23457, "tokens": 12345678},
        {"step": 3, "split": "validation", "loss": None, "accuracy": None},
    ]


def test_what_was_written_after_the_commit_is_cut_off(tmp_path):
    log = open_log(tmp_path)
    log.write(1, "train", {"loss": 1.0})
    committed = log.commit()
    log.write(2, "train", {"loss": 2.0})
    log.close()
    again = open_log(tmp_path, step=1, committed_bytes=committed)
    again.write(2, "train", {"loss": 3.0})
    assert again.commit() == 2 * committed
    again.close()
    assert [record["loss"] for record in records(tmp_path)] == [1.0, 3.0]


def test_a_file_that_lacks_committed_records_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl has 0 bytes"):
        open_log(tmp_path, step=5, committed_bytes=10)


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    """Read back by TensorBoard itself: events after the commit are purged by the next session."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    log = open_log(tmp_path)
    for step in (1, 2, 3):
        log.write(step, "train", {"loss": float(step)})
    log.close()
    again = open_log(tmp_path, step=2, committed_bytes=0)
    again.write(3, "train", {"loss": 30.0})
    again.write(4, "train", {"loss": 40.0})
    again.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    found = [(event.step, event.value) for event in read.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_a_window_keeps_losses_in_order_until_it_is_cleared():
    window = Window([1.0])
    window.add(torch.tensor(2.0))
    assert window.losses() == [1.0, 2.0]
    window.add(torch.tensor(3.0))
    assert window.losses() == [1.0, 2.0, 3.0]
    window.clear()
    assert window.losses() == []


def test_a_meter_leaves_out_what_lies_between_readings():
    now = [10.0]
    meter = Meter(5.0, clock=lambda: now[0])
    now[0] = 12.0
    meter.add(100)
    assert meter.rate() == 50.0
    now[0] = 100.0
    meter.restart()
    now[0] = 101.0
    meter.add(30)
    assert meter.rate() == 30.0
    assert meter.seconds == 5.0 + 91.0


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (0.123456, 3, 0.123),
        (123456.0, 3, 123000.0),
        (1 / 3, 0, 1 / 3),
        (123456789, 3, 123456789),
        (math.inf, 3, None),
    ],
)
def test_numbers_keep_so_many_significant_digits(value, digits, expected):
    assert rounded(value, digits) == expected
