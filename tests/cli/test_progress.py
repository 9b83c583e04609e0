"""Progress: what is said, how often, and where."""

from __future__ import annotations

import io

import pytest

from stepwell.cli.console import Output
from stepwell.cli.numbers import bytes_of, duration, short
from stepwell.cli.progress import Bar, GenerationProgress, Lines, TrainingProgress, make_display


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Output:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    return Output()


def said(output: Output) -> list[str]:
    """The lines on standard error."""
    return output.err.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_lines_come_at_intervals_the_first_and_the_last_always(output: Output) -> None:
    clock = Clock()
    lines = Lines(output.err, "run", 100, clock)
    for step in range(1, 101):
        clock.now += 0.3
        lines.show(step, f"loss {step}")
    lines.close()
    lines.close()
    assert said(output) == [
        "run  1/100  loss 1",
        "run  35/100  loss 35",
        "run  69/100  loss 69",
        "run  100/100  loss 100",
    ]


def test_training_says_loss_speed_and_time_left(output: Output) -> None:
    progress = TrainingProgress(output)
    progress.start(2000, "rename")
    progress.update(500, {"loss": 1.23456, "tokens_per_s": 48_300.0, "seconds": 60.0})
    progress.finish()
    assert said(output) == ["rename  500/2,000  loss 1.2346  48.3k tok/s  3:00 left"]
    assert progress.step == 500


def test_generation_counts_over_batches(output: Output) -> None:
    clock = Clock()
    with GenerationProgress(output, "answers", 10, clock) as progress:
        clock.now += 10
        progress.update(4, 100)
        progress.next_batch()
        clock.now += 10
        progress.update(1, 100)
    assert said(output) == [
        "answers  4/10  10 tok/s  0:15 left",
        "answers  5/10  10 tok/s  0:20 left",
    ]


def test_quiet_says_nothing(monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    output = Output(quiet=True)
    progress = TrainingProgress(output)
    progress.start(2, "run")
    progress.update(1, {"loss": 1.0})
    progress.finish()
    assert said(output) == []


def test_a_terminal_gets_a_bar(monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr", Terminal())
    output = Output()
    display = make_display(output, "run", 10)
    assert isinstance(display, Bar)
    display.show(5, "loss 1.0000")
    display.close()
    screen = output.err.file.getvalue()  # type: ignore[attr-defined]
    assert "5/10" in screen
    assert "loss 1.0000" in screen
    assert "━" in screen


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (7.4, "0:07"), (754, "12:34"), (11109, "3:05:09"), (187_200, "2 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (950, "950"), (999.96, "1.0k"), (48_300, "48.3k"), (1.2e6, "1.2M"), (3e12, "3.0T")],
)
def test_counts(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(
    ("count", "text"), [(512, "512 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**41, "2.0 TiB")]
)
def test_amounts(count: int, text: str) -> None:
    assert bytes_of(count) == text
