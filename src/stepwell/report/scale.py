"""Where values lie on an axis or a colour scale, and which of them get a tick. Pure arithmetic.

Both renderers take their places from here, so that a picture and a page show the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stepwell.errors import ConfigError
from stepwell.report.figure import Bounds, Chart, Heatmap, HeatmapGrid, TokenStrip
from stepwell.report.numerals import number, percent, scientific, tick_labels

Floats = NDArray[np.float64]
NUM_TICKS = 5
MOST_LOG_TICKS = 7


@dataclass(frozen=True)
class Axis:
    """The values from `low` to `high`, laid out evenly, or evenly in their logarithm."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]
    labels: tuple[str, ...]

    def place(self, values: ArrayLike) -> Floats:
        """Where values lie, 0 at `low` and 1 at `high`; NaN where they have no place."""
        array = np.asarray(values, dtype=np.float64)
        if not self.log:
            return np.asarray((array - self.low) / (self.high - self.low))
        with np.errstate(invalid="ignore"):
            positive = np.where(array > 0, array, np.nan)
        span = math.log(self.high / self.low)
        return np.asarray(np.log(positive / self.low) / span)


def chart_axes(chart: Chart) -> tuple[Axis, Axis]:
    """The x and the y axis that hold all series of a chart."""
    tables = [series.table for series in chart.series] or [np.full((4, 0), np.nan)]
    values = np.concatenate(tables, axis=1)
    styles = {series.style for series in chart.series}
    y_values = values[1:].ravel()
    if "bars" in styles and not chart.y_log:
        y_values = np.append(y_values, 0.0)
    y = _axis(y_values, chart.y_range, chart.y_log, chart.y_percent, None)
    if chart.categories:
        return _category_axis(chart.categories), y
    x_values = values[0]
    if "bars" in styles and chart.x_range == (None, None):
        half = bar_spacing(chart) / 2
        x_values = np.concatenate([x_values - half, x_values + half])
    margin = 0.04 if "points" in styles else 0.0
    return _axis(x_values, chart.x_range, chart.x_log, chart.x_percent, margin), y


def bar_spacing(chart: Chart) -> float:
    """The smallest distance in x between two places that have bars."""
    places = [series.table[0] for series in chart.series if series.style == "bars"]
    distances = np.diff(np.unique(np.concatenate(places)))
    distances = distances[np.isfinite(distances)]
    return float(distances.min()) if distances.size else 1.0


@dataclass(frozen=True)
class ColorScale:
    """The values from `low` to `high` on a colour scale; where diverging, its center is midway."""

    low: float
    high: float
    diverging: bool

    def place(self, values: ArrayLike) -> Floats:
        """Where values lie on the scale, clipped to [0, 1]; NaN stays NaN."""
        array = np.asarray(values, dtype=np.float64)
        return np.clip((array - self.low) / (self.high - self.low), 0.0, 1.0)


def color_scale(picture: Heatmap | HeatmapGrid | TokenStrip) -> ColorScale:
    """The colour scale that holds all values of a picture, for a grid those of all its maps."""
    low, high = _extent(picture.array, picture.value_range)
    if picture.center is None:
        return ColorScale(low, high, diverging=False)
    reach = max(abs(high - picture.center), abs(low - picture.center))
    return ColorScale(picture.center - reach, picture.center + reach, diverging=True)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places, moved apart to at least `gap`, as little as possible, in order, within [0, 1]."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    groups: list[tuple[list[int], float]] = []
    for index in order:
        groups.append(([index], places[index]))
        while len(groups) > 1 and _overlap(groups[-2], groups[-1], gap):
            (upper, center), (lower, other) = groups[-2:]
            merged = upper + lower
            middle = (center * len(upper) + other * len(lower)) / len(merged)
            groups[-2:] = [(merged, _held(middle, len(merged), gap))]
    moved = [0.0] * len(places)
    for members, center in groups:
        start = _held(center, len(members), gap) - gap * (len(members) - 1) / 2
        for rank, index in enumerate(members):
            moved[index] = start + rank * gap
    return moved


def thin(table: Floats, limit: int) -> Floats:
    """About `limit` columns of `table` [4, N] at most; the extremes of y in each stretch stay."""
    count = table.shape[1]
    if count <= limit:
        return table
    kept = {0, count - 1}
    for stretch in np.array_split(np.arange(count), limit // 2):
        y = table[1, stretch]
        if np.isnan(y).any():
            kept.add(int(stretch[np.isnan(y)][0]))
        if not np.isnan(y).all():
            kept.update((int(stretch[np.nanargmin(y)]), int(stretch[np.nanargmax(y)])))
    return table[:, sorted(kept)]


def _axis(values: Floats, fixed: Bounds, log: bool, as_percent: bool, margin: float | None) -> Axis:
    """The axis of `values`, its free ends moved out by a share `margin`, or to ticks where None."""
    if log:
        return _log_axis(values, fixed, as_percent, margin)
    low, high = _extent(values, fixed)
    step = _nice_step((high - low) / NUM_TICKS)
    pad = (margin or 0.0) * (high - low)
    if fixed[0] is None:
        low = math.floor(low / step + 1e-9) * step if margin is None else low - pad
    if fixed[1] is None:
        high = math.ceil(high / step - 1e-9) * step if margin is None else high + pad
    ticks = _steps_within(low, high, step)
    labels = tick_labels(ticks, step, as_percent=as_percent)
    return Axis(low, high, False, tuple(ticks), tuple(labels))


def _log_axis(values: Floats, fixed: Bounds, as_percent: bool, margin: float | None) -> Axis:
    low, high = _extent(values[values > 0], fixed, empty=(1.0, 10.0))
    if low <= 0:
        raise ConfigError(
            f"a logarithmic axis cannot begin at {low:g}.",
            fix="give it positive ends, or make it linear.",
        )
    steps = _log_steps(low, high, (1, 2, 5))
    stretch = (high / low) ** (margin or 0.0)
    if fixed[0] is None:
        low = steps[0] if margin is None else low / stretch
    if fixed[1] is None:
        high = steps[-1] if margin is None else high * stretch
    ticks = _log_ticks(low, high)
    label = percent if as_percent else _log_label
    return Axis(low, high, True, tuple(ticks), tuple(map(label, ticks)))


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within the ends; where few are, also twice and five times those."""
    for parts in ((1,), (1, 2, 5)):
        steps = _log_steps(low, high, parts)
        ticks = [step for step in steps if low <= step * (1 + 1e-9) and step <= high * (1 + 1e-9)]
        if len(ticks) >= 3:
            break
    return ticks[:: math.ceil(len(ticks) / MOST_LOG_TICKS) or 1]


def _log_steps(low: float, high: float, parts: Sequence[int]) -> list[float]:
    """`parts` times powers of ten, from the last up to `low` to the first from `high` on."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [part * 10.0**power for power in powers for part in parts]
    first = max(number for number, step in enumerate(steps) if step <= low * (1 + 1e-9))
    last = min(number for number, step in enumerate(steps) if step >= high * (1 - 1e-9))
    return steps[first : last + 1]


def _log_label(tick: float) -> str:
    return number(tick, 1) if 1e-3 <= tick < 1e5 else scientific(tick, 1)


def _category_axis(categories: Sequence[str]) -> Axis:
    ticks = tuple(float(number) for number in range(len(categories)))
    return Axis(-0.5, len(categories) - 0.5, False, ticks, tuple(categories))


def _extent(
    values: NDArray[np.floating], fixed: Bounds, empty: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float]:
    """The ends of the values or the fixed ends, never equal; `empty` where there is no value."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else empty
    low = low if fixed[0] is None else fixed[0]
    high = high if fixed[1] is None else fixed[1]
    if high > low:
        return low, high
    room = abs(low) / 2 or 0.5
    if fixed[0] is not None:
        return low, low + room
    return (low - room, low + room) if fixed[1] is None else (high - room, high)


def _nice_step(raw: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is at least about `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next(part for part in (1, 2, 5, 10) if raw <= part * power * 1.1)


def _steps_within(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _overlap(upper: tuple[list[int], float], lower: tuple[list[int], float], gap: float) -> bool:
    needed = gap * (len(upper[0]) + len(lower[0])) / 2
    return (
        _held(lower[1], len(lower[0]), gap) - _held(upper[1], len(upper[0]), gap) < needed - 1e-12
    )


def _held(center: float, members: int, gap: float) -> float:
    """`center` moved so that a group of that many members stays within [0, 1]."""
    half = gap * (members - 1) / 2
    return min(max(center, half), max(1.0 - half, half))
