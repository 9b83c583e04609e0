"""A strip of tokens as HTML: the text itself, coloured; a script tells what else could be there."""

from __future__ import annotations

import math
from typing import Any

from stepwell.report.describe import describe
from stepwell.report.figure import LINE_END, Choice, TokenStrip
from stepwell.report.markup import Markup, element, join, json_script
from stepwell.report.numerals import number, percent
from stepwell.report.scale import color_scale
from stepwell.report.shades import scale_markup, shade_classes
from stepwell.report.tables import caption


def strip_markup(strip: TokenStrip) -> Markup:
    """The figure element of a strip, with the choices of each token."""
    scale = color_scale(strip)
    tokens = [
        join(element("span", token, class_=shade), _line_end(token))
        for token, shade in zip(strip.tokens, shade_classes(strip.array, scale), strict=True)
    ]
    return element(
        "figure",
        caption(strip.title, strip.note),
        scale_markup(scale, strip.value_label),
        element(
            "div", *tokens, class_="text", tabindex=0, role="group", aria_label=describe(strip)
        ),
        json_script(_data(strip)),
        class_="strip",
    )


def _line_end(token: str) -> Markup:
    return element("br") if token.endswith(LINE_END) else Markup("")


def _data(strip: TokenStrip) -> dict[str, Any]:
    """What the script needs to tell the value of a token, and what else could stand there."""
    values = [number(value) if math.isfinite(value) else "" for value in strip.array.tolist()]
    choices = [[_choice(one) for one in place] for place in strip.choices]
    return {"label": strip.value_label, "values": values, "choices": choices}


def _choice(choice: Choice) -> tuple[int, str, str, bool]:
    return choice.rank, choice.text, percent(choice.probability, 3), choice.actual
