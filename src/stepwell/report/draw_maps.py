"""Heatmaps and grids of them drawn on a sheet; they look as they do on the page.

A cell is a whole number of dots wide and high, so that no line of a map is lost or doubled. Loads
matplotlib: reach it through `stepwell.report.png`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes as Field
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from stepwell.report.figure import Heatmap, HeatmapGrid, TokenStrip
from stepwell.report.layout import cell_text, short_names
from stepwell.report.numerals import number
from stepwell.report.palette import Theme, color_table, text_is_pale
from stepwell.report.scale import ColorScale, color_scale
from stepwell.report.sheet import DOT, LINE, MARGIN, Sheet, caption_height, widest

SMALL = 7.5
LEGEND_HEIGHT = 26.0
LEGEND_WIDTH = 110.0
LEAST_WIDTH = 340.0
MAP_WIDTH = 480.0
GRID_WIDTH = 620.0
LARGEST_MAP = 150.0


def draw_maps(picture: Heatmap | HeatmapGrid, theme: Theme) -> Sheet:
    """The sheet that shows a heatmap or a grid of them."""
    if isinstance(picture, Heatmap):
        return _draw_heatmap(picture, theme)
    return _draw_grid(picture, theme)


def _draw_heatmap(heatmap: Heatmap, theme: Theme) -> Sheet:
    scale, text = color_scale(heatmap), cell_text(heatmap)
    rows, columns = heatmap.array.shape
    across, along = _cell_size(rows, columns, text)
    left = MARGIN + _names_width(heatmap.row_names, heatmap.y_label)
    under = _names_height(heatmap.column_names, across, heatmap.x_label)
    width, height = across * columns, along * rows
    sheet, top = paper_for(heatmap, theme, left + width + MARGIN, height + under, scale)
    colors = shade_colors(heatmap.array, scale, theme)
    sheet.image(colors, left, top, width, height)
    _name_rows(sheet, heatmap.row_names, left, top, along, heatmap.y_label)
    _name_columns(sheet, heatmap.column_names, left, top + height, across, heatmap.x_label)
    for row, line in enumerate(text):
        for column, word in enumerate(line):
            x, y = left + across * (column + 0.5), top + along * (row + 0.5)
            color = text_color(colors[row, column], theme)
            sheet.write(word, x, y, size=SMALL, color=color, ha="center", va="center_baseline")
    return sheet


@dataclass(frozen=True)
class Tiling:
    """How the maps of a grid are laid out: the side of a cell and the gap between maps, in dots."""

    grid: HeatmapGrid
    cell_dots: int
    gap_dots: int

    @classmethod
    def of(cls, grid: HeatmapGrid) -> Tiling:
        _, num_columns, _, num_x = grid.array.shape
        gap = 8 if num_columns > 12 else 25
        room = min(LARGEST_MAP, GRID_WIDTH / num_columns - gap * DOT)
        return cls(grid, max(1, int(room / DOT / num_x)), gap)

    @property
    def cell(self) -> float:
        return self.cell_dots * DOT

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of one map in points."""
        num_y, num_x = self.grid.array.shape[2:]
        return self.cell * num_x, self.cell * num_y

    @property
    def step(self) -> tuple[float, float]:
        """From one map to the next, in points to the right and downward."""
        gap = self.gap_dots * DOT
        return self.size[0] + gap, self.size[1] + gap

    @property
    def has_ticks(self) -> bool:
        """Whether a tick's name fits beside its cell."""
        return self.cell >= SMALL + 1

    @property
    def ticks_width(self) -> float:
        return widest(self.grid.names[2], SMALL) + 6 if self.has_ticks else 0.0

    @property
    def ticks_height(self) -> float:
        return _names_height(self.grid.names[3], self.cell, "") if self.has_ticks else 0.0


def _draw_grid(grid: HeatmapGrid, theme: Theme) -> Sheet:
    tiling, scale = Tiling.of(grid), color_scale(grid)
    num_rows, num_columns = grid.array.shape[:2]
    left = MARGIN + widest(grid.names[0], SMALL) + 9 + tiling.ticks_width
    width, height = tiling.step[0] * num_columns, tiling.step[1] * num_rows
    sheet, top = paper_for(
        grid, theme, left + width + MARGIN, height + LINE + tiling.ticks_height, scale
    )
    top += LINE
    image = _tiles(shade_colors(grid.array, scale, theme), tiling)
    _draw_frames(sheet.image(image, left, top, width, height), tiling, theme)
    _name_maps(sheet, tiling, left, top)
    return sheet


def _tiles(colors: NDArray[np.uint8], tiling: Tiling) -> NDArray[np.uint8]:
    """All maps [rows, columns, T, S, 4] in one image, each followed by a transparent gap."""
    large = colors.repeat(tiling.cell_dots, axis=2).repeat(tiling.cell_dots, axis=3)
    gap = (0, tiling.gap_dots)
    rows, columns, height, width, _ = (
        large := np.pad(large, ((0, 0), (0, 0), gap, gap, (0, 0)))
    ).shape
    return large.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 4)


def _draw_frames(field: Field, tiling: Tiling, theme: Theme) -> None:
    """A hairline around each map."""
    num_rows, num_columns = tiling.grid.array.shape[:2]
    width = tiling.size[0] / tiling.step[0] / num_columns
    height = tiling.size[1] / tiling.step[1] / num_rows
    frames = [
        Rectangle((column / num_columns, 1 - row / num_rows - height), width, height)
        for row in range(num_rows)
        for column in range(num_columns)
    ]
    look: dict[str, Any] = {
        "facecolor": "none",
        "edgecolor": theme.rule,
        "linewidth": 0.5,
        "clip_on": False,
    }
    field.add_collection(PatchCollection(frames, **look), autolim=False)


def _name_maps(sheet: Sheet, tiling: Tiling, left: float, top: float) -> None:
    """The names of rows and columns of maps and, where they fit, of the ticks at the edges."""
    rows, columns, y_names, x_names = tiling.grid.names
    (across, along), (width, height) = tiling.step, tiling.size
    bottom = top + along * (len(rows) - 1) + height
    if widest(columns, SMALL) > width:
        word, columns = short_names(columns)
        sheet.write(word, left - tiling.ticks_width - 9, top - 5, size=SMALL, ha="right")
    for column, name in enumerate(columns):
        start = left + across * column
        sheet.write(name, start + width / 2, top - 5, size=SMALL, ha="center")
        if tiling.has_ticks:
            _name_columns(sheet, x_names, start, bottom, tiling.cell, "")
    for row, name in enumerate(rows):
        start = top + along * row
        x, y = left - tiling.ticks_width - 9, start + height / 2
        sheet.write(name, x, y, size=SMALL, ha="right", va="center_baseline")
        if tiling.has_ticks:
            _name_rows(sheet, y_names, left, start, tiling.cell, "")


def paper_for(
    picture: Heatmap | HeatmapGrid | TokenStrip,
    theme: Theme,
    width: float,
    height: float,
    scale: ColorScale,
) -> tuple[Sheet, float]:
    """A sheet with caption and colour scale, and where, under them, room of `height` begins."""
    width = max(LEAST_WIDTH, width)
    below = caption_height(picture.title, picture.note, width)
    top = below + LEGEND_HEIGHT
    sheet = Sheet(width, top + height + MARGIN, theme)
    sheet.caption(picture.title, picture.note)
    ends = [number(scale.low, 3), number(scale.high, 3)]
    x, y = MARGIN + widest(ends[:1], SMALL) + 5, below + 6
    sheet.write(ends[0], x - 5, y, size=SMALL, ha="right", va="center_baseline")
    ramp = color_table(_stops(scale, theme))[None]
    sheet.image(ramp, x, y - 3, LEGEND_WIDTH, 6)
    words = f"{ends[1]}   {picture.value_label}"
    sheet.write(words, x + LEGEND_WIDTH + 5, y, size=SMALL, va="center_baseline")
    return sheet, top


def _name_rows(
    sheet: Sheet, names: Sequence[str], left: float, top: float, cell: float, label: str
) -> None:
    every = max(1, math.ceil((SMALL + 1) / cell))
    for row in range(0, len(names), every):
        y = top + cell * (row + 0.5)
        sheet.write(names[row], left - 6, y, size=SMALL, ha="right", va="center_baseline")
    if label:
        middle = top + cell * len(names) / 2
        sheet.write(label, MARGIN, middle, rotation=90, ha="left", va="center")


def _name_columns(
    sheet: Sheet, names: Sequence[str], left: float, top: float, cell: float, label: str
) -> None:
    upright = _upright(names, cell)
    every = max(1, math.ceil((SMALL + 1) / cell))
    turn = {"rotation": 90, "va": "top"} if upright else {"va": "top"}
    for column in range(0, len(names), every):
        x = left + cell * (column + 0.5)
        sheet.write(names[column], x, top + 5, size=SMALL, ha="center", **turn)
    if label:
        y = top + _names_height(names, cell, label) - 2
        sheet.write(label, left + cell * len(names) / 2, y, ha="center")


def _names_width(names: Sequence[str], label: str) -> float:
    return widest(names, SMALL) + 6 + (LINE + 3 if label else 0)


def _names_height(names: Sequence[str], cell: float, label: str) -> float:
    height = widest(names, SMALL) if _upright(names, cell) else SMALL
    return height + 8 + (LINE if label else 0)


def _upright(names: Sequence[str], cell: float) -> bool:
    return widest(names, SMALL) + 3 > cell


def _cell_size(rows: int, columns: int, text: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Width and height of a cell in points: room for its text, else as large as a map allows."""
    if text:
        room = max(widest(row, SMALL) for row in text) + 9
        return DOT * math.ceil(max(26.0, room) / DOT), DOT * math.ceil(19.0 / DOT)
    side = DOT * max(1, int(min(22.0, MAP_WIDTH / max(rows, columns)) / DOT))
    return side, side


def shade_colors(array: NDArray[np.floating], scale: ColorScale, theme: Theme) -> NDArray[np.uint8]:
    """Red, green, blue and opacity of each value, shape [..., 4]; NaN is transparent."""
    place = scale.place(array)
    steps = np.round(np.nan_to_num(place) * 255).astype(np.int64)
    opaque = np.where(np.isnan(place), 0, 255).astype(np.uint8)
    return np.concatenate([color_table(_stops(scale, theme))[steps], opaque[..., None]], axis=-1)


def _stops(scale: ColorScale, theme: Theme) -> Sequence[str]:
    return theme.diverging if scale.diverging else theme.sequential


def text_color(color: NDArray[np.uint8], theme: Theme) -> str:
    """The colour of text on a shade, or on the paper where the shade is transparent."""
    if color[3] == 0:
        return theme.muted
    return "#ffffff" if text_is_pale(color[None, :3])[0] else "#000000"
