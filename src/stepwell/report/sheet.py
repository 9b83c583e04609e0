"""Paper on which a picture is drawn with matplotlib, and the fonts for it.

All places are in points (1/72 inch) from the top left. Nothing of matplotlib's global state is
changed, and text is never read as a formula.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray

from stepwell.report.palette import Theme

DOTS_PER_INCH = 200
DOT = 72 / DOTS_PER_INCH
MARGIN = 16.0
TITLE_LINE = 17.0
LINE = 13.0
# The first that is installed; DejaVu comes with matplotlib and fills in signs that others lack.
PREFERRED_FONTS = ("Inter", "Helvetica Neue", "Noto Sans", "Liberation Sans", "Arial")
FALLBACK_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC")


class Sheet:
    """A drawing of `width` x `height` points in the colours of one theme."""

    def __init__(self, width: float, height: float, theme: Theme) -> None:
        self.width = width
        self.height = height
        self.theme = theme
        size = (width / 72, height / 72)
        self.figure = Figure(figsize=size, dpi=DOTS_PER_INCH, facecolor=theme.paper)
        self.figure.set_layout_engine("none")
        FigureCanvasAgg(self.figure)

    def write(
        self,
        text: str,
        x: float,
        y: float,
        *,
        size: float = 9,
        weight: int = 400,
        color: str | None = None,
        **alignment: Any,
    ) -> None:
        """Put text at a place; `alignment` is matplotlib's ha, va and rotation."""
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            legible(text),
            fontproperties=font(size, weight),
            color=color or self.theme.muted,
            parse_math=False,
            usetex=False,
            **({"va": "baseline"} | alignment),
        )

    def field(self, x: float, y: float, width: float, height: float) -> Axes:
        """An empty field of the sheet, with coordinates from 0 to 1 to the right and upward."""
        bottom = 1 - (y + height) / self.height
        across, along = width / self.width, height / self.height
        field = self.figure.add_axes((x / self.width, bottom, across, along))
        field.set_axis_off()
        field.set_xlim(0, 1)
        field.set_ylim(0, 1)
        return field

    def image(
        self, colors: NDArray[np.uint8], x: float, y: float, width: float, height: float
    ) -> Axes:
        """A field that shows an image [rows, columns, 3 or 4], each cell a sharp rectangle."""
        field = self.field(x, y, width, height)
        field.imshow(colors, extent=(0, 1, 0, 1), aspect="auto", interpolation="nearest")
        return field

    def caption(self, title: str, note: str) -> None:
        """The title and the note of a picture, at the top."""
        y = MARGIN + 11
        if title:
            self.write(title, MARGIN, y, size=13, weight=700, color=self.theme.ink)
            y += TITLE_LINE
        for line in note_lines(note, self.width):
            self.write(line, MARGIN, y)
            y += LINE

    def png(self, metadata: Mapping[str, str]) -> bytes:
        """The drawing as a PNG file that carries `metadata`."""
        data = io.BytesIO()
        whole = {key: text.encode("utf-8", "replace").decode() for key, text in metadata.items()}
        self.figure.savefig(data, format="png", dpi=DOTS_PER_INCH, metadata=whole)
        return data.getvalue()


def caption_height(title: str, note: str, width: float) -> float:
    """Where the drawing under a caption may begin, on a sheet of that width."""
    return MARGIN + (TITLE_LINE if title else 0) + LINE * len(note_lines(note, width)) + 6


def note_lines(note: str, width: float) -> list[str]:
    """The lines of a note on a sheet of that width."""
    return wrapped(note, width - 2 * MARGIN)


def wrapped(text: str, width: float) -> list[str]:
    """`text` in lines about as wide as `width` points."""
    letters = text_width(text) / max(1, len(text))
    return textwrap.wrap(text, max(6, int(width / max(1, letters))))


@cache
def text_width(text: str, size: float = 9) -> float:
    """The width of text in points."""
    ruler = Figure(dpi=72)
    FigureCanvasAgg(ruler)
    written = ruler.text(
        0, 0, legible(text), fontproperties=font(size), parse_math=False, usetex=False
    )
    return float(written.get_window_extent().width)


def widest(texts: Iterable[str], size: float = 9) -> float:
    """The width of the longest of some texts in points, 0 where there is none."""
    return max((text_width(text, size) for text in texts), default=0.0)


@cache
def font(size: float, weight: int = 400) -> FontProperties:
    """The font of all pictures at a size in points."""
    return FontProperties(family=list(_families()), size=size, weight=weight)


def legible(text: str) -> str:
    """`text` with a box for every sign that none of our fonts has."""
    known = _known_signs()
    return "".join(sign if ord(sign) in known or sign == "\n" else "□" for sign in text)


@cache
def _families() -> tuple[str, ...]:
    installed = set(font_manager.get_font_names())
    chosen = [name for name in PREFERRED_FONTS if name in installed][:1]
    return (*chosen, *(name for name in FALLBACK_FONTS if name in installed))


@cache
def _known_signs() -> frozenset[int]:
    paths = [font_manager.findfont(FontProperties(family=name)) for name in _families()]
    return frozenset(code for path in paths for code in FT2Font(path).get_charmap())
