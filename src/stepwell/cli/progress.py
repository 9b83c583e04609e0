"""How far long work is: a bar on a terminal, plain lines at intervals elsewhere.

`TrainingProgress` is what a trainer reports to, `GenerationProgress` what a batch of answers does.
Owns what they show; where it is shown is the console's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from stepwell.cli.console import Output
from stepwell.cli.numbers import duration, short

LINE_EVERY_S: Final = 10.0


class Display(Protocol):
    """Where progress is shown."""

    def show(self, done: int, facts: str) -> None:
        """`done` units of work are behind us; `facts` says more about it."""

    def close(self) -> None:
        """Nothing more comes."""


class Bar:
    """A `Display` that redraws one line of a terminal."""

    def __init__(self, console: Console, description: str, total: int) -> None:
        self._progress = RichProgress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[facts]}"),
            console=console,
            expand=True,
        )
        self._total = total
        self._task = self._progress.add_task(
            description, total=total, count=_count(0, total), facts=""
        )
        self._progress.start()

    def show(self, done: int, facts: str) -> None:
        """Redraws the line."""
        count = _count(done, self._total)
        self._progress.update(self._task, completed=done, count=count, facts=facts)

    def close(self) -> None:
        """Leaves the line as it is and lets the cursor go on below it."""
        self._progress.stop()


class Lines:
    """A `Display` that prints a line at most every ten seconds, the first and the last always."""

    def __init__(
        self,
        console: Console,
        description: str,
        total: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._description, self._total = console, description, total
        self._clock = clock
        self._last: float | None = None
        self._waiting = ""

    def show(self, done: int, facts: str) -> None:
        """Prints the line, or keeps it in case that it is the last one."""
        self._waiting = f"{self._description}  {_count(done, self._total)}  {facts}".rstrip()
        now = self._clock()
        if self._last is None or now - self._last >= LINE_EVERY_S:
            self._last = now
            self._flush()

    def close(self) -> None:
        """Prints the last line, unless it has been."""
        self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._console.print(self._waiting, soft_wrap=True)
        self._waiting = ""


class Nothing:
    """A `Display` for --quiet."""

    def show(self, done: int, facts: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def make_display(output: Output, description: str, total: int) -> Display:
    """The display that suits the output: a bar, lines, or nothing where it is quiet."""
    if output.quiet:
        return Nothing()
    kind = Bar if output.err.is_terminal else Lines
    return kind(output.err, description, total)


class TrainingProgress:
    """The progress of a training run: steps, loss, tokens a second, time left."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._display: Display = Nothing()
        self._total = 0
        self.step = 0

    def start(self, total: int, description: str) -> None:
        """A run of `total` steps begins, or goes on."""
        self._total = total
        self._display = make_display(self._output, description, total)

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the last record: loss and tokens_per_s, and what the seconds so far promise."""
        self.step = step
        facts = [f"loss {values['loss']:.4f}"] if "loss" in values else []
        if "tokens_per_s" in values:
            facts.append(f"{short(values['tokens_per_s'])} tok/s")
        if "seconds" in values and step:
            facts.append(f"{duration(values['seconds'] / step * (self._total - step))} left")
        self._display.show(step, "  ".join(facts))

    def finish(self) -> None:
        """The run has ended, one way or the other."""
        self._display.close()


class _Shown:
    """Work that is shown for as long as a `with` block lasts."""

    def __init__(
        self,
        output: Output,
        description: str,
        total: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output, self._description, self._total = output, description, total
        self._display: Display = Nothing()
        self._clock, self._begun = clock, clock()

    def __enter__(self) -> Self:
        self._display = make_display(self._output, self._description, self._total)
        self._begun = self._clock()
        return self

    def __exit__(self, *_error: object) -> None:
        self._display.close()


class GenerationProgress(_Shown):
    """The progress of a batch of answers, for as long as a `with` block lasts.

    Work that is done in several batches calls `next_batch` before each further one.
    """

    _finished = _tokens = 0
    _before = (0, 0)

    def next_batch(self) -> None:
        """The counts of the batch that begins now start from 0."""
        self._before = self._finished, self._tokens

    def update(self, finished: int, tokens: int) -> None:
        """So many answers of this batch are finished, of so many tokens."""
        self._finished = self._before[0] + finished
        self._tokens = self._before[1] + tokens
        elapsed = max(self._clock() - self._begun, 1e-9)
        facts = f"{short(self._tokens / elapsed)} tok/s"
        if self._finished:
            remaining = self._total - self._finished
            facts += f"  {duration(elapsed / self._finished * remaining)} left"
        self._display.show(self._finished, facts)


class CountProgress(_Shown):
    """The progress of work that is done piece by piece, for as long as a `with` block lasts.

    What was there before the first piece does not count for the time that is left.
    """

    _first: tuple[float, int] | None = None

    def update(self, done: int) -> None:
        """So many pieces are done."""
        now = self._clock()
        begun, known = self._first or (now, done)
        self._first = begun, known
        left = ""
        if done > known:
            left = f"{duration((now - begun) / (done - known) * (self._total - done))} left"
        self._display.show(done, left)


def _count(done: int, total: int) -> str:
    return f"{done:,}/{total:,}"
