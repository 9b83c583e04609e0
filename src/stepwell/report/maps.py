"""Heatmaps as HTML: a table of coloured cells, or a grid of small maps that a script draws.

A table needs no script and can be read aloud, but not with a hundred thousand cells. A grid carries
its values as 16-bit steps between the ends of its scale, deflated, and paints what is on screen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell.report.describe import describe
from stepwell.report.figure import Heatmap, HeatmapGrid
from stepwell.report.layout import cell_text
from stepwell.report.markup import Markup, bytes_script, element, json_script
from stepwell.report.numerals import ABSENT, number
from stepwell.report.scale import ColorScale, color_scale
from stepwell.report.shades import scale_markup, shade_classes
from stepwell.report.tables import caption

MOST_CELLS = 4096
MOST_NARROW_COLUMNS = 12
MISSING = 0xFFFF
PIECE = 2**19


def heatmap_markup(heatmap: Heatmap) -> Markup:
    """The figure element of a heatmap: a table, or a canvas where that would be too large."""
    if heatmap.array.size > MOST_CELLS and not heatmap.text and heatmap.error is None:
        return grid_markup(_as_grid(heatmap))
    scale, text = color_scale(heatmap), cell_text(heatmap)
    crowded = None if text else "crowded"
    table = element("table", _header(heatmap), _body(heatmap, scale, text), class_=crowded)
    return element(
        "figure",
        caption(heatmap.title, heatmap.note),
        scale_markup(scale, heatmap.value_label),
        element(
            "div", table, class_="scroll", tabindex=0, role="region", aria_label=describe(heatmap)
        ),
        class_="heatmap",
        data_x=heatmap.x_label,
        data_y=heatmap.y_label,
        data_value=heatmap.value_label,
        data_error=None if heatmap.error is None else heatmap.error_label,
    )


def grid_markup(grid: HeatmapGrid) -> Markup:
    """The figure element of a grid of maps, with its values."""
    scale = color_scale(grid)
    return element(
        "figure",
        caption(grid.title, grid.note),
        scale_markup(scale, grid.value_label),
        element("div", class_="maps", role="group", aria_label=describe(grid)),
        element(
            "noscript", element("p", "These maps are drawn by a script, which is switched off.")
        ),
        json_script(_header_data(grid, scale)),
        *map(bytes_script, encode(grid.array, scale)),
        class_="grid wide" if grid.array.shape[1] > MOST_NARROW_COLUMNS else "grid",
    )


def encode(array: NDArray[np.floating], scale: ColorScale) -> Iterator[bytes]:
    """The values as steps of 1/65534 of the scale, NaN as 65535, in pieces of `PIECE` values.

    A piece holds all its high bytes, then all its low ones: high bytes pack well side by side. A
    page unpacks a piece at a time, so that it answers meanwhile.
    """
    for piece in np.split(array.ravel(), range(PIECE, array.size, PIECE)):
        place = scale.place(piece)
        steps = np.where(np.isnan(place), MISSING, np.round(np.nan_to_num(place) * (MISSING - 1)))
        codes = steps.astype(np.uint16)
        yield (codes >> 8).astype(np.uint8).tobytes() + (codes & 0xFF).astype(np.uint8).tobytes()


def _header(heatmap: Heatmap) -> Markup:
    corner = " / ".join(label for label in (heatmap.y_label, heatmap.x_label) if label)
    names = [element("th", element("span", name), scope="col") for name in heatmap.column_names]
    return element("thead", element("tr", element("td", corner, class_="corner"), *names))


def _body(heatmap: Heatmap, scale: ColorScale, text: Sequence[Sequence[str]]) -> Markup:
    values = heatmap.array
    shades = iter(shade_classes(values, scale))
    rows = []
    for line, name in enumerate(heatmap.row_names):
        words = text[line] if text else map(number, values[line].tolist())
        numbers = zip(words, values[line].tolist(), heatmap.errors[line].tolist(), strict=True)
        cells = [_cell(word, next(shades), value, error) for word, value, error in numbers]
        rows.append(element("tr", element("th", name, scope="row"), *cells))
    return element("tbody", *rows)


def _cell(word: str, shade: str | None, value: float, error: float) -> Markup:
    """A cell with the number that a tooltip shows, and its error where it has one."""
    if shade is None:
        return element("td", "" if word == ABSENT else word)
    known = None if np.isnan(error) else number(error, 2)
    return element("td", word, class_=shade, data_v=number(value), data_e=known)


def _as_grid(heatmap: Heatmap) -> HeatmapGrid:
    return HeatmapGrid(
        title=heatmap.title,
        values=heatmap.array[None, None],
        row_labels=("",),
        column_labels=("",),
        x_ticks=heatmap.x_ticks,
        y_ticks=heatmap.y_ticks,
        x_label=heatmap.x_label,
        y_label=heatmap.y_label,
        value_label=heatmap.value_label,
        center=heatmap.center,
        value_range=heatmap.value_range,
        note=heatmap.note,
    )


def _header_data(grid: HeatmapGrid, scale: ColorScale) -> dict[str, Any]:
    rows, columns, y, x = grid.names
    return {
        "shape": list(grid.array.shape),
        "piece": PIECE,
        "low": scale.low,
        "high": scale.high,
        "diverging": scale.diverging,
        "rows": rows,
        "columns": columns,
        "y": y,
        "x": x,
        "yLabel": grid.y_label,
        "xLabel": grid.x_label,
        "valueLabel": grid.value_label,
    }
