"""`stepwell inspect`: what each head looks at in a text, and what the model would say next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.table import Table
from rich.text import Text

from stepwell.cli.compute import ComputeFlags
from stepwell.cli.console import Output, OutputFlags
from stepwell.errors import UsageError

if TYPE_CHECKING:
    from stepwell.generate.text import TextGenerator

SUFFIXES: Final = (".html", ".png")
BAR_WIDTH: Final = 24


def inspect(
    model: str,
    prompt: str,
    /,
    *,
    out: Path | None = None,
    layers: str = "all",
    heads: str = "all",
    top: int = 10,
    compute: ComputeFlags = ComputeFlags(),  # noqa: B008  # it is frozen
    output: OutputFlags = OutputFlags(),  # noqa: B008
) -> None:
    """Show the likeliest next tokens of a text, and draw where each head looks.

        stepwell inspect runs/rename "1>a;a>b;" --out attention.html
        stepwell inspect runs/rename "1>a;a>b;" --out attention.png --layers 0,2 --heads 0-3

    Parameters
    ----------
    model
        A run folder, a model directory, or a name on the Hugging Face Hub.
    prompt
        The text to look at.
    out
        Where the attention maps go: a page that needs nothing else (.html), or a picture (.png).
    layers
        Which layers to draw, such as 0,2 or 0-3.
    heads
        Which heads to draw, such as 0,2 or 0-3.
    top
        How many next tokens to list.
    """
    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out {out}: expected a name that ends in {' or '.join(SUFFIXES)}.")
    if top < 1:
        raise UsageError(f"--top is {top}, expected 1 or more.")
    chosen = parse_choice(layers, "--layers"), parse_choice(heads, "--heads")
    with output.open() as opened:
        generator = compute.load(model)
        likeliest = next_tokens(generator, prompt, top)
        if out is not None:
            draw(generator, prompt, out, *chosen, command=f"stepwell inspect {model} --out {out}")
        plain: dict[str, Any] = {
            "tokens": generator.tokens(prompt),
            "next": likeliest,
            "out": None if out is None else str(out),
        }
        opened.result(plain, likeliest_table(likeliest))
        _say_where(out, opened)


def parse_choice(text: str, flag: str) -> list[int] | None:
    """The numbers in "0,2" or "0-3", each once, in order; None for "all". Raises UsageError."""
    if text == "all":
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"{flag} {text!r}: expected numbers such as 0,2 or 0-3, or all.")
        found.update(range(int(first), int(last or first) + 1))
    return sorted(found)


def next_tokens(generator: TextGenerator, prompt: str, top: int) -> list[dict[str, Any]]:
    """The `top` likeliest tokens after the text, most likely first, with their probabilities."""
    seen = generator.record(prompt, points=["logits"], positions="last")
    [logits] = seen.values()
    best = logits[0, -1].double().softmax(-1).topk(min(top, logits.shape[-1]))
    return [
        {"id": token, "token": generator.tokenizer.token(token), "probability": probability}
        for probability, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def draw(
    generator: TextGenerator,
    prompt: str,
    out: Path,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    *,
    command: str,
) -> None:
    """Writes the attention maps of the chosen layers and heads."""
    from stepwell.study.heatmap import heatmap

    seen = generator.record(
        prompt,
        layers="all" if layers is None else layers,
        heads="all" if heads is None else heads,
    )
    maps = heatmap(seen, tokens=generator.tokens(prompt), heads=heads)
    if out.suffix.lower() == ".png":
        maps.write_png(out)
    else:
        maps.write_html(out, command=command)


def likeliest_table(likeliest: Sequence[dict[str, Any]]) -> Table:
    """The next tokens for people: token, probability, a bar."""
    from stepwell.study.heatmap import visible

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("next token")
    table.add_column("probability", justify="right")
    table.add_column("", no_wrap=True)
    for row in likeliest:
        bar = Text("█" * round(row["probability"] * BAR_WIDTH), style="cyan")
        table.add_row(visible(row["token"]), f"{row['probability']:.1%}", bar)
    return table


def _say_where(out: Path | None, output: Output) -> None:
    if out is None:
        output.note("--out attention.html draws what each head looks at.", style="dim")
    else:
        output.note(Text.assemble(("Attention maps: ", "dim"), str(out)))
