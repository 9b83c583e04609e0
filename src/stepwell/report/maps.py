"""Heatmaps as HTML: a table of coloured cells, or a grid of small maps that a script draws.

A table needs no script and can be read aloud, but not with a hundred thousand cells. A grid carries
its values as 16-bit steps between the ends of its scale, deflated, and paints what is on screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell.report.describe import describe
from stepwell.report.figure import Heatmap, HeatmapGrid
from stepwell.report.layout import cell_text
from stepwell.report.markup import Markup, bytes_script, element, json_script
from stepwell.report.numerals import number
from stepwell.report.palette import Theme, color_table, text_is_pale
from stepwell.report.scale import ColorScale, color_scale
from stepwell.report.tables import caption

MOST_CELLS = 4096
NUM_SHADES = 48
MOST_NARROW_COLUMNS = 12
MISSING = 0xFFFF


def heatmap_markup(heatmap: Heatmap) -> Markup:
    """The figure element of a heatmap: a table, or a canvas where that would be too large."""
    if heatmap.array.size > MOST_CELLS and not heatmap.text:
        return grid_markup(_as_grid(heatmap))
    scale, text = color_scale(heatmap), cell_text(heatmap)
    crowded = None if text else "crowded"
    table = element("table", _header(heatmap), _body(heatmap, scale, text), class_=crowded)
    return element(
        "figure",
        caption(heatmap.title, heatmap.note),
        _legend(scale, heatmap.value_label),
        element(
            "div", table, class_="scroll", tabindex=0, role="region", aria_label=describe(heatmap)
        ),
        class_="heatmap",
        data_x=heatmap.x_label,
        data_y=heatmap.y_label,
        data_value=heatmap.value_label,
    )


def grid_markup(grid: HeatmapGrid) -> Markup:
    """The figure element of a grid of maps, with its values."""
    scale = color_scale(grid)
    return element(
        "figure",
        caption(grid.title, grid.note),
        _legend(scale, grid.value_label),
        element("div", class_="maps", role="group", aria_label=describe(grid)),
        element(
            "noscript", element("p", "These maps are drawn by a script, which is switched off.")
        ),
        json_script(_header_data(grid, scale)),
        bytes_script(encode(grid.array, scale)),
        class_="grid wide" if grid.array.shape[1] > MOST_NARROW_COLUMNS else "grid",
    )


def encode(array: NDArray[np.floating], scale: ColorScale) -> bytes:
    """The values as steps of 1/65534 of the scale: all their high bytes, then all their low ones.

    NaN is 65535. High bytes deflate well where they stand together.
    """
    place = scale.place(array)
    steps = np.where(np.isnan(place), MISSING, np.round(np.nan_to_num(place) * (MISSING - 1)))
    codes = steps.astype(np.uint16).ravel()
    return (codes >> 8).astype(np.uint8).tobytes() + (codes & 0xFF).astype(np.uint8).tobytes()


def theme_rules(theme: Theme) -> str:
    """CSS that colours the cells of heatmaps: classes s0, s1 ...; where diverging, d0, d1 ..."""
    rules = []
    for letter, stops in (("s", theme.sequential), ("d", theme.diverging)):
        for place, color in enumerate(color_table(stops, NUM_SHADES)):
            text = "#fff" if text_is_pale(color) else "#000"
            rules.append(f".{letter}{place}{{background:#{color.tobytes().hex()};color:{text}}}")
    return "".join(rules)


def _legend(scale: ColorScale, label: str) -> Markup:
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


def _header(heatmap: Heatmap) -> Markup:
    corner = " / ".join(label for label in (heatmap.y_label, heatmap.x_label) if label)
    names = [element("th", element("span", name), scope="col") for name in heatmap.column_names]
    return element("thead", element("tr", element("td", corner, class_="corner"), *names))


def _body(heatmap: Heatmap, scale: ColorScale, text: Sequence[Sequence[str]]) -> Markup:
    shades = np.round(np.nan_to_num(scale.place(heatmap.array)) * (NUM_SHADES - 1)).astype(int)
    letter = "d" if scale.diverging else "s"
    rows = []
    for line, name in enumerate(heatmap.row_names):
        words = text[line] if text else map(number, heatmap.array[line])
        cells = [
            element("td", word, class_=f"{letter}{shade}", data_v=number(value))
            if np.isfinite(value)
            else element("td", text[line][column] if text else "")
            for column, (word, shade, value) in enumerate(
                zip(words, shades[line], heatmap.array[line].tolist(), strict=True)
            )
        ]
        rows.append(element("tr", element("th", name, scope="row"), *cells))
    return element("tbody", *rows)


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
