"""Pages as a reader meets them: in Chromium, under the pointer, on the keyboard, in the dark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stepwell.report import Chart, Heatmap, HeatmapGrid, Page, Series, Table
from stepwell.report.palette import DARK, LIGHT, rgb
from stepwell.report.scale import chart_axes

HOSTILE = "</script><img src=x onerror='window.owned = 1'><script>window.owned = 1</script>"


def loss_chart() -> Chart:
    steps = np.arange(0, 1001, 100)
    band = Series(
        "validation", steps, 4 - steps / 500, low=3.9 - steps / 500, high=4.1 - steps / 500
    )
    return Chart(
        "Loss", "step", "loss, nats a token", [Series("training", steps, 3 - steps / 500), band]
    )


def attention(
    rows: int = 2, columns: int = 3, length: int = 5, tokens: list[str] | None = None
) -> HeatmapGrid:
    generator = np.random.default_rng(0)
    return HeatmapGrid(
        "Attention",
        generator.random((rows, columns, length, length)).astype(np.float32),
        row_labels=[f"layer {row}" for row in range(rows)],
        column_labels=[f"head {column}" for column in range(columns)],
        x_ticks=tokens or [f"t{place}" for place in range(length)],
        y_ticks=tokens or [f"t{place}" for place in range(length)],
        value_label="weight",
        value_range=(0.0, 1.0),
    )


def painted(browser, path: Path, **look) -> None:
    browser.open(path, **look)
    browser.wait("document.querySelector('figure.grid').dataset.painted === 'all'")


def full_page() -> Page:
    heatmap = Heatmap("Lens", [[0.1, 0.9]], text=[["a", "b"]], x_label="token", y_label="layer")
    page = Page("Everything", lead="A lead.", command="stepwell train")
    return page.add("Some text.", loss_chart(), heatmap, attention(), Table(("a",), [(1,)]))


def test_page_asks_for_nothing_but_itself(browser, tmp_path):
    path = full_page().write(tmp_path / "page.html")
    painted(browser, path)
    browser.point(".area", click=True)
    browser.point(".maps button", click=True)
    assert browser.requests() == [path.resolve().as_uri()]
    assert browser.complaints() == []


def test_browser_notices_a_page_that_asks_for_more(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<img src='http://127.0.0.1:9/pixel.png'><script>missing()</script>")
    browser.open(path)
    assert "http://127.0.0.1:9/pixel.png" in browser.requests()
    assert browser.complaints()


@pytest.mark.parametrize("place", ["title", "name", "token"])
def test_hostile_text_is_shown_and_not_run(browser, tmp_path, place):
    title = HOSTILE if place == "title" else "Title"
    series = Series(HOSTILE if place == "name" else "a", [0, 1], [0, 1])
    tokens = [HOSTILE if place == "token" else "t"] * 5
    page = Page(title).add(Chart(title, "x", "y", [series]), attention(tokens=tokens))
    painted(browser, page.write(tmp_path / "page.html"))
    browser.point(".area")
    browser.point(".maps button")
    browser.point(".maps button", click=True)
    assert browser.run("window.owned") is None
    assert browser.run("document.querySelectorAll('img').length") == 0


def test_injected_script_is_refused_by_the_policy_of_the_page(browser, tmp_path):
    path = full_page().write(tmp_path / "page.html")
    tampered = tmp_path / "tampered.html"
    injected = "<script>window.owned = 1</script></body>"
    tampered.write_text(path.read_text().replace("</body>", injected))
    browser.open(tampered)
    assert browser.run("window.owned") is None
    assert browser.complaints()


def test_chart_shows_the_values_under_the_pointer(browser, tmp_path):
    browser.open(Page("p").add(loss_chart()).write(tmp_path / "page.html"))
    browser.point(".area", 0.5, 0.2)
    expected = "step 500 training 2 validation 3 2.9 to 3.1"
    assert browser.text("#tip").split() == expected.split()
    places = "[...document.querySelectorAll('.area, .area .dot')]"
    box, *dots = browser.run(f"{places}.map(one => one.getBoundingClientRect().toJSON())")
    heights = [(box["bottom"] - dot["y"] - dot["height"] / 2) / box["height"] for dot in dots]
    assert heights == pytest.approx(chart_axes(loss_chart())[1].place([2.0, 3.0]), abs=0.005)


def test_chart_is_read_with_the_keyboard(browser, tmp_path):
    browser.open(Page("p").add(loss_chart()).write(tmp_path / "page.html"))
    browser.run("document.querySelector('.area').focus()")
    browser.press("Home")
    assert browser.text("#tip").startswith("step 0\n")
    browser.press("ArrowRight")
    assert browser.text("#tip").startswith("step 100\n")
    browser.press("End")
    assert browser.text("#tip").startswith("step 1,000\n")


def test_line_is_drawn_where_its_values_are(browser, tmp_path):
    red = 0.25
    chart = Chart("c", "x", "y", [Series("a", [0, 1], [red, red])], y_range=(0, 1), x_range=(0, 1))
    browser.open(Page("p").add(chart).write(tmp_path / "page.html"))
    box = browser.run("document.querySelector('.area').getBoundingClientRect().toJSON()")
    column = browser.picture()[:, int(box["x"] + box["width"] / 2)]
    colored = np.flatnonzero((column == rgb(LIGHT.series[0])).all(axis=1))
    assert colored.mean() == pytest.approx(box["y"] + box["height"] * (1 - red), abs=1.5)


def test_map_shows_tokens_and_value_under_the_pointer(browser, tmp_path):
    grid = attention()
    painted(browser, Page("p").add(grid).write(tmp_path / "page.html"))
    browser.point(".maps button:nth-of-type(2)", 0.5, 0.9)
    expected = f"layer 0, head 1 query 4: t4 key 2: t2 weight {grid.array[0, 1, 4, 2]:.4f}"
    assert browser.text("#tip").split() == expected.split()


def test_click_enlarges_a_map_and_keys_move_in_it(browser, tmp_path):
    grid = attention()
    painted(browser, Page("p").add(grid).write(tmp_path / "page.html"))
    browser.point(".maps button:nth-of-type(2)", click=True)
    assert browser.text("dialog h3") == "layer 0, head 1"
    browser.point("dialog .map", 0.1, 0.5)
    browser.press("ArrowRight")
    assert browser.text("dialog .readout").endswith(
        f"key 1: t1 · weight {grid.array[0, 1, 2, 1]:.4f}"
    )
    browser.press("PageDown")
    assert browser.text("dialog h3") == "layer 0, head 2"
    browser.press("Escape")
    browser.wait("!document.querySelector('dialog')")


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_cells_of_a_map_have_the_colours_of_the_theme(browser, tmp_path, theme):
    values = np.array([[0.0, 1.0], [np.nan, 0.5]], dtype=np.float32)[None, None]
    grid = HeatmapGrid("g", values, value_range=(0, 1))
    painted(browser, Page("p").add(grid).write(tmp_path / "page.html"), dark=theme is DARK)
    box = browser.run("document.querySelector('.maps button').getBoundingClientRect().toJSON()")
    picture = browser.picture()

    def color(x: float, y: float) -> list[int]:
        return picture[int(box["y"] + y * box["height"]), int(box["x"] + x * box["width"])].tolist()

    assert color(0.25, 0.25) == rgb(theme.sequential[0]).tolist()
    assert color(0.75, 0.25) == rgb(theme.sequential[-1]).tolist()
    assert color(0.25, 0.75) == rgb(theme.paper).tolist()
    assert color(0.75, 0.75) == pytest.approx(rgb(theme.sequential[3]), abs=4)


def test_own_scale_repaints_a_map_to_its_own_ends(browser, tmp_path):
    values = np.array([[[[0.0, 0.1]]], [[[0.0, 1.0]]]], dtype=np.float32)
    painted(browser, Page("p").add(HeatmapGrid("g", values)).write(tmp_path / "page.html"))
    pixel = (
        "[...document.querySelector('.maps canvas').getContext('2d')"
        ".getImageData(1, 0, 1, 1).data].slice(0, 3)"
    )
    before = browser.run(pixel)
    browser.point(".color-scale input", click=True)
    browser.wait("document.querySelector('figure.grid').dataset.painted === 'all'")
    assert before != browser.run(pixel) == rgb(LIGHT.sequential[-1]).tolist()


@pytest.mark.parametrize("width", [320, 375, 1400])
def test_page_never_scrolls_sideways(browser, tmp_path, width):
    page = full_page().add(attention(2, 16, 3))
    page.add(Table(("a rather long heading",) * 9, [("wide " * 5,) * 9]))
    browser.open(page.write(tmp_path / "page.html"), width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_large_grid_is_painted_and_stays_awake(browser, tmp_path):
    pattern = np.tril(np.full((64, 64), 0.5, dtype=np.float32))
    grid = HeatmapGrid("large", np.broadcast_to(pattern, (32, 32, 64, 64)))
    painted(browser, Page("p").add(grid).write(tmp_path / "page.html"))
    assert browser.run("document.querySelectorAll('.maps button').length") == 1024
    last = "[...document.querySelectorAll('.maps canvas')].at(-1).getContext('2d')"
    assert browser.run(f"{last}.getImageData(0, 20, 1, 1).data[3]") == 255
