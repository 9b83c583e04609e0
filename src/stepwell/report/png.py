"""A picture as a PNG file. matplotlib is loaded when the first one is drawn, not before."""

from __future__ import annotations

from pathlib import Path

from stepwell.config import write_atomically
from stepwell.report.describe import describe
from stepwell.report.figure import Chart, Picture, TokenStrip
from stepwell.report.palette import DARK, LIGHT, Theme
from stepwell.version import __version__


def write_png(picture: Picture, path: str | Path, *, dark: bool = False) -> Path:
    """The path, where a picture now lies as a PNG of 200 dots an inch."""
    write_atomically(path, draw(picture, DARK if dark else LIGHT))
    return Path(path)


def draw(picture: Picture, theme: Theme) -> bytes:
    """The picture as a PNG file, with its text alternative inside it under "Description".

    The same picture gives the same pixels wherever the same fonts are installed.
    """
    from stepwell.report.draw_chart import draw_chart
    from stepwell.report.draw_maps import draw_maps
    from stepwell.report.draw_strip import draw_strip

    if isinstance(picture, Chart):
        sheet = draw_chart(picture, theme)
    elif isinstance(picture, TokenStrip):
        sheet = draw_strip(picture, theme)
    else:
        sheet = draw_maps(picture, theme)
    words = {"Title": picture.title, "Description": describe(picture)}
    return sheet.png(words | {"Software": f"stepwell {__version__}"})
