"""A strip of tokens drawn on a sheet: coloured boxes in lines, as wide as their text.

Loads matplotlib: reach it through `stepwell.report.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from stepwell.report.draw_maps import SMALL, paper_for, shade_colors, text_color
from stepwell.report.figure import LINE_END, TokenStrip
from stepwell.report.palette import Theme, rgb
from stepwell.report.scale import color_scale
from stepwell.report.sheet import MARGIN, Sheet, text_width

TEXT_WIDTH = 560.0
PADDING = 3.0
GAP = 2.0
BOX_HEIGHT = 13.0
LINE_STEP = 17.0
LONGEST = 64


def draw_strip(strip: TokenStrip, theme: Theme) -> Sheet:
    """The sheet that shows a strip of tokens."""
    scale = color_scale(strip)
    names = [shortened(token) for token in strip.tokens]
    widths = [text_width(name, SMALL) + 2 * PADDING for name in names]
    places = lay_out(widths, [token.endswith(LINE_END) for token in strip.tokens], TEXT_WIDTH)
    height = LINE_STEP * (places[-1][1] + 1)
    sheet, top = paper_for(strip, theme, TEXT_WIDTH + 2 * MARGIN, height, scale)
    colors = shade_colors(strip.array, scale, theme)
    boxes = [(MARGIN + left, top + LINE_STEP * line) for left, line in places]
    _paint(sheet, boxes, widths, colors / 255)
    for name, width, color, (left, y) in zip(names, widths, colors, boxes, strict=True):
        x, middle = left + width / 2, y + BOX_HEIGHT / 2
        ink = text_color(color, theme)
        sheet.write(name, x, middle, size=SMALL, color=ink, ha="center", va="center_baseline")
    return sheet


def lay_out(
    widths: Sequence[float], ends_line: Sequence[bool], room: float
) -> list[tuple[float, int]]:
    """Where each box begins: how far from the left, and in which line.

    A line ends after a box that ends one, and before a box that would go beyond `room`.
    """
    places = [(0.0, 0)]
    for (width, following), ended in zip(pairwise(widths), ends_line, strict=False):
        left, line = places[-1]
        left += width + GAP
        full = left + following > room
        places.append((0.0, line + 1) if ended or full else (left, line))
    return places


def shortened(name: str) -> str:
    """The name, cut where it would not fit in a line."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _paint(
    sheet: Sheet,
    boxes: Sequence[tuple[float, float]],
    widths: Sequence[float],
    colors: NDArray[np.float64],
) -> None:
    """A coloured box behind each token; one without a value gets a hairline instead."""
    field = sheet.field(0, 0, sheet.width, sheet.height)
    frames = [
        Rectangle(
            (left / sheet.width, 1 - (y + BOX_HEIGHT) / sheet.height),
            width / sheet.width,
            BOX_HEIGHT / sheet.height,
        )
        for (left, y), width in zip(boxes, widths, strict=True)
    ]
    hairline = np.append(rgb(sheet.theme.rule) / 255, 1.0)
    edges = np.where(colors[:, 3:] == 0, hairline, 0.0)
    looks: dict[str, Any] = {"facecolors": colors, "edgecolors": edges, "linewidths": 0.5}
    field.add_collection(PatchCollection(frames, **looks), autolim=False)
