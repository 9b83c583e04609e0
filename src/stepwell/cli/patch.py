"""`stepwell patch`: which part of a model carries the difference between two texts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Group, Parameter

from stepwell.cli.compute import ComputeFlags
from stepwell.cli.console import OutputFlags
from stepwell.cli.drawing import check_out
from stepwell.cli.effects import StudyProgress, check_top, show_effects
from stepwell.cli.prompts import numbered_lines
from stepwell.errors import DataError, UsageError, suggest
from stepwell.study.metric import Metric

if TYPE_CHECKING:
    from stepwell.generate.text import TextGenerator
    from stepwell.study.effects import EffectTable
    from stepwell.study.question import Progress

TEXTS: Final = Group("Which texts", sort_key=5)
HOW: Final = Group("What is patched, and how it is scored", sort_key=6)
KEYS: Final = ("clean", "corrupt", "right", "wrong")
EXPECTED: Final = 'write lines like {"clean": "...", "corrupt": "..."}.'


@Parameter(name="*", group=TEXTS)
@dataclass(frozen=True)
class TextFlags:
    """The pairs of texts, and the answers to them."""

    clean: Annotated[str | None, Parameter(metavar="TEXT")] = None
    """A text that the model answers in the way to be explained."""
    corrupt: Annotated[str | None, Parameter(metavar="TEXT")] = None
    """The same text with some tokens replaced, which it answers otherwise."""
    right: Annotated[str | None, Parameter(metavar="TOKEN")] = None
    """The answer to the clean text, a single token; the model's own where it is not given."""
    wrong: Annotated[str | None, Parameter(metavar="TOKEN")] = None
    """The answer to the corrupt text, a single token; the model's own where it is not given."""
    pairs: Annotated[Path | None, Parameter(metavar="FILE")] = None
    """Instead, a file with a line {"clean": "...", "corrupt": "..."} for each pair."""

    def read(self) -> dict[str, Any]:
        """The texts and answers as `patch_heads` takes them. Raises UsageError or DataError."""
        single = {name: getattr(self, name) for name in KEYS}
        if self.pairs is not None:
            if any(value is not None for value in single.values()):
                raise UsageError(
                    "--pairs has texts and answers of its own.",
                    fix='leave the others out; a line may have "right" and "wrong".',
                )
            return read_pairs(self.pairs)
        if self.clean is None or self.corrupt is None:
            raise UsageError("patch needs --clean and --corrupt, or --pairs.", fix="give both.")
        return single


@Parameter(name="*", group=HOW)
@dataclass(frozen=True)
class PatchFlags:
    """What is put from one run into the other."""

    point: Annotated[str, Parameter(metavar="POINT")] = "heads"
    """Each head by itself; or a hook point by position: residual.before, mlp.output, ..."""
    method: Literal["patch", "attribution"] = "patch"
    """Run the model with each part patched, or tell from one gradient what that would do."""
    into: Literal["corrupt", "clean"] = "corrupt"
    """The run that values of the other one are put into."""
    metric: Metric = "logit_difference"
    """How an answer is scored."""

    def check(self) -> None:
        """Nothing; raises UsageError for choices that do not go together or are none."""
        from stepwell.model.hooks import POINTS

        known = ("heads", *(point for point in POINTS if point != "logits"))
        if self.point not in known:
            raise UsageError(f"--point {self.point!r} is none. {suggest(self.point, known)}")
        if self.method == "attribution" and (self.point != "heads" or self.into != "corrupt"):
            raise UsageError(
                "--method attribution tells of heads that are patched into the corrupt run.",
                fix="leave out --point and --into, or use --method patch.",
            )


def patch(
    model: str,
    /,
    *,
    texts: TextFlags = TextFlags(),  # it is frozen
    how: PatchFlags = PatchFlags(),
    out: Path | None = None,
    top: int = 10,
    compute: ComputeFlags = ComputeFlags(),  # noqa: B008
    output: OutputFlags = OutputFlags(),  # noqa: B008
) -> None:
    """Find the parts of a model that carry the difference between two texts.

    A part's output on the clean text is put into the run on the corrupt one. The effect is how much
    of the difference between the two scores came with it: 0 nothing, 1 all of it.

        stepwell patch runs/rename --clean "1>a;a>" --corrupt "1>b;a>" --right 1 --wrong 2
        stepwell patch runs/rename --pairs pairs.jsonl --point residual.before --out patch.html
        stepwell patch runs/rename --pairs pairs.jsonl --method attribution

    Parameters
    ----------
    model
        A run folder, a model directory, or a name on the Hugging Face Hub.
    out
        Where the table goes: a page that needs nothing else (.html), or a picture (.png).
    top
        How many of the strongest parts to list.
    """
    check_out(out)
    check_top(top)
    given = texts.read()
    how.check()
    with output.open() as opened:
        generator = compute.load(model)
        with StudyProgress(opened, "patching") as progress:
            table = patched(generator, given, how, progress)
        show_effects(table.plain(), [table], table, opened, out=out, top=top)


def patched(
    generator: TextGenerator, given: dict[str, Any], how: PatchFlags, progress: Progress
) -> EffectTable:
    """The effects of patching, by heads or by positions, or what a gradient says of them."""
    from stepwell.study.attribute import attribute_patches
    from stepwell.study.patch import patch_heads, patch_positions

    if how.method == "attribution":
        return attribute_patches(generator, **given, metric=how.metric)
    given = {**given, "metric": how.metric, "into": how.into, "progress": progress}
    if how.point == "heads":
        return patch_heads(generator, **given)
    return patch_positions(generator, **given, point=how.point)


def read_pairs(path: Path) -> dict[str, list[str] | None]:
    """The texts and answers of a file, a pair of each line; blank lines are passed over.

    An answer that no line has is None. Raises DataError that names file and line.
    """
    lines = numbered_lines(path, fix="give --pairs a file of pairs.")
    rows = {where: _row(line, where) for where, line in lines.items()}
    if not rows:
        raise DataError(f"{path} holds no pair.", fix=EXPECTED)
    for where, row in rows.items():
        differing = row.keys() ^ next(iter(rows.values())).keys()
        if differing:
            raise DataError(
                f'{where}: "{min(differing)}" stands in some lines and not in others.',
                fix="give an answer to every pair, or to none.",
            )
    return {key: _column(rows.values(), key) for key in KEYS}


def _row(line: str, where: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise DataError(f"{where}: not valid JSON.", fix=EXPECTED) from None
    if not isinstance(row, dict) or not {"clean", "corrupt"} <= row.keys():
        raise DataError(f'{where}: expected texts under "clean" and "corrupt".', fix=EXPECTED)
    for key, value in row.items():
        if key not in KEYS:
            raise DataError(f"{where}: there is no key {key!r}. {suggest(key, KEYS)}")
        if not isinstance(value, str):
            raise DataError(f'{where}: "{key}" is {value!r}, expected a text.')
    return row


def _column(rows: Iterable[dict[str, str]], key: str) -> list[str] | None:
    """The values under a key, None where no row has it."""
    found = [row[key] for row in rows if key in row]
    return found or None
