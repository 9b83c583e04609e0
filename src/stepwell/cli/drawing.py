"""What a command draws into the file of --out: a page that needs nothing else, or a picture."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from stepwell.errors import UsageError
from stepwell.report import Page, write_png
from stepwell.report.figure import Block, Picture

SUFFIXES: Final = (".html", ".png")


class Drawing(Protocol):
    """What can be written as a page and as a picture."""

    def write_html(self, path: Path, *, command: str = "") -> Path:
        """The path of a page; its footer names `command`."""

    def write_png(self, path: Path) -> Path:
        """The path of a picture."""


@dataclass(frozen=True)
class Figures:
    """A `Drawing` of a picture; the page has these blocks, or the picture where there are none."""

    title: str
    picture: Picture
    lead: str = ""
    blocks: Sequence[Block] = ()

    def write_html(self, path: Path, *, command: str = "") -> Path:
        """The path of a page with the blocks."""
        page = Page(self.title, lead=self.lead, command=command)
        return page.add(*(self.blocks or [self.picture])).write(path)

    def write_png(self, path: Path) -> Path:
        """The path of the picture."""
        return write_png(self.picture, path)


def check_out(out: Path | None) -> None:
    """Nothing; raises UsageError for a name that says neither page nor picture."""
    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out {out}: expected a name that ends in {' or '.join(SUFFIXES)}.")


def write_drawing(drawing: Drawing, out: Path) -> None:
    """Writes what the name of the file asks for; a page names the command that made it."""
    if out.suffix.lower() == ".png":
        drawing.write_png(out)
    else:
        drawing.write_html(out, command=shlex.join(["stepwell", *sys.argv[1:]]))
