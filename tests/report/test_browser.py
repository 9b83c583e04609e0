"""Pages as a reader meets them: in Chromium, under the pointer, on the keyboard, in the dark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stepwell.report import Chart, Choice, Heatmap, HeatmapGrid, Page, Series, Table, TokenStrip
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


def heatmap() -> Heatmap:
    return Heatmap("Lens", [[0.1, 0.9]], text=[["a", "b"]], x_label="token", y_label="layer")


def full_page() -> Page:
    page = Page("Everything", lead="A lead.", command="stepwell train")
    return page.add(
        "Some text.", loss_chart(), heatmap(), strip(), attention(), Table(("a",), [(1,)])
    )


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


def test_heatmap_tells_value_and_error_under_the_pointer_and_the_keys(browser, tmp_path):
    figure = Heatmap(
        "h",
        [[0.5, np.nan], [-0.25, 1.0]],
        ["x0", "x1"],
        ["y0", "y1"],
        x_label="head",
        y_label="layer",
        value_label="effect",
        center=0.0,
        error=[[0.125, np.nan], [0.5, np.nan]],
    )
    browser.open(Page("p").add(figure).write(tmp_path / "page.html"))
    browser.point("tbody tr:nth-child(2) td")
    expected = "layer y1, head x0 effect −0.25 standard error ± 0.5"
    assert browser.text("#tip").split() == expected.split()
    browser.run("document.querySelector('.scroll').focus()")
    browser.press("ArrowRight")
    assert browser.text("#tip").split() == ["layer", "y1,", "head", "x1", "effect", "1"]
    browser.press("ArrowUp")
    assert browser.text("#tip").split() == ["layer", "y0,", "head", "x1", "effect", "–"]
    browser.press("ArrowRight")  # past the end of a row comes the next
    assert browser.text("#tip").startswith("layer y1, head x0")
    browser.press("Escape")
    assert browser.run("document.getElementById('tip').hidden")


def strip(count: int = 40, hostile: bool = False) -> TokenStrip:
    """Tokens t0, t1 ..., a line end after every tenth; each has two choices, the second it."""
    names = [f"t{place}{'⏎' if place % 10 == 9 else ''}" for place in range(count)]
    names[1] = HOSTILE if hostile else names[1]
    choices = [
        [Choice("other", 0.75, 1), Choice(name, 0.125, 7, actual=True)] for name in names[1:]
    ]
    values = [np.nan, *(0.125 for _ in names[1:])]
    return TokenStrip("s", names, values, [(), *choices], value_range=(0, 1))


def test_strip_tells_what_else_could_stand_at_a_token(browser, tmp_path):
    browser.open(Page("p").add(strip()).write(tmp_path / "page.html"))
    browser.point(".strip .text span:nth-of-type(4)")
    expected = "token 3: t3 probability 0.125 1 other 75% 7 t3 ✓ 12.5%"
    assert browser.text("#tip").split() == expected.split()
    weights = "[...tip.querySelectorAll('dt')].map(one => getComputedStyle(one).fontWeight > 600)"
    assert browser.run(weights) == [False, False, True]
    browser.point(".strip .text span")
    assert browser.text("#tip").split() == ["token", "0:", "t0"]


def test_strip_is_read_with_the_keyboard_in_both_directions(browser, tmp_path):
    browser.open(Page("p").add(strip()).write(tmp_path / "page.html"))
    browser.run("document.querySelector('.strip .text').focus()")
    places = {"Home": 0, "ArrowRight": 1, "ArrowDown": 11, "ArrowLeft": 10, "ArrowUp": 0}
    for key, place in places.items():
        browser.press(key)
        assert browser.text("#tip").startswith(f"token {place}:"), key
    browser.press("End")
    assert browser.text("#tip").startswith("token 39:")
    browser.press("ArrowRight")
    assert browser.text("#tip").startswith("token 39:")


def test_strip_is_read_with_a_finger_until_another_place_is_touched(browser, tmp_path):
    browser.open(Page("p").add(strip(), heatmap()).write(tmp_path / "page.html"), width=375)
    browser.touch(".strip .text span:nth-of-type(4)")
    assert browser.text("#tip").startswith("token 3:")
    browser.touch(".heatmap td[data-v]")
    assert browser.text("#tip").startswith("layer 0, token 0")
    browser.touch("h1")
    assert browser.run("document.getElementById('tip').hidden")


def test_hostile_token_of_a_strip_is_shown_and_not_run(browser, tmp_path):
    browser.open(Page("p").add(strip(hostile=True)).write(tmp_path / "page.html"))
    browser.point(".strip .text span:nth-of-type(2)", 0.01)
    assert HOSTILE in browser.text("#tip")
    assert browser.run("window.owned") is None
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.complaints() == []


def test_strip_of_two_thousand_tokens_answers_at_once(browser, tmp_path):
    browser.open(Page("p").add(strip(2000)).write(tmp_path / "page.html"))
    browser.run("document.querySelector('.strip .text').focus()")
    browser.press("Home")
    browser.press("ArrowDown")
    assert browser.text("#tip").startswith("token 10:")
    browser.press("End")
    assert browser.text("#tip").startswith("token 1999:")
    seen = "document.querySelector('.strip .on').getBoundingClientRect().bottom <= innerHeight"
    assert browser.run(seen)
    slowest = """(() => {
      const spans = [...document.querySelectorAll('.strip .text span')].slice(-200);
      return Math.max(...spans.map((span) => {
        const begun = performance.now();
        span.dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));
        tip.getBoundingClientRect();
        return performance.now() - begun;
      }));
    })()"""
    assert browser.run(slowest) < 100  # ms; 3 on a machine at rest


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
        "(({ canvas }) => [...canvas.getContext('2d').getImageData(0.75 * canvas.width, 0, 1, 1)"
        ".data].slice(0, 3))({ canvas: document.querySelector('.maps canvas') })"
    )
    before = browser.run(pixel)
    browser.point(".color-scale input", click=True)
    browser.wait("document.querySelector('figure.grid').dataset.painted === 'all'")
    assert before != browser.run(pixel) == rgb(LIGHT.sequential[-1]).tolist()


def test_enlarged_map_zooms_and_keeps_the_names_of_the_selected_cell_in_sight(browser, tmp_path):
    grid = attention(1, 2, 128)
    painted(browser, Page("p").add(grid).write(tmp_path / "page.html"))
    browser.point(".maps button", click=True)
    side = "document.querySelector('dialog .map').offsetWidth / 128"
    whole = browser.run(side)
    hidden = "[...document.querySelectorAll('dialog .tokens .spare')].length"
    assert browser.run(hidden) > 0  # where all 128 names do not fit, some are left out
    for _ in range(4):
        browser.press("+")
    assert browser.run(side) > 11 > whole
    assert browser.run(hidden) == 0
    for _ in range(30):
        browser.press("ArrowDown")
    for key in ["ArrowRight"] * 20:
        browser.press(key)
    assert browser.text("dialog .readout").endswith(
        f"query 30: t30 → key 20: t20 · weight {grid.array[0, 0, 30, 20]:.4f}"
    )
    # The frame around a cell lets the pointer through to the map under it.
    uncovered = """['.y .on', '.x .on', '.at'].map((what) => {
      const one = document.querySelector('dialog ' + what), box = one.getBoundingClientRect();
      const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
      return what === '.at' ? one.parentNode.contains(top) : top === one;
    })"""
    assert browser.run(uncovered) == [True] * 3
    nearer = browser.run(side)
    browser.point("dialog header button", click=True)
    assert browser.run(side) < nearer
    for _ in range(8):
        browser.press("-")
    assert browser.run(side) == whole


def test_zoom_about_the_pointer_leaves_the_cell_under_it_where_it_is(browser, tmp_path):
    painted(browser, Page("p").add(attention(1, 2, 128)).write(tmp_path / "page.html"))
    browser.point(".maps button", click=True)
    for _ in range(3):
        browser.press("+")
    browser.run("document.querySelector('dialog .large').scrollTo(300, 300)")
    cell = """(() => {
      const box = document.querySelector('dialog .map').getBoundingClientRect();
      return [(400 - box.y) / box.height, (500 - box.x) / box.width].map((share) => 128 * share);
    })()"""
    before, width = browser.run(cell), browser.run("document.querySelector('.map').offsetWidth")
    browser.wheel(500, 400, -100, control=True)
    assert browser.run("document.querySelector('.map').offsetWidth") > 1.3 * width
    assert browser.run(cell) == pytest.approx(before, abs=0.1)
    browser.wheel(500, 400, 100)  # without the key it scrolls
    browser.wait(f"{cell}[0] > {before[0] + 1}")


def test_print_has_every_row_of_maps_also_those_that_were_never_on_screen(browser, tmp_path):
    painted(browser, Page("p").add(attention(24, 2, 5)).write(tmp_path / "page.html"))
    widths = "[...document.querySelectorAll('.maps canvas')].map((one) => one.width > 0)"
    assert not all(browser.run(widths))
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert all(browser.run(widths))


@pytest.mark.parametrize("width", [320, 375, 1400])
def test_page_never_scrolls_sideways(browser, tmp_path, width):
    page = full_page().add(attention(2, 16, 3))
    page.add(Table(("a rather long heading",) * 9, [("wide " * 5,) * 9]))
    browser.open(page.write(tmp_path / "page.html"), width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width
