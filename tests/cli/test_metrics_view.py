"""Metrics for people: every one is there, and the bars are as high as their values."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from stepwell.cli.metrics_view import bars, depths_row, metrics_table
from stepwell.train.history import by_depth
from stepwell.train.run_folder import Run

METRICS = {
    "accuracy": 0.5,
    "accuracy/depth_10": 0.0,
    "accuracy/depth_2": 1.0,
    "answer_accuracy": 0.25,
    "loss": 1.23456,
}


def test_every_metric_has_its_line_and_the_loss_is_first() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(metrics_table(Run(Path("runs/a"), 1200, METRICS)))
    lines = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert lines == [
        ["best", "weights", "runs/a,", "of", "step", "1,200"],
        ["loss", "1.2346"],
        ["accuracy", "0.500"],
        ["by", "depth", "2:", "1.000", "█▁", "10:", "0.000"],
        ["answer", "accuracy", "0.250"],
    ]


def test_depths_are_in_the_order_of_depth() -> None:
    assert list(by_depth(METRICS, "accuracy")) == [2, 10]
    assert by_depth(METRICS, "answer_accuracy") == {}


@pytest.mark.parametrize(
    ("values", "text"), [([], ""), ([0, 0.5, 1], "▁▅█"), ([-1, 2, float("nan")], "▁█·")]
)
def test_bars(values: list[float], text: str) -> None:
    assert bars(values) == text


def test_one_depth_is_a_row_too() -> None:
    assert depths_row({3: 0.5}).plain == "3: 0.500 ▅ 3: 0.500"
