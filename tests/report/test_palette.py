"""Colours are told apart by every kind of colour vision, on both papers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stepwell.report.palette import (
    DARK,
    LIGHT,
    color_table,
    relative_luminance,
    rgb,
    series_color,
    text_is_pale,
)

# Full dichromacy: Machado, Oliveira and Fernandes 2009, table 1, severity 1.0.
VISION = {
    "full": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TELLABLE = 0.065  # in OKLab; about three just noticeable differences


def oklab(color: np.ndarray, vision: np.ndarray) -> np.ndarray:
    """Lightness and two hues as seen. Source: Ottosson 2020."""
    channel = color / 255
    linear = np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return to_lab @ np.cbrt(to_cones @ np.clip(vision @ linear, 0, 1))


def closest(colors: tuple[str, ...], vision: np.ndarray) -> float:
    seen = [oklab(rgb(color), vision) for color in colors]
    return min(float(np.linalg.norm(one - two)) for one, two in itertools.combinations(seen, 2))


def contrast(one: str, two: str) -> float:
    low, high = sorted(float(relative_luminance(rgb(color))) for color in (one, two))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_series_are_told_apart(theme, vision):
    assert closest(theme.series, VISION[vision]) > TELLABLE


def test_common_default_colours_would_not_be():
    tableau = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")
    assert closest(tableau, VISION["deuteranopia"]) < TELLABLE


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_everything_stands_out_from_the_paper(theme):
    for count in (1, 4, 9):
        lines = [series_color(theme, number, count, ordered=True) for number in range(count)]
        assert min(contrast(line, theme.paper) for line in lines) >= 3
    assert min(contrast(color, theme.paper) for color in theme.series) >= 3
    assert contrast(theme.muted, theme.paper) >= 4.5
    assert contrast(theme.muted, theme.panel) >= 4.5
    assert contrast(theme.accent, theme.paper) >= 4.5
    assert contrast(theme.ink, theme.paper) >= 12


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_larger_values_are_always_farther_from_the_paper(theme, vision):
    lightness = [oklab(color, VISION[vision])[0] for color in color_table(theme.sequential, 32)]
    away = -1 if theme is LIGHT else 1
    assert (away * np.diff(lightness) > 0).all()
    left, right = np.split(
        np.array([oklab(color, VISION[vision])[0] for color in color_table(theme.diverging, 32)]), 2
    )
    assert (away * np.diff(left) < 0).all()
    assert (away * np.diff(right) > 0).all()


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_on_a_cell_is_readable_on_every_shade(theme):
    for stops in (theme.sequential, theme.diverging):
        for color, pale in zip(color_table(stops), text_is_pale(color_table(stops)), strict=True):
            text = "#ffffff" if pale else "#000000"
            assert contrast("#" + color.tobytes().hex(), text) >= 4.5


def test_kinds_repeat_after_the_last():
    assert series_color(LIGHT, 6, 9, ordered=False) == LIGHT.series[0]
