"""A page as a parser reads it: whole, silent, escaped, and with the values that were put in."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stepwell.config import write_atomically
from stepwell.report import (
    Chart,
    Choice,
    Column,
    Estimate,
    Facts,
    Heatmap,
    HeatmapGrid,
    Page,
    Preformatted,
    Series,
    Table,
    TokenStrip,
)
from stepwell.report.markup import Markup, element, escape
from stepwell.report.scale import chart_axes
from stepwell.version import __version__

VOID = {"br", "meta", "link"}
HOSTILE = (
    '</script><script>alert(\'1\')</script><img src="//x.example/p.png" onerror="a">\'&amp;]]>-->'
)


class Reader(HTMLParser):
    """The elements of a page in order, each with its attributes and the text directly in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(page)
        self.close()
        assert not self.open, "not every element is closed"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        assert self.elements[self.open.pop()][0] == tag, "elements overlap"

    def handle_data(self, text):
        if self.open:
            self.elements[self.open[-1]][2].append(text)

    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attributes)) for tag, attributes, _ in self.elements]

    def texts(self, tag: str, **wanted: str) -> list[str]:
        return ["".join(text) for _, _, text in self.found(tag, **wanted)]

    def found(self, tag: str, **wanted: str):
        return [
            one
            for one in self.elements
            if one[0] == tag and all(one[1].get(key) == value for key, value in wanted.items())
        ]


def everything(text: str) -> Page:
    """A page with every kind of block, and `text` wherever a text can be."""
    series = [
        Series(text, [0, 1, 2], [1, 2, 0], low=[0, 1, 0], high=[2, 3, 1]),
        Series(text, [0, 2], [1, 1]),
    ]
    named = Series(text, [1], [1], style="points", labels=[text])
    names = {"x_ticks": [text] * 2, "y_ticks": [text] * 2, "x_label": text, "y_label": text}
    names |= {"value_label": text, "note": text}
    square = np.array([[0.0, 0.5], [1.0, np.nan]])
    page = Page(text, lead=text, command=text)
    for _ in range(4):
        page.section(text)
    return page.add(
        text,
        Chart(text, text, text, series, note=text),
        Chart(
            text, text, text, [named, Series(text, [0], [1], style="bars")], categories=[text] * 2
        ),
        Heatmap(text, square, text=[[text] * 2] * 2, **names),
        Heatmap(text, square, center=0.2, error=square, error_label=text, **names),
        TokenStrip(text, [text, "b"], [np.nan, 0.5], [(), [Choice(text, 0.5, 1, actual=True)]]),
        HeatmapGrid(text, square[None, None], row_labels=[text], column_labels=[text], **names),
        Table([text, Column(text, unit=text, best="max")], [(text, 1.5), (None, 2)], text, text),
        Facts([(text, text)]),
        Preformatted(text, title=text),
    )


def outside_requests(page: str) -> list[str]:
    """Whatever in a page would make a browser ask for something else."""
    found = []
    for tag, attributes, text in Reader(page).elements:
        if tag in ("iframe", "object", "embed", "base", "form", "img", "video", "audio", "use"):
            found.append(tag)
        for name, value in attributes.items():
            local = (value or "").startswith(("#", "data:"))
            if name in ("src", "srcset", "href", "action", "poster", "xlink:href") and not local:
                found.append(f"{tag} {name}={value}")
            if name.startswith("on") or (name == "style" and "url(" in (value or "")):
                found.append(f"{tag} {name}={value}")
        if tag == "style":
            found += re.findall(r"@import|url\(", "".join(text))
        if tag == "script" and "type" not in attributes:
            pattern = (
                r"\b(?:fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import)\b|https?:"
            )
            found += re.findall(pattern, "".join(text))
    return found


def test_page_asks_for_nothing():
    assert outside_requests(everything("text").html()) == []


@pytest.mark.parametrize(
    "addition",
    [
        '<script src="https://cdn.example/plotly.js"></script>',
        "<script>fetch('data.json')</script>",
        '<link rel="stylesheet" href="style.css">',
        "<style>@import 'a.css'</style>",
        '<p style="background:url(x.png)"></p>',
        '<p onclick="a()"></p>',
    ],
)
def test_a_page_that_asks_for_more_is_noticed(addition):
    page = everything("text").html().replace("</main>", addition + "</main>")
    assert outside_requests(page)


def test_policy_admits_the_one_script_and_nothing_else():
    reader = Reader(everything("text").html())
    (policy,) = [
        attributes["content"] for _, attributes, _ in reader.elements if "http-equiv" in attributes
    ]
    scripts = [text for _, attributes, text in reader.found("script") if "type" not in attributes]
    digest = base64.b64encode(hashlib.sha256("".join(scripts[0]).encode()).digest()).decode()
    assert len(scripts) == 1
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}'; ")
    assert "https:" not in policy


# A backtick begins code and an empty line a paragraph, on purpose; nothing else has a meaning.
@settings(max_examples=40, deadline=None)
@example(HOSTILE)
@example("\u2028\ud800\x00<!--")
@given(st.text(st.characters(exclude_characters="`\n"), min_size=1).filter(str.strip))
def test_no_text_changes_the_structure_of_a_page(text):
    plain = "t" * len(text)  # long names of series stand in a legend, short ones beside their lines
    assert Reader(everything(text).html()).shape() == Reader(everything(plain).html()).shape()


def test_unescaped_text_would_change_it():
    assert Reader(element("p", HOSTILE)).shape() == Reader(element("p", "text")).shape()
    with pytest.raises(AssertionError, match="overlap"):
        Reader(element("p", Markup(HOSTILE)))


def test_text_is_read_back_as_it_was_given():
    reader = Reader(everything(HOSTILE).html())
    assert reader.texts("h1") == [HOSTILE]
    assert reader.texts("title") == [HOSTILE]
    assert reader.texts("pre") == [HOSTILE]
    assert HOSTILE in reader.texts("td")
    data = [json.loads(text) for text in reader.texts("script", type="application/json")]
    assert data[0]["series"][0]["name"] == HOSTILE
    assert data[2]["choices"] == [[], [[1, HOSTILE, "50%", True]]]
    assert HOSTILE in reader.texts("span")
    assert data[-1]["x"] == [HOSTILE] * 2


def test_control_characters_become_visible_and_surrogates_harmless():
    assert escape("a\x00\x1b\tb") == "a␀␛\tb"
    assert escape("\ud800") == "?"


def test_same_content_gives_the_same_bytes():
    assert everything("text").html() == everything("text").html()


def test_page_is_written_whole_over_the_old_one(tmp_path: Path):
    path = tmp_path / "new" / "report.html"
    write_atomically(path, "old")
    assert Page("new").write(path) == path
    assert path.read_text(encoding="utf-8") == Page("new").html()
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]


def test_contents_are_listed_when_there_are_many_sections():
    page = Page("p")
    for number in range(1, 4):
        page.section(f"part {number}")
    assert not Reader(page.html()).found("nav")
    reader = Reader(page.section("part 4").html())
    targets = [attributes["href"] for _, attributes, _ in reader.found("a")]
    sections = ["#" + str(attributes["id"]) for _, attributes, _ in reader.found("section")]
    assert targets == sections
    assert reader.texts("a") == reader.texts("h2") == ["part 1", "part 2", "part 3", "part 4"]


def test_footer_names_version_and_command():
    reader = Reader(Page("p", command="stepwell inspect m 'a`b'").html())
    assert "".join(reader.texts("p")).startswith(f"Made by stepwell {__version__} with ")
    assert reader.texts("code") == ["stepwell inspect m 'a`b'"]


def test_prose_has_paragraphs_and_code():
    reader = Reader(Page("p").add("one `a < b`\n\ntwo ` odd").html())
    assert reader.texts("code") == ["a < b"]
    assert reader.texts("p")[:2] == ["one ", "two ` odd"]


def test_only_a_page_with_maps_carries_their_script():
    chart = Page("p").add(Chart("c", "x", "y", []))
    assert "DecompressionStream" not in chart.html()
    assert "DecompressionStream" in chart.add(HeatmapGrid("g", np.zeros((1, 1, 2, 2)))).html()
    assert len(Page("p").add(Chart("c", "x", "y", [])).html()) < 30_000


def test_chart_carries_its_values_and_says_them_in_words():
    series = Series("train", [0, 10, 20], [4.0, np.nan, 1.23456789], low=[3, 0, 1], high=[5, 0, 2])
    figure = Chart(
        "Loss", "step", "loss, nats", [series, Series("chance", [0, 20], [3, 3], style="reference")]
    )
    reader = Reader(Page("p").add(figure).html())
    data = json.loads(reader.texts("script", type="application/json")[0])
    (only,) = data["series"]
    assert (only["x"], only["y"]) == ([0, 10, 20], [4, None, 1.23457])
    assert (only["low"], only["high"]) == ([3, 0, 1], [5, 0, 2])
    (area,) = reader.found("div", role="img")
    spoken = area[1]["aria-label"]
    assert spoken is not None
    assert "Line chart: Loss. loss, nats by step." in spoken
    assert "train: 2 values from 4 at 0 to 1.235 at 20" in spoken
    rows = [text for text in reader.texts("td") if text]
    assert rows[:3] == ["train", "0", "4.000"]


def test_line_in_the_drawing_lies_where_the_axes_say():
    x, y = np.array([0.0, 3.0, 7.0]), np.array([1.0, 9.0, 4.0])
    figure = Chart("c", "x", "y", [Series("a", x, y)], y_range=(0, 10), x_range=(0, 10))
    (path,) = Reader(Page("p").add(figure).html()).found("path", **{"class": "line"})
    drawn = np.array(re.findall(r"[-\d.]+", str(path[1]["d"])), dtype=float).reshape(-1, 2)
    np.testing.assert_allclose(drawn, np.stack([100 * x, 1000 - 100 * y], axis=1), atol=0.06)
    assert chart_axes(figure)[0].high == 10


def test_gap_breaks_a_line_and_a_lone_point_is_a_dot():
    y = [1, 2, np.nan, 3, np.nan, 4, 5]
    reader = Reader(Page("p").add(Chart("c", "x", "y", [Series("a", range(7), y)])).html())
    (line,) = reader.found("path", **{"class": "line"})
    (dots,) = reader.found("path", **{"class": "points lone"})
    assert str(line[1]["d"]).count("M") == 3
    assert str(dots[1]["d"]).count("M") == 1


def test_chart_of_a_hundred_thousand_points_stays_small():
    steps = np.arange(100_000)
    page = Page("p").add(Chart("c", "step", "y", [Series("a", steps, np.sin(steps / 9))]))
    assert len(page.html()) < 200_000


def test_table_aligns_numbers_and_highlights_the_best():
    columns = (
        "run",
        Column("loss", "nats", best="min"),
        Column("accuracy", percent=True, best="max"),
        "n",
    )
    rows = [
        ("a", 2.31, Estimate(0.5, 0.45, 0.55), 1200),
        ("b", 0.25, Estimate(0.985, 0.97, 0.99), 7),
        ("c", None, None, None),
    ]
    reader = Reader(Page("p").add(Table(columns, rows, title="Runs")).html())
    cells = [("".join(text), attributes.get("class")) for _, attributes, text in reader.found("td")]
    assert cells[:4] == [("a", None), ("2.310", "number"), ("50.0%", "number"), ("1,200", "number")]
    assert cells[4:8] == [
        ("b", None),
        ("0.250", "number best"),
        ("98.5%", "number best"),
        ("7", "number"),
    ]
    assert cells[8:] == [("c", None), ("", None), ("", None), ("", None)]
    assert [attributes["scope"] for _, attributes, _ in reader.found("th")] == ["col"] * 4
    assert "97.0% to 99.0%" in reader.texts("small")
    assert reader.texts("span", **{"class": "spoken"}) == [" (best)"] * 2
    assert reader.found("div", role="region")[0][1]["aria-label"] == "Runs"


def test_numbers_too_small_for_the_shared_decimals_are_not_shown_as_zero():
    reader = Reader(Page("p").add(Table(("loss",), [(2.5,), (1e-7,)])).html())
    assert reader.texts("td") == ["2.5", "10⁻⁷"]


def test_heatmap_is_a_table_with_heads_and_values():
    figure = Heatmap("h", [[0.125, -1.0], [np.nan, 1.0]], ["p", "q"], ["u", "v"], center=0.0)
    reader = Reader(Page("p").add(figure).html())
    assert reader.texts("th", scope="row") == ["u", "v"]
    assert [text for text in reader.texts("span") if text in "pq"] == ["p", "q"]
    cells = [
        (attributes.get("class"), attributes.get("data-v"))
        for _, attributes, _ in reader.found("td")
    ]
    assert cells[1:] == [("d26", "0.125"), ("d0", "−1"), (None, None), ("d47", "1")]


def test_large_heatmap_becomes_a_map():
    reader = Reader(Page("p").add(Heatmap("h", np.zeros((65, 64)))).html())
    assert not reader.found("td")
    assert json.loads(reader.texts("script", type="application/json")[0])["shape"] == [1, 1, 65, 64]


def test_heatmap_with_errors_stays_a_table_that_tells_them():
    figure = Heatmap("h", np.zeros((65, 64)), error=np.full((65, 64), 0.025), error_label="se")
    reader = Reader(Page("p").add(figure).html())
    cells = reader.found("td", **{"data-e": "0.025"})
    assert len(cells) == 65 * 64
    assert reader.found("figure", **{"data-error": "se"})
    without = Reader(Page("p").add(Heatmap("h", np.zeros((2, 2)))).html())
    assert not any("data-e" in attributes for _, attributes, _ in without.found("td"))


def test_strip_is_the_text_itself_with_a_shade_and_a_line_for_every_line():
    strip = TokenStrip("s", ["a", "·b⏎", "c"], [np.nan, 0.0, 1.0])
    reader = Reader(Page("p").add(strip).html())
    spans = [
        ("".join(text), attributes.get("class")) for _, attributes, text in reader.found("span")
    ]
    assert spans[-3:] == [("a", None), ("·b⏎", "s0"), ("c", "s47")]
    assert len(reader.found("br")) == 1
    spoken = str(reader.found("div", role="group")[0][1]["aria-label"])
    assert spoken == (
        "Text of 3 tokens, each with its probability: s. The largest value is 1 at token c."
    )


@pytest.mark.parametrize("center", [None, 0.0])
@pytest.mark.parametrize("piece", [2**19, 7, 60])
def test_values_of_a_grid_are_read_back_within_a_step(center, piece, monkeypatch):
    monkeypatch.setattr("stepwell.report.maps.PIECE", piece)
    values = np.random.default_rng(1).normal(size=(2, 3, 5, 4)).astype(np.float32)
    values[0, 0, 0, 1] = np.nan
    reader = Reader(Page("p").add(HeatmapGrid("g", values, center=center)).html())
    header = json.loads(reader.texts("script", type="application/json")[0])
    pieces = reader.texts("script", **{"class": "bytes"})
    assert header["piece"] == piece
    assert len(pieces) == -(-values.size // piece)
    codes = np.concatenate([unpacked(text) for text in pieces]).reshape(header["shape"])
    span = header["high"] - header["low"]
    read = header["low"] + span * codes / 65534
    read[codes == 65535] = np.nan
    np.testing.assert_allclose(read, values, atol=0.51 * span / 65534)


def unpacked(text: str) -> np.ndarray:
    """The codes in one piece: all high bytes, then all low ones."""
    data = zlib.decompress(base64.b64decode(text))
    high, low = np.frombuffer(data, dtype=np.uint8).astype(int).reshape(2, -1)
    return 256 * high + low
