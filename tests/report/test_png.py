"""Pictures: every cell has its colour and its size, any text can be drawn, nothing global moves."""

from __future__ import annotations

import io
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stepwell.report import Chart, Heatmap, HeatmapGrid, Series, TokenStrip, write_png
from stepwell.report.describe import describe, x_text
from stepwell.report.draw_strip import GAP, lay_out
from stepwell.report.palette import DARK, LIGHT, color_table, rgb
from stepwell.report.png import draw


def pixels(picture, theme=LIGHT) -> np.ndarray:
    with Image.open(io.BytesIO(draw(picture, theme))) as image:
        return np.asarray(image.convert("RGB"))


def count(image: np.ndarray, color: np.ndarray) -> int:
    return int((image == color).all(axis=-1).sum())


def simple_chart(**options) -> Chart:
    return Chart(
        "Loss",
        "step",
        "loss",
        [Series("a", [0, 1], [1, 2]), Series("b", [0, 1], [2, 1])],
        **options,
    )


def test_picture_is_written_with_its_description(tmp_path):
    path = write_png(simple_chart(), tmp_path / "new" / "loss.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.info["Title"] == "Loss"
        assert image.info["Description"] == describe(simple_chart())
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    assert [one.name for one in path.parent.iterdir()] == ["loss.png"]


def test_same_picture_gives_the_same_bytes():
    assert draw(simple_chart(), LIGHT) == draw(simple_chart(), LIGHT)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_cell_of_a_grid_has_the_same_size_and_its_own_colour(theme):
    values = np.zeros((2, 3, 7, 7), dtype=np.float32)
    values[0, 0, 0, :3] = 1.0
    values[1, 2, 6, 6] = 1.0
    values[1, 1] = np.nan
    image = pixels(HeatmapGrid("g", values, value_range=(0, 1)), theme)
    full, empty = (count(image, color) for color in color_table(theme.sequential)[[255, 0]])
    side = np.sqrt(full / 4)
    assert side == pytest.approx(round(side), abs=0.35)  # a column of the colour scale is as dark
    cells = values.size - 49 - 4
    # The hairline around a map covers half a dot of the cells at its edge.
    assert empty / full == pytest.approx(cells / 4, rel=0.12)


def test_peak_is_seen_in_a_grid_of_many_maps():
    values = np.zeros((4, 32, 8, 64), dtype=np.float32)
    values[2, 20, 3, 33] = 1.0
    blank = count(
        pixels(HeatmapGrid("g", 0 * values, value_range=(0, 1))), color_table(LIGHT.sequential)[255]
    )
    seen = count(
        pixels(HeatmapGrid("g", values, value_range=(0, 1))), color_table(LIGHT.sequential)[255]
    )
    assert seen > blank


def test_heatmap_is_painted_in_the_order_it_was_given():
    image = pixels(Heatmap("", np.arange(20.0).reshape(4, 5)[:, ::-1] * np.ones((1, 5))))
    table = color_table(LIGHT.sequential)
    at = {step: np.argwhere((image == table[step]).all(axis=-1)) for step in (255, 0)}
    largest, smallest = (places[len(places) // 2] for places in at.values())
    assert largest[0] > smallest[0]
    assert largest[1] < smallest[1]


def test_line_goes_where_its_values_go():
    rising = Chart("", "x", "y", [Series("a", [0, 1], [0, 1])])
    places = np.argwhere((pixels(rising) == rgb(LIGHT.series[0])).all(axis=-1))
    assert np.corrcoef(places.T)[0, 1] < -0.99  # rows count downward


@pytest.mark.parametrize(
    "text", ["$\\frac{$", "a\x00b\ud800", "漢字 😀 \u202e", "</script>", "", "100% _^{}\\"]
)
def test_any_text_can_be_drawn(text):
    chart = Chart(
        text, text, text, [Series(text, [0, 1], [0, 1]), Series(text, [0], [0])], note=text
    )
    points = Series(text, [0, 1], [0, 1], style="points", labels=[text, text])
    named = Chart(text, text, text, [points], categories=[text, text])
    names = {"x_ticks": [text] * 2, "y_ticks": [text] * 2, "x_label": text, "y_label": text}
    heatmap = Heatmap(text, np.eye(2), text=[[text] * 2] * 2, note=text, value_label=text, **names)
    grid = HeatmapGrid(
        text, np.ones((1, 1, 2, 2)), row_labels=[text], column_labels=[text], **names
    )
    strip = TokenStrip(text, [text, 300 * text], [np.nan, 0.5], value_label=text, note=text)
    for picture in (chart, named, heatmap, grid, strip):
        assert draw(picture, LIGHT).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "series", [[], [Series("a", [], [])], [Series("a", [0], [np.nan])], [Series("a", [3], [4])]]
)
def test_chart_with_little_in_it_is_drawn(series):
    assert draw(Chart("c", "x", "y", series), LIGHT).startswith(b"\x89PNG")


@pytest.mark.parametrize("style", ["line", "points", "bars", "reference"])
def test_intervals_and_every_style_leave_ink(style):
    bare = Series("a", [0, 1, 2], [1, 3, 2], style=style)
    range_ = Series("a", [0, 1, 2], [1, 3, 2], low=[0, 1, 1], high=[2, 4, 3], style=style)
    empty = pixels(
        Chart(
            "c", "x", "y", [Series("a", [0, 2], [np.nan, np.nan])], y_range=(0, 5), x_range=(-1, 3)
        )
    )
    one, two = (
        pixels(Chart("c", "x", "y", [s], y_range=(0, 5), x_range=(-1, 3))) for s in (bare, range_)
    )
    assert (one != empty).any()
    assert (one != two).any() or style == "reference"


def test_settings_of_matplotlib_are_neither_changed_nor_obeyed():
    before = draw(simple_chart(), LIGHT)
    with mpl.rc_context({"text.usetex": True, "axes.facecolor": "red", "figure.autolayout": True}):
        kept = dict(mpl.rcParams)
        assert draw(simple_chart(), LIGHT) == before
        assert dict(mpl.rcParams) == kept


def test_matplotlib_is_loaded_only_for_a_picture_and_pyplot_never():
    script = """
import sys
import stepwell.report as report
chart = report.Chart("c", "x", "y", [])
report.Page("p").add(chart).html()
assert not {"matplotlib", "torch", "plotly"} & set(sys.modules)
report.png.draw(chart, report.png.LIGHT)
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_place_of_a_chart_of_categories_reads_as_the_nearest(count: int) -> None:
    """Also the ends of a line that is drawn across all of them, half a place beyond the last."""
    names = [f"case {number}" for number in range(count)]
    ends = [-0.5, count - 0.5]
    level = Series("level", ends, [1.0, 1.0], style="reference")
    chart = Chart("Title", x_label="x", y_label="y", series=[level], categories=names)
    assert f"1.00 at {names[0]} to 1.00 at {names[-1]}" in describe(chart).replace(
        "1 at", "1.00 at"
    )
    assert [x_text(chart, place + 0.3) for place in range(count)] == names


boxes = st.lists(st.tuples(st.floats(1, 60), st.booleans()), min_size=1, max_size=40)


@given(boxes)
def test_boxes_of_a_strip_follow_each_other_inside_the_room_and_waste_no_line(given_boxes):
    widths = [float(round(width)) for width, _ in given_boxes]
    ends = [ends_line for _, ends_line in given_boxes]
    room = 100.0
    places = lay_out(widths, ends, room)
    assert places[0] == (0.0, 0)
    for number in range(1, len(places)):
        (left, line), (before, last) = places[number], places[number - 1]
        beside = before + widths[number - 1] + GAP
        assert left + widths[number] <= room
        if line == last:
            assert left == beside
            assert not ends[number - 1]
        else:
            assert (left, line) == (0.0, last + 1)
            assert ends[number - 1] or beside + widths[number] > room


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_token_of_a_strip_has_a_box_in_its_colour(theme):
    table = color_table(theme.sequential)
    strip = TokenStrip("", ["mm", "mm", "mm⏎", "mm"], [np.nan, 1.0, 0.0, 1.0], value_range=(0, 1))
    image = pixels(strip, theme)
    dark = np.argwhere((image == table[255]).all(axis=-1))
    dark = dark[dark[:, 0] > image.shape[0] / 2]  # under the colour scale
    rows, columns = np.unique(dark[:, 0]), np.unique(dark[:, 1])
    assert (np.diff(rows) > 1).sum() == 1  # two lines of boxes
    assert (np.diff(columns) > 1).sum() >= 1  # the second box of one line, the first of the next
    assert count(pixels(TokenStrip("", ["mm"], [np.nan]), theme), table[255]) < len(dark) / 4
