"""`stepwell heads`: what kind each head is, or what it does for the answer to a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import Group, Parameter

from stepwell.cli.compute import ComputeFlags
from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.drawing import Figures, check_out
from stepwell.cli.effects import StudyProgress, check_top, show_effects
from stepwell.errors import UsageError
from stepwell.study.metric import Metric

if TYPE_CHECKING:
    from stepwell.generate.text import TextGenerator
    from stepwell.study.effects import EffectTable
    from stepwell.study.question import Progress

RANDOM: Final = Group("Without a text", sort_key=5)
ANSWER: Final = Group("With a text", sort_key=6)


@Parameter(name="*", group=RANDOM)
@dataclass(frozen=True)
class RandomTextFlags:
    """The random texts on which attention is scored."""

    length: Annotated[int | None, Parameter(metavar="N")] = None
    """Tokens of a random text, which then comes again; 32, or half the context if that is less."""
    texts: Annotated[int | None, Parameter(metavar="N")] = None
    """How many random texts; 8 where it is not given."""


@Parameter(name="*", group=ANSWER)
@dataclass(frozen=True)
class AnswerFlags:
    """How it is told what a head does for an answer."""

    method: Literal["zero", "shapley", "attribution"] | None = None
    """Silence each head (zero); share the score out over all orders of joining; or a gradient."""
    right: Annotated[str | None, Parameter(metavar="TOKEN")] = None
    """The right answer, a single token; the model's own where it is not given."""
    wrong: Annotated[str | None, Parameter(metavar="TOKEN")] = None
    """A wrong answer, a single token; the model's second choice where it is not given."""
    metric: Metric | None = None
    """How the answer is scored; logit_difference where it is not given."""
    orders: Annotated[int | None, Parameter(metavar="N")] = None
    """Random orders of joining, for shapley; else all up to 12 heads, 64 above."""


def heads(
    model: str,
    text: str | None = None,
    /,
    *,
    random: RandomTextFlags = RandomTextFlags(),  # it is frozen
    answer: AnswerFlags = AnswerFlags(),
    seed: int = 0,
    out: Path | None = None,
    top: int = 10,
    compute: ComputeFlags = ComputeFlags(),  # noqa: B008
    output: OutputFlags = OutputFlags(),  # noqa: B008
) -> None:
    """Tell what each head attends to, or what it does for the answer to a text.

    Without a text: how far each is a previous-token, duplicate-token or induction head.

        stepwell heads runs/rename --out heads.html
        stepwell heads runs/rename "1>a;2>b;a>" --top 5
        stepwell heads runs/rename "1>a;2>b;a>" --method shapley --orders 16 --out heads.png

    Parameters
    ----------
    model
        A run folder, a model directory, or a name on the Hugging Face Hub.
    text
        A text whose next token is the answer.
    seed
        Of random texts and orders.
    out
        Where the table goes: a page that needs nothing else (.html), or a picture (.png).
    top
        How many of the strongest heads to list.
    """
    check_out(out)
    check_top(top)
    _check(text, random, answer)
    with output.open() as opened:
        generator = compute.load(model)
        if text is None:
            show_kinds(generator, random, seed, opened, out=out, top=top)
            return
        with StudyProgress(opened, "silencing heads") as progress:
            table = contributions(generator, text, answer, seed, progress)
        show_effects(table.plain(), [table], table, opened, out=out, top=top)


def show_kinds(
    generator: TextGenerator,
    random: RandomTextFlags,
    seed: int,
    output: Output,
    *,
    out: Path | None,
    top: int,
) -> None:
    """Shows how far each head is of each kind."""
    from stepwell.study.head_scores import head_scores, scores_grid

    given = {} if random.texts is None else {"texts": random.texts}
    tables = head_scores(generator, length=random.length, seed=seed, **given)
    figures = [table.figure for table in tables.values()]
    grid = scores_grid(tables)
    lead = "Mean attention in random texts that come twice: 1 where a head does nothing else."
    drawing = Figures(grid.title, grid, lead, figures)
    plain = {name: table.plain() for name, table in tables.items()}
    show_effects(plain, tables.values(), drawing, output, out=out, top=top)


def contributions(
    generator: TextGenerator, text: str, answer: AnswerFlags, seed: int, progress: Progress
) -> EffectTable:
    """What each head does for the answer to a text."""
    from stepwell.study.attribute import attribute_heads
    from stepwell.study.patch import zero_heads
    from stepwell.study.shapley import shapley_heads

    right, wrong, metric = answer.right, answer.wrong, answer.metric or "logit_difference"
    if answer.method == "shapley":
        return shapley_heads(
            generator,
            text,
            right=right,
            wrong=wrong,
            metric=metric,
            orders=answer.orders,
            seed=seed,
            progress=progress,
        )
    if answer.method == "attribution":
        return attribute_heads(generator, text, right=right, wrong=wrong, metric=metric)
    return zero_heads(generator, text, right=right, wrong=wrong, metric=metric, progress=progress)


def _check(text: str | None, random: RandomTextFlags, answer: AnswerFlags) -> None:
    """Nothing; raises UsageError for flags that do not go together."""
    if text is None and answer != AnswerFlags():
        given = next(name for name, value in vars(answer).items() if value is not None)
        raise UsageError(f"--{given} is about a text.", fix='add one: heads MODEL "1>a;a>".')
    if text is not None and random != RandomTextFlags():
        given = next(name for name, value in vars(random).items() if value is not None)
        raise UsageError(f"--{given} is of random texts.", fix="leave it out, or the text.")
    if answer.orders is not None and answer.method != "shapley":
        raise UsageError("--orders is for --method shapley.", fix="leave it out, or add that.")
