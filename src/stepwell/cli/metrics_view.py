"""The metrics of a run for people: a line each, those of the depths as a row of bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from stepwell.train.history import DEPTH, by_depth

if TYPE_CHECKING:
    from stepwell.train.run_folder import Run

BARS: Final = "▁▂▃▄▅▆▇█"


def metrics_table(run: Run) -> Table:
    """The metrics of a run's best weights, the loss first."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("best weights", Text(f"{run.directory}, of step {run.step:,}"))
    for name in sorted(run.metrics, key=lambda name: (name != "loss", name)):
        if DEPTH not in name:
            digits = 4 if name == "loss" else 3
            table.add_row(name.replace("_", " "), f"{run.metrics[name]:.{digits}f}")
            depths = by_depth(run.metrics, name)
            if depths:
                table.add_row("  by depth", depths_row(depths))
    return table


def depths_row(depths: Mapping[int, float]) -> Text:
    """A bar for each depth, between the values of the first and the last: 1.000 █▇▅▂ 0.212."""
    first, *_, last = [*depths.items(), *depths.items()]
    row = Text(f"{first[0]}: {first[1]:.3f} ")
    row.append(bars(list(depths.values())), style="cyan")
    return row.append(f" {last[0]}: {last[1]:.3f}")


def bars(values: Sequence[float]) -> str:
    """A block for each value in [0, 1], the higher the larger; a dot where there is none."""
    top = len(BARS) - 1
    return "".join(
        BARS[round(min(1.0, max(0.0, value)) * top)] if value == value else "·" for value in values
    )
