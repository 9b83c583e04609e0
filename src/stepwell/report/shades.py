"""Values as colours on a page: classes of shades, the rules behind them, and the scale of both.

The shades are those of `palette`; which of them a value gets is said by its `ColorScale`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepwell.report.markup import Markup, element
from stepwell.report.numerals import number
from stepwell.report.palette import Theme, color_table, text_is_pale
from stepwell.report.scale import ColorScale

NUM_SHADES = 48


def theme_rules(theme: Theme) -> str:
    """CSS that colours the shades: classes s0, s1 ...; where diverging, d0, d1 ..."""
    rules = []
    for letter, stops in (("s", theme.sequential), ("d", theme.diverging)):
        for place, color in enumerate(color_table(stops, NUM_SHADES)):
            text = "#fff" if text_is_pale(color) else "#000"
            rules.append(f".{letter}{place}{{background:#{color.tobytes().hex()};color:{text}}}")
    return "".join(rules)


def shade_classes(array: NDArray[np.floating], scale: ColorScale) -> list[str | None]:
    """The class of each value of an array, flat; None where there is no value."""
    letter = "d" if scale.diverging else "s"
    places = scale.place(array).ravel() * (NUM_SHADES - 1)
    return [None if np.isnan(place) else f"{letter}{round(place)}" for place in places.tolist()]


def scale_markup(scale: ColorScale, label: str) -> Markup:
    """The colour scale with its two ends and the name of what it shows."""
    kind = "diverging" if scale.diverging else "sequential"
    low, high = number(scale.low, 3), number(scale.high, 3)
    return element(
        "div",
        element("span", low),
        element("i", class_=f"ramp {kind}"),
        element("span", high),
        element("span", label, class_="ramp-name"),
        class_="color-scale",
        aria_label=f"Colour scale of {label} from {low} to {high}",
        role="img",
    )
