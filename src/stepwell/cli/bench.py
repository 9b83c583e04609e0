"""`stepwell bench`: how fast, beside other programs that run the same weights."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Group, Parameter
from rich import box
from rich.table import Table
from rich.text import Text

from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.flags import given_values, model_flags, with_flags
from stepwell.cli.machine import processor, usable_cpus
from stepwell.device import set_threads
from stepwell.errors import StepwellError
from stepwell.evals.bench.plan import MODELS, QUESTIONS, BenchPlan, Question, Subject

if TYPE_CHECKING:
    from stepwell.evals.bench.contest import Bench
    from stepwell.evals.bench.figures import Row
    from stepwell.evals.bench.results import Setting

PEERS: Final = Group("Beside whom", sort_key=10)
AMOUNT: Final = Group("How much is measured", sort_key=20)
FLAGS: Final = model_flags(BenchPlan, AMOUNT, without=("text", "draft"))
MET: Final = {True: "green", False: "red", None: ""}


@Parameter(name="*", group=PEERS)
@dataclass(frozen=True)
class PeerFlags:
    """Beside whom it is measured."""

    peer: Annotated[tuple[str, ...], Parameter(negative=(), metavar="NAME=PYTHON")] = ()
    """llama.cpp, transformers, vllm, nnsight or transformer-lens, and its Python."""
    install_peers: Annotated[Path | None, Parameter(metavar="DIR")] = None
    """Make an environment for every peer in this folder with pip, and measure nothing."""


def _bench(
    questions: tuple[Question, ...] = (),
    /,
    *,
    model: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = MODELS,
    draft: Annotated[str | None, Parameter(metavar="MODEL")] = None,
    text: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    peers: PeerFlags = PeerFlags(),  # it is frozen
    out: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    cache: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    threads: Annotated[int, Parameter(metavar="N")] = 0,
    output: OutputFlags = OutputFlags(),  # noqa: B008
    **given: Any,
) -> int:
    """Measure speed and memory on this CPU, in turns with other programs on the same weights.

        stepwell bench hooks verify --model runs/facts --repetitions 2
        stepwell bench prefill --model runs/facts --prefill-tokens 128 --peer vllm=vllm/bin/python

    Every peer has a Python environment of its own; those in the folder that STEPWELL_PEERS names
    are found. A peer that is missing or fails is a row that says why.

    Parameters
    ----------
    questions
        What is measured; everything where none is given.
    model
        14m, 110m or 443m, made with random weights where they are needed, or a model directory; all
        three where none is given.
    draft
        The model that drafts in `speculation`, beside the text so far, which always does.
    text
        The text of which `speculation` and `cache` take their prompts; none that a model was
        trained on. Without it these are random ids.
    out
        The folder to which a page with the figures and a picture of them is written.
    cache
        The folder of models with random weights; by default in the user's cache folder.
    threads
        Threads of every contestant; 0 is torch's number.
    """
    from stepwell.evals.bench.contest import Bench
    from stepwell.evals.bench.peer import VARIABLE, known_peers
    from stepwell.evals.bench.sizes import subject
    from stepwell.storage.user_cache import cache_folder

    with output.open() as opened:
        if peers.install_peers is not None:
            return install(peers.install_peers, opened)
        folder = cache or cache_folder("bench")
        drafter = None if draft is None else subject(draft, folder).directory
        plan = BenchPlan(**given_values(FLAGS, given), text=text, draft=drafter)
        if threads:
            set_threads(threads)
        known = known_peers(peers.peer, os.environ.get(VARIABLE))
        contest = Bench(plan, questions or tuple(QUESTIONS), known)
        rows = measured([subject(name, folder) for name in model], contest, opened)
        report(rows, setting(contest), out, opened)
    return 0


bench: Callable[..., int] = with_flags(_bench, FLAGS)


def install(folder: Path, output: Output) -> int:
    """Makes the peers' environments; 1 where one could not be made, else 0."""
    from stepwell.evals.bench.install import RECIPES, install_peer
    from stepwell.evals.bench.peer import VARIABLE

    made: dict[str, str] = {}
    problems: dict[str, str] = {}
    for name in RECIPES:
        output.note(f"{name} ...", style="dim")
        try:
            made[name] = str(install_peer(name, folder.absolute()))
        except StepwellError as error:
            problems[name] = error.problem
            output.warn(error.problem)
    lines = [f"{name}={python}" for name, python in made.items()]
    output.result({"peers": made, "problems": problems}, "\n".join(lines))
    output.note(f"Found from now on with {VARIABLE}={folder.absolute()}", style="dim")
    return 1 if problems else 0


def measured(subjects: Sequence[Subject], bench: Bench, output: Output) -> list[Row]:
    """Every row about the models; each is noted as soon as it is there."""
    from stepwell.evals.bench.results import cells

    rows = []
    for subject in subjects:
        for row in bench.rows(subject):
            rows.append(row)
            output.note("  ".join(cell for cell in cells(row) if cell), style="dim")
    return rows


def report(rows: Sequence[Row], where: Setting, out: Path | None, output: Output) -> None:
    """Prints the rows, and writes their page where a folder for it is given."""
    from stepwell.evals.bench.results import plain, write_page

    output.result(plain(rows, where), table(rows))
    if out is not None:
        output.note(f"Written: {write_page(rows, where, out)}")


def table(rows: Sequence[Row]) -> Table:
    """The rows for people; a ratio is green where it meets its bar, and red where it does not."""
    from stepwell.evals.bench.results import HEADS, cells

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in HEADS:
        numeric = head in ("ours", "theirs", "ratio")
        shown.add_column(head, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        *first, ratio, bar = cells(row)
        style = MET[row.meets_bar]
        shown.add_row(*first, Text(ratio, style=style), Text(bar, style=style))
    return shown


def setting(bench: Bench) -> Setting:
    """This machine, these versions and this command line."""
    import torch

    from stepwell.evals.bench.results import Setting
    from stepwell.version import __version__

    return Setting(
        day=date.today(),
        machine=f"{processor()}, {usable_cpus()} CPUs",
        threads=torch.get_num_threads(),
        repetitions=bench.plan.repetitions,
        command=shlex.join(["stepwell", *sys.argv[1:]]),
        versions={"stepwell": __version__, "torch": torch.__version__, **bench.versions},
    )
