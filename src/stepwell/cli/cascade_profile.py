"""`stepwell cascade profile`: where the time of one answer went, by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Group as Together
from rich.text import Text

from stepwell.cli.cascade import load_cascade
from stepwell.cli.compute import ComputeFlags
from stepwell.cli.console import OutputFlags
from stepwell.cli.report_table import terminal_table


def profile(
    ladder: Path,
    prompt: str,
    /,
    *,
    lam: Annotated[float | None, Parameter(name="--lambda")] = None,
    repetitions: Annotated[int, Parameter(metavar="N")] = 5,
    compute: ComputeFlags = ComputeFlags(),  # noqa: B008  # it is frozen
    output: OutputFlags = OutputFlags(),  # noqa: B008
) -> None:
    """Show where the time of one answer of a ladder went: by stage, and what deciding took.

        stepwell cascade profile runs/demo/ladder.yaml 'zpqk>' --lambda 10

    Parameters
    ----------
    ladder
        A ladder file that was fitted.
    prompt
        The text to go on from. Nothing of it is in a cache.
    lam
        The price of a failure; the ladder's own where it is not given.
    repetitions
        Runs that count, after some that do not; the one in the middle is shown.
    """
    with output.open() as opened:
        from stepwell.evals.profile.cascade import profile_cascade

        with load_cascade(ladder, compute) as cascade:
            found = profile_cascade(cascade, prompt, lam=lam, repetitions=repetitions)
        head = Text.assemble(
            (prompt, "dim"),
            (found.answer.text, "bold"),
            f"   {1e3 * found.seconds:.2f} ms, stopped: {found.answer.stopped}\n",
        )
        plain = {"ladder": str(ladder), "prompt": prompt, **found.plain()}
        opened.result(plain, Together(head, terminal_table(found.table())))
