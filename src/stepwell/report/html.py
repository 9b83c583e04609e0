"""One page that holds a report: a single file that asks nothing of any network.

Owns the page: its sections, its contents, its footer, and the security policy that makes a browser
refuse every request and every script but the page's own. What the figures look like is said in
`charts`, `maps`, `strip` and `tables`; how all of it is styled, in page.css.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Self

from stepwell.config import write_atomically
from stepwell.report.charts import chart_markup
from stepwell.report.figure import (
    Block,
    Chart,
    Facts,
    Heatmap,
    HeatmapGrid,
    Table,
    TokenStrip,
)
from stepwell.report.maps import grid_markup, heatmap_markup
from stepwell.report.markup import Markup, element, join
from stepwell.report.palette import DARK, LIGHT, Theme
from stepwell.report.shades import theme_rules
from stepwell.report.strip import strip_markup
from stepwell.report.tables import (
    facts_markup,
    inline_code,
    preformatted_markup,
    prose_markup,
    table_markup,
)
from stepwell.version import __version__

SECTIONS_WITH_CONTENTS = 4
_SCRIPTS = {
    "": ["tips.js", "charts.js"],
    '<figure class="grid': ["values.js", "axes.js", "enlarged.js", "maps.js"],
    '<figure class="strip': ["strip.js"],
}


class Page:
    """A page under construction: `add` blocks, begin a `section`, then `write`.

    `lead` is a sentence or two under the title, `command` the one that made the page. Text between
    backticks is set as code. The same content gives the same bytes.
    """

    def __init__(self, title: str, *, lead: str = "", command: str = "") -> None:
        self.title = title
        self.lead = lead
        self.command = command
        self._sections: list[tuple[str, list[Block]]] = [("", [])]

    def section(self, title: str) -> Self:
        """This page, with a new section to which the next blocks belong."""
        self._sections.append((title, []))
        return self

    def add(self, *blocks: Block) -> Self:
        """This page, with blocks at its end: figures, tables, facts, or strings as paragraphs."""
        self._sections[-1][1].extend(blocks)
        return self

    def html(self) -> str:
        """The whole page."""
        body = join(self._header(), self._contents(), self._main(), self._footer())
        return "<!DOCTYPE html>\n" + _document(self.title, body) + "\n"

    def write(self, path: str | Path) -> Path:
        """The path, where the page now lies whole."""
        write_atomically(path, self.html())
        return Path(path)

    def _header(self) -> Markup:
        lead = element("p", inline_code(self.lead), class_="lead") if self.lead else Markup("")
        return element("header", element("h1", self.title), lead)

    def _contents(self) -> Markup:
        titles = [title for title, _ in self._sections[1:]]
        if len(titles) < SECTIONS_WITH_CONTENTS:
            return Markup("")
        links = [
            element("li", element("a", title, href=f"#section-{number}"))
            for number, title in enumerate(titles, 1)
        ]
        return element("nav", element("ol", *links), aria_label="Contents")

    def _main(self) -> Markup:
        sections = []
        for number, (title, blocks) in enumerate(self._sections):
            heading = element("h2", title) if number else Markup("")
            anchor = f"section-{number}" if number else None
            if number or blocks:
                sections.append(element("section", heading, _blocks(blocks), id=anchor))
        return element("main", *sections)

    def _footer(self) -> Markup:
        made = join("Made by stepwell ", __version__)
        if self.command:
            made = join(made, " with ", element("code", self.command))
        return element("footer", element("p", made))


def _blocks(blocks: Sequence[Block]) -> Markup:
    return join(*map(_block, blocks))


def _block(block: Block) -> Markup:
    if isinstance(block, str):
        return prose_markup(block)
    if isinstance(block, Chart):
        return chart_markup(block)
    if isinstance(block, Heatmap):
        return heatmap_markup(block)
    if isinstance(block, HeatmapGrid):
        return grid_markup(block)
    if isinstance(block, TokenStrip):
        return strip_markup(block)
    if isinstance(block, Table):
        return table_markup(block)
    return facts_markup(block) if isinstance(block, Facts) else preformatted_markup(block)


def _document(title: str, body: Markup) -> Markup:
    """The html element: a page carries the scripts of the figures that are on it."""
    script = "".join(
        _asset(name) for kind, names in _SCRIPTS.items() if kind in body for name in names
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=f"stepwell {__version__}"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(_style(body))),
    )
    tip = element("div", id="tip", role="status", hidden=True)
    return element(
        "html", head, element("body", body, tip, element("script", Markup(script))), lang="en"
    )


def _policy(script: str) -> str:
    """The rules a browser enforces: nothing is loaded, and no script runs but this one."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline';"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )


def _style(body: str) -> str:
    cells = any(f'<figure class="{kind}' in body for kind in ("heatmap", "strip"))
    light, dark = (_theme_style(theme, cells) for theme in (LIGHT, DARK))
    screen = f"@media screen and (prefers-color-scheme:dark){{{dark}.hue{{--c:var(--d)}}}}"
    return f"{light}.hue{{--c:var(--l)}}{screen}{_asset('page.css')}"


def _theme_style(theme: Theme, cells: bool) -> str:
    colors = {
        name: getattr(theme, name) for name in ("paper", "panel", "ink", "muted", "rule", "accent")
    }
    scales = {
        "sequential": ",".join(theme.sequential),
        "diverging": ",".join(theme.diverging),
    }
    variables = "".join(f"--{name}:{value};" for name, value in (colors | scales).items())
    return f":root{{{variables}}}" + (theme_rules(theme) if cells else "")


def _asset(name: str) -> str:
    return resources.files("stepwell.report").joinpath(name).read_text(encoding="utf-8")
