"""The colours of figures, for light and for dark paper; told apart with any kind of colour vision.

Colours of series differ in lightness as well as in hue. A colour scale runs from the paper to full
ink, so that zero recedes and large values stand out on either theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Theme:
    """One set of colours, each as #rrggbb; the last three are stops, equally far apart."""

    paper: str
    panel: str
    ink: str
    muted: str
    rule: str
    accent: str
    series: tuple[str, ...]
    ordered: tuple[str, ...]
    sequential: tuple[str, ...]
    diverging: tuple[str, ...]


LIGHT = Theme(
    paper="#fdfdfb",
    panel="#f4f4f0",
    ink="#1c2024",
    muted="#5c6670",
    rule="#e1e3e1",
    accent="#1857b0",
    series=("#1857b0", "#dc6b05", "#2a9d8f", "#84195c", "#8480e0", "#5c5400"),
    ordered=("#d97706", "#c8415f", "#8a2f95", "#2b1c63"),
    sequential=("#f3f1e7", "#cfe3d0", "#8fc7bd", "#4a9cb5", "#2a6ca6", "#263f8a", "#1b184c"),
    diverging=("#8c3b00", "#d07a2d", "#f0c596", "#f3f1ec", "#a9cbe6", "#3f84c0", "#0f3d7a"),
)

DARK = Theme(
    paper="#14171a",
    panel="#1d2125",
    ink="#e7e9eb",
    muted="#9ba5ae",
    rule="#2c3238",
    accent="#7db1ff",
    series=("#4f8ff7", "#f39a3a", "#74e3b5", "#c850ae", "#dcb6f7", "#8f8f22"),
    ordered=("#6f5ce0", "#c255bd", "#f58a8a", "#ffe7a0"),
    sequential=("#1e2429", "#1d3b50", "#1e6079", "#2c8c8c", "#66b88a", "#bfdc7f", "#fbf6b0"),
    diverging=("#ffb066", "#c4701f", "#6b4426", "#23292e", "#24506f", "#3a8cc9", "#a4d8ff"),
)


def series_color(theme: Theme, number: int, count: int, *, ordered: bool) -> str:
    """The colour of series `number` of `count`; after the last, kinds repeat (and get dashes)."""
    if not ordered:
        return theme.series[number % len(theme.series)]
    return _hex(_blend(theme.ordered, np.array([number / max(1, count - 1)]))[0])


def color_table(stops: Sequence[str], size: int = 256) -> NDArray[np.uint8]:
    """The scale through `stops` in `size` equal steps, red green blue, shape [size, 3]."""
    return _blend(stops, np.linspace(0.0, 1.0, size)).round().astype(np.uint8)


def text_is_pale(background: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether white text reads better than black on colours [..., 3], shape [...]."""
    # At luminance 0.179 both have the same contrast (WCAG 2.2).
    return np.asarray(relative_luminance(background) < 0.179)


def relative_luminance(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Relative luminance in [0, 1] of sRGB colours [..., 3]. Source: WCAG 2.2."""
    channel = rgb.astype(np.float64) / 255
    linear = np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]))


def rgb(color: str) -> NDArray[np.uint8]:
    """Red, green and blue of #rrggbb, shape [3]."""
    return np.frombuffer(bytes.fromhex(color.removeprefix("#")), dtype=np.uint8)


def _blend(stops: Sequence[str], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours at `places` in [0, 1] on the scale through `stops`, shape [..., 3]."""
    colors = np.array([rgb(stop) for stop in stops], dtype=np.float64)
    at = np.linspace(0.0, 1.0, len(stops))
    return np.stack([np.interp(places, at, colors[:, part]) for part in range(3)], axis=-1)


def _hex(color: NDArray[np.float64]) -> str:
    return "#" + bytes(int(part) for part in color.round()).hex()
