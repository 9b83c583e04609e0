"""`stepwell doctor`: what is here, what is wrong with it, and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from stepwell.cli.checks import Check, all_checks
from stepwell.cli.console import OutputFlags

SIGNS: Final = {
    "ok": ("✓", "green"),
    "note": ("·", "dim"),
    "warning": ("!", "bold yellow"),
    "broken": ("✗", "bold red"),
}


def doctor(
    *,
    runs: Annotated[Path | None, Parameter(metavar="PATH")] = None,
    output: OutputFlags = OutputFlags(),  # noqa: B008  # it is frozen
) -> int:
    """Check this installation and this machine. Exits with 1 where something is broken.

        stepwell doctor
        stepwell doctor --json

    Parameters
    ----------
    runs
        The folder that runs go to; by default STEPWELL_RUNS, or ./runs.
    """
    with output.open() as opened:
        checks = all_checks(runs)
        broken = sum(check.state == "broken" for check in checks)
        plain = {"healthy": not broken, "checks": [asdict(check) for check in checks]}
        opened.result(plain, checks_table(checks))
        opened.note("")
        if broken:
            opened.note(f"{broken} of {len(checks)} checks failed.", style="bold red")
        else:
            opened.note("Nothing is broken.", style="green")
    return 1 if broken else 0


def checks_table(checks: Sequence[Check]) -> Table:
    """The checks for people: a sign, what was found, and the fix below it."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        sign, style = SIGNS[check.state]
        found = Text(check.found)
        if check.fix:
            found.append("\nfix: ", style="bold cyan").append(check.fix)
        table.add_row(Text(sign, style=style), check.name, found)
    return table
