"""A page of 32 layers x 32 heads x 128 tokens opens soon, and never keeps its reader waiting.

How long the page answers nobody is measured from inside, by a clock that should tick every few
milliseconds. On 2 cores at rest the longest wait is about 0.1 s, while the page opens (0.06 s later
on), and the first maps are seen after 0.3 to 0.5 s; with other work on both cores 0.3 s and 0.7 s.
Other programs can hold the clock up once, but a page that blocks does so each time: the best of a
few openings counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stepwell.study.heatmap import heatmap

LAYERS, HEADS, TOKENS = 32, 32, 128
LONGEST_WAIT = 300  # ms
FIRST_MAPS = 3000  # ms
MOST_SECONDS = 10
MOST_BYTES = 18e6
MOST_SCRIPT_BYTES = 250e6
ATTEMPTS = 5

CLOCK = """
  window.clock = { longest: 0, first: null };
  let last = performance.now();
  setInterval(() => {
    const now = performance.now();
    clock.longest = Math.max(clock.longest, now - last);
    if (clock.first === null && document.querySelector('.maps canvas[width]')) clock.first = now;
    last = now;
  }, 4);
"""
DONE = "document.querySelector('figure.grid').dataset.painted === 'all'"


def patterns() -> dict[tuple[str, int], np.ndarray]:
    """Attention [1, H, T, T] of every layer: softmax of random scores whose future is -inf."""
    generator = np.random.default_rng(0)
    scores = 2 * generator.normal(size=(HEADS, TOKENS, TOKENS)).astype(np.float32)
    scores[:, ~np.tri(TOKENS, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    # Heads change places from layer to layer: as varied as new noise, and made at once.
    return {
        ("attention.pattern", layer): np.roll(weights, layer, axis=0)[None]
        for layer in range(LAYERS)
    }


@pytest.fixture(scope="module")
def maps():
    return heatmap(patterns(), [f" token{place}" for place in range(TOKENS)])


@pytest.fixture(scope="module")
def page(maps, tmp_path_factory) -> Path:
    return maps.write_html(tmp_path_factory.mktemp("large") / "attention.html")


@pytest.fixture
def clocked(browser):
    """The browser, with a clock in every page that it opens."""
    script = browser("Page.addScriptToEvaluateOnNewDocument", source=CLOCK)
    yield browser
    browser("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])


def use(browser) -> None:
    """Look through the whole page as a reader does: scroll, read, enlarge, zoom, turn, close."""
    browser.wait(DONE)
    for share in (0.5, 1.0, 0.0):
        browser.run(f"scrollTo(0, {share} * document.body.scrollHeight)")
        browser.wait(DONE)
    for place in (0.2, 0.5, 0.8):
        browser.point(".band button:nth-of-type(5)", place, 0.9)
    browser.point(".band button:nth-of-type(5)", click=True)
    for key in ("+", "+", "+", "ArrowDown", "ArrowRight", "PageDown", "-", "Escape"):
        browser.press(key)
    browser.point(".color-scale input", click=True)
    browser.wait(DONE)


def longest_wait(browser, path: Path, then: Callable[..., None], attempts: int) -> float:
    """The longest wait while a page is opened and used, in ms: the best of a few openings."""
    waits: list[float] = []
    while len(waits) < attempts and min(waits, default=np.inf) > LONGEST_WAIT:
        browser.open(path, width=1400, height=900)
        then(browser)
        waits.append(browser.run("new Promise(done => setTimeout(() => done(clock.longest), 20))"))
    return min(waits)


def test_page_is_written_in_seconds_and_has_the_size_of_its_values(maps, tmp_path):
    begun = time.perf_counter()
    path = maps.write_html(tmp_path / "attention.html")
    assert time.perf_counter() - begun < MOST_SECONDS  # 1 on a machine at rest
    assert path.stat().st_size < MOST_BYTES  # 16e6, of 2 bytes for each value that is not blank


def test_page_opens_soon_asks_for_nothing_and_never_keeps_its_reader_waiting(clocked, page):
    assert longest_wait(clocked, page, use, ATTEMPTS) < LONGEST_WAIT
    assert clocked.run("clock.first") < FIRST_MAPS
    assert clocked.requests() == [page.resolve().as_uri()]
    assert clocked.complaints() == []
    heap = clocked("Runtime.getHeapUsage")
    assert heap["usedSize"] + heap["backingStorageSize"] < MOST_SCRIPT_BYTES  # 40e6 to 100e6


@pytest.mark.parametrize("when", ["spin()", "addEventListener('keydown', spin)"])
def test_clock_notices_a_page_that_blocks(clocked, tmp_path, when):
    path = tmp_path / "page.html"
    spin = (
        "function spin() { const end = performance.now() + 1000; while (performance.now() < end); }"
    )
    path.write_text(f"<script>{spin} {when};</script>")
    assert longest_wait(clocked, path, lambda browser: browser.press("+"), 1) > 900


def test_rows_are_painted_where_they_are_seen_and_cleared_elsewhere(clocked, page):
    clocked.open(page, width=1400, height=500)
    clocked.wait(DONE)
    painted = "[...document.querySelectorAll('.maps canvas')].map((one) => one.width > 0)"
    first = clocked.run(painted)
    assert first[0]
    assert not first[-1]
    clocked.run("scrollTo(0, document.body.scrollHeight)")
    clocked.wait("document.querySelector('.maps > div > :last-child canvas').width > 0")
    assert not clocked.run(painted)[0]
    row = "document.querySelector('.maps > div > :last-child canvas').getContext('2d')"
    assert clocked.run(f"{row}.getImageData(0, 20, 1, 1).data[3]") == 255
    assert clocked.run(f"{row}.getImageData(30, 1, 1, 1).data[3]") == 0  # a key after its query
