"""`stepwell profile`: where the time of one answer goes, by phase and by part of the model."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Group, Parameter
from rich import box
from rich.console import Group as Together
from rich.table import Table
from rich.text import Text

from stepwell.cli.compute import ComputeFlags
from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.flags import given_values, model_flags, with_flags
from stepwell.errors import UsageError
from stepwell.generate.request import SamplingParams

if TYPE_CHECKING:
    from stepwell.evals.profile.result import InferenceProfile

SAMPLING: Final = Group(
    "Sampling", "What is not given is as the model's generation_config.json says.", sort_key=20
)
FLAGS: Final = model_flags(SamplingParams, SAMPLING, without=("n", "max_new_tokens"))
SUFFIXES: Final = (".html", ".png")
NUMERIC: Final = ("time", "share", "a token")


def _profile(
    model: str,
    prompt: str,
    /,
    *,
    max_new_tokens: Annotated[int, Parameter(metavar="N")] = 64,
    repetitions: Annotated[int, Parameter(metavar="N")] = 5,
    read_mib: Annotated[int, Parameter(metavar="N")] = 2048,
    out: Path | None = None,
    compute: ComputeFlags = ComputeFlags(),  # noqa: B008  # it is frozen
    output: OutputFlags = OutputFlags(),  # noqa: B008
    **given: Any,
) -> None:
    """Show where the time of one answer goes: by phase, and by part of the model.

        stepwell profile runs/facts "zpqk>" --max-new-tokens 8 --temperature 0
        stepwell profile runs/story "Once" --weights int8 --ignore-eos --out profile.html

    The answer is given several times, each time with nothing of the prompt in the cache; what is
    shown is the run whose time is in the middle.

    Parameters
    ----------
    model
        A run folder, a model directory, or a name on the Hugging Face Hub.
    prompt
        The text to go on from.
    max_new_tokens
        The longest answer, in tokens.
    repetitions
        Runs that count, after some that do not.
    read_mib
        MiB of the read-only pass that reading the weights is compared with; 0 for none.
    out
        Where the profile goes: a page that needs nothing else (.html), or a picture of the phases
        (.png).
    """
    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out {out}: expected a name that ends in {' or '.join(SUFFIXES)}.")
    with output.open() as opened:
        from stepwell.evals.profile.run import profile_inference

        found = profile_inference(
            compute.load(model),
            prompt,
            max_new_tokens=max_new_tokens,
            repetitions=repetitions,
            read_mib=read_mib,
            **given_values(FLAGS, given),
        )
        if out is not None:
            write(found, out)
        plain = {"model": model, "prompt": prompt, **found.plain()}
        opened.result({**plain, "out": None if out is None else str(out)}, view(found))
        _say_where(out, opened)


profile: Callable[..., None] = with_flags(_profile, FLAGS)


def write(found: InferenceProfile, out: Path) -> None:
    """Writes the profile as a page, or a picture of its phases, as the name asks for."""
    if out.suffix.lower() == ".png":
        found.write_png(out)
    else:
        found.write_html(out, command=shlex.join(["stepwell", *sys.argv[1:]]))


def view(found: InferenceProfile) -> Together:
    """The profile for people: a table of phases, one of parts, and the headline values."""
    from stepwell.evals.profile.view import PART_HEADS, PHASE_HEADS, facts, part_rows, phase_rows

    tables = [table(PHASE_HEADS, phase_rows(found))]
    if found.parts:
        tables.append(table(PART_HEADS, part_rows(found)))
    values = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts(found):
        values.add_row(Text(name, style="dim"), Text(value))
    return Together(*(part for each in tables for part in (each, Text())), values)


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Rows of text, each with a bar for the share that is its last cell."""
    from stepwell.evals.profile.view import bar

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in heads:
        shown.add_column(head, justify="right" if head in NUMERIC else "left", no_wrap=not head)
    for *cells, share in rows:
        shown.add_row(*map(Text, cells), Text(bar(share), style="cyan"))
    return shown


def _say_where(out: Path | None, output: Output) -> None:
    if out is None:
        output.note("--out profile.html draws it.", style="dim")
    else:
        output.note(Text.assemble(("Profile: ", "dim"), str(out)))
