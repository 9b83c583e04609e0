"""HTML that is escaped by construction, and data that a page's script can read safely.

Plain strings become text wherever they are put; only `Markup`, which `element` makes, stays as it
is. So no title, token or sample can become a tag, an attribute or a script.
"""

from __future__ import annotations

import base64
import html
import json
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Attribute = str | int | float | bool | None
_VOID = frozenset({"br", "meta", "link"})
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
_IN_SCRIPT = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """`text` as HTML shows it: signs of markup escaped, control characters made visible."""
    if isinstance(text, Markup):
        return text
    whole = text.encode("utf-8", "replace").decode()
    return Markup(html.escape(whole.translate(_CONTROLS)))


def element(tag: str, /, *children: str, **attributes: Attribute) -> Markup:
    """The element with escaped children and attributes: `class_` is class, `aria_label` aria-label.

    An attribute that is None or False is left out; one that is True stands without a value.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{join(*children)}</{tag}>")


def join(*pieces: str) -> Markup:
    """The pieces one after the other, escaped where they are plain text."""
    return Markup("".join(map(escape, pieces)))


def json_script(values: Any) -> Markup:
    """An inert script element that holds `values` as JSON; no content can end it early."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False).translate(_IN_SCRIPT)
    return element("script", Markup(text), type="application/json")


def bytes_script(data: bytes) -> Markup:
    """An inert script element that holds `data`, deflated, in base64."""
    # Measured values are noise between runs of blanks: a search for repeats takes twenty times as
    # long as coding the runs, and saves nothing.
    packer = zlib.compressobj(9, strategy=zlib.Z_RLE)
    text = base64.b64encode(packer.compress(data) + packer.flush()).decode("ascii")
    return element("script", Markup(text), type="text/plain", class_="bytes")


def json_numbers(values: NDArray[np.floating]) -> list[float | None]:
    """Numbers for JSON, with six significant digits; None where one is not finite."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
