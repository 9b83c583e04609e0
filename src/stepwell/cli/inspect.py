"""`stepwell inspect`: a text as a model sees it, and what the model would say next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter
from rich import box
from rich.table import Table
from rich.text import Text

from stepwell.cli.compute import ComputeFlags
from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.drawing import Drawing, Figures, check_out, write_drawing
from stepwell.cli.effects import check_top
from stepwell.cli.interventions import InterventionFlags
from stepwell.cli.numbers import parse_choice
from stepwell.errors import UsageError

if TYPE_CHECKING:
    from stepwell.generate.text import TextGenerator
    from stepwell.model.interventions import Intervention

BAR_WIDTH: Final = 24


def inspect(
    model: str,
    prompt: str,
    /,
    *,
    out: Path | None = None,
    lens: Annotated[bool, Parameter(negative=())] = False,
    probabilities: Annotated[bool, Parameter(negative=())] = False,
    layers: str = "all",
    heads: str = "all",
    top: int = 10,
    inside: InterventionFlags = InterventionFlags(),  # noqa: B008
    compute: ComputeFlags = ComputeFlags(),  # noqa: B008  # it is frozen
    output: OutputFlags = OutputFlags(),  # noqa: B008
) -> None:
    """Show the likeliest next tokens of a text, and draw where each head looks.

        stepwell inspect runs/rename "1>a;a>b;" --out attention.html
        stepwell inspect runs/rename "1>a;a>b;" --out attention.png --layers 0,2 --heads 0-3
        stepwell inspect runs/rename "1>a;a>b;" --lens --out lens.html
        stepwell inspect runs/rename "1>a;a>b;" --probabilities --out text.html
        stepwell inspect runs/rename "1>a;a>b;" --interventions '[{"zero_heads": {"0": [1]}}]'

    Parameters
    ----------
    model
        A run folder, a model directory, or a name on the Hugging Face Hub.
    prompt
        The text to look at.
    out
        Where the drawing goes: a page that needs nothing else (.html), or a picture (.png).
    lens
        Instead of attention, show what each layer would say next (logit lens).
    probabilities
        Instead of attention, show how likely each token of the text was.
    layers
        Which layers to draw attention of, such as 0,2 or 0-3.
    heads
        Which heads to draw attention of, such as 0,2 or 0-3.
    top
        How many next tokens to list.
    """
    check_out(out)
    check_top(top)
    _check_view(lens, probabilities, chooses=(layers, heads) != ("all", "all"))
    chosen = parse_choice(layers, "--layers"), parse_choice(heads, "--heads")
    with output.open() as opened:
        generator = compute.load(model)
        if lens:
            view = lens_view(generator, prompt, inside.parsed)
        elif probabilities:
            view = probabilities_view(generator, prompt, top, inside.parsed)
        else:
            draws = out is not None
            view = attention_view(generator, prompt, top, *chosen, inside.parsed, draws=draws)
        if out is not None and view.drawing is not None:
            write_drawing(view.drawing, out)
        shown = {"tokens": generator.tokens(prompt), **view.plain}
        opened.result({**shown, "out": None if out is None else str(out)}, view.table)
        _say_where(view, out, opened)


def _check_view(lens: bool, probabilities: bool, *, chooses: bool) -> None:
    """Nothing; raises UsageError for flags that do not belong together."""
    if lens and probabilities:
        raise UsageError("--lens and --probabilities are two drawings.", fix="ask for one.")
    if (lens or probabilities) and chooses:
        raise UsageError("--layers and --heads choose attention maps.", fix="leave them out.")


@dataclass(frozen=True)
class View:
    """One way to look at a text: its result as JSON and for people, and what can be drawn.

    name: what the drawing is. hint: what a drawing would show.
    """

    name: str
    hint: str
    plain: dict[str, Any]
    table: Table
    drawing: Drawing | None


def attention_view(
    generator: TextGenerator,
    prompt: str,
    top: int,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    changes: Sequence[Intervention] = (),
    *,
    draws: bool,
) -> View:
    """The likeliest next tokens, and if it `draws`, maps of the chosen layers and heads."""
    from stepwell.study.heatmap import heatmap, visible

    drawing = None
    if draws:
        seen = generator.record(
            prompt,
            layers="all" if layers is None else layers,
            heads="all" if heads is None else heads,
            interventions=changes,
        )
        drawing = heatmap(seen, tokens=generator.tokens(prompt), heads=heads)
    likeliest = next_tokens(generator, prompt, top, changes)
    cells = [([visible(row["token"])], row["probability"]) for row in likeliest]
    table = bar_table(["next token"], cells)
    hint = "--out attention.html draws what each head looks at."
    return View("Attention maps", hint, {"next": likeliest}, table, drawing)


def next_tokens(
    generator: TextGenerator, prompt: str, top: int, changes: Sequence[Intervention] = ()
) -> list[dict[str, Any]]:
    """The `top` likeliest tokens after the text, most likely first, with their probabilities."""
    seen = generator.record(prompt, points=["logits"], positions="last", interventions=changes)
    [logits] = seen.values()
    best = logits[0, -1].double().softmax(-1).topk(min(top, logits.shape[-1]))
    return [
        {"id": token, "token": generator.tokenizer.token(token), "probability": probability}
        for probability, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def lens_view(generator: TextGenerator, prompt: str, changes: Sequence[Intervention] = ()) -> View:
    """What each layer would say after the whole text; drawn, after each of its tokens."""
    from stepwell.study.heatmap import visible
    from stepwell.study.lens import logit_lens

    lens = logit_lens(generator, prompt, changes)
    ids = lens.likeliest[:, -1].tolist()
    rows = [
        {
            "place": place,
            "id": token,
            "token": lens.names[token],
            "probability": float(lens.probability(token)[row, -1]),
        }
        for row, (place, token) in enumerate(zip(lens.places, ids, strict=True))
    ]
    cells = [([row["place"], visible(row["token"])], row["probability"]) for row in rows]
    table = bar_table(["", "next token"], cells)
    hint = "--out lens.html draws it after each token."
    return View("Logit lens", hint, {"lens": rows}, table, lens)


def probabilities_view(
    generator: TextGenerator, prompt: str, top: int, changes: Sequence[Intervention] = ()
) -> View:
    """How likely each token of the text was after those before it, and what was likelier."""
    from stepwell.study.heatmap import token_heatmap, visible

    [ids] = generator.encode([prompt])
    seen = generator.record(prompt, points=["logits"], interventions=changes)
    logits_TV = seen["logits", -1][0]
    strip = token_heatmap(logits_TV, ids, generator.tokenizer.token, top=top)
    rows: list[dict[str, Any]] = []
    cells: list[tuple[list[str], float | None]] = []
    for token, place in zip(generator.tokens(prompt), strip.choices, strict=True):
        actual = next((choice for choice in place if choice.actual), None)
        rank, probability = (actual.rank, actual.probability) if actual else (None, None)
        rows.append({"token": token, "probability": probability, "rank": rank})
        cells.append(([visible(token), "" if rank is None else str(rank)], probability))
    drawing = Figures("How likely each token was", strip)
    hint = "--out text.html colours the text by it."
    table = bar_table(["token", "rank"], cells)
    return View("Probabilities", hint, {"probabilities": rows}, table, drawing)


def bar_table(heads: Sequence[str], rows: Sequence[tuple[Sequence[str], float | None]]) -> Table:
    """Words under their heads, then a probability and a bar of its length."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in heads:
        table.add_column(head)
    table.add_column("probability", justify="right")
    table.add_column("", no_wrap=True)
    for words, probability in rows:
        known = "" if probability is None else f"{probability:.1%}"
        bar = Text("█" * round((probability or 0) * BAR_WIDTH), style="cyan")
        table.add_row(*words, known, bar)
    return table


def _say_where(view: View, out: Path | None, output: Output) -> None:
    if out is None:
        output.note(view.hint, style="dim")
    else:
        output.note(Text.assemble((f"{view.name}: ", "dim"), str(out)))
