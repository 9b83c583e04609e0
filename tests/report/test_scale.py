"""Axes hold their values, ticks lie on them, labels do not cover each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.errors import ConfigError
from stepwell.report import Chart, Heatmap, Series
from stepwell.report.layout import bar_edges, end_labels, lone_points, runs, short_names
from stepwell.report.scale import chart_axes, color_scale, spread, thin

VALUES = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=20)
POSITIVE = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=20)


def chart(y, **options) -> Chart:
    return Chart("c", "x", "y", [Series("a", np.arange(len(y)), y)], **options)


@given(VALUES)
def test_linear_axis_holds_its_values_and_ticks_in_order(y):
    axis = chart_axes(chart(y))[1]
    places = axis.place(y)
    assert ((places >= -1e-9) & (places <= 1 + 1e-9)).all()
    at = axis.place(axis.ticks)
    assert (np.diff(at) > 0).all()
    assert at[0] >= -1e-9
    assert at[-1] <= 1 + 1e-9
    assert 2 <= len(axis.ticks) <= 12
    assert (axis.low, axis.high) == pytest.approx((axis.ticks[0], axis.ticks[-1]))


@given(POSITIVE)
def test_logarithmic_axis_holds_its_values_and_ticks_in_order(y):
    axis = chart_axes(chart(y, y_log=True))[1]
    places = axis.place(y)
    assert ((places >= -1e-9) & (places <= 1 + 1e-9)).all()
    assert (np.diff(axis.place(axis.ticks)) > 0).all()
    assert 2 <= len(axis.ticks) <= 10


def test_equal_ratios_are_equally_long_on_a_logarithmic_axis():
    axis = chart_axes(chart([1, 10, 100, 1000], y_log=True))[1]
    np.testing.assert_allclose(np.diff(axis.place([1, 10, 100, 1000])), 1 / 3)
    assert np.isnan(axis.place([0.0, -1.0])).all()


def test_logarithmic_axis_cannot_begin_at_zero():
    with pytest.raises(ConfigError, match="cannot begin at 0"):
        chart_axes(chart([1, 2], y_log=True, y_range=(0.0, None)))


def test_fixed_ends_are_kept_and_bars_begin_at_zero():
    fixed = chart_axes(chart([0.3, 0.7], y_range=(0.0, 1.0)))[1]
    assert (fixed.low, fixed.high) == (0.0, 1.0)
    bars = Chart("c", "x", "y", [Series("a", [0, 1], [5.0, 6.0], style="bars")])
    assert chart_axes(bars)[1].low == 0.0
    assert chart_axes(chart([5.0, 6.0]))[1].low == 5.0


@pytest.mark.parametrize("y", [[], [np.nan], [3.0], [0.0, 0.0], [-2.0, -2.0]])
def test_axis_without_extent_still_has_two_ends(y):
    axis = chart_axes(chart(y))[1]
    assert axis.high > axis.low
    assert len(axis.ticks) >= 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_spread_places_are_apart_in_order_and_inside(places):
    gap = 0.1
    moved = np.array(spread(places, gap))
    order = np.argsort(places, kind="stable")
    assert (np.diff(moved[order]) >= gap - 1e-9).all()
    assert moved.min() >= -1e-9
    assert moved.max() <= 1 + 1e-9


def test_spread_moves_nothing_that_is_apart_and_shares_the_way_otherwise():
    assert spread([0.1, 0.9, 0.5], 0.2) == pytest.approx([0.1, 0.9, 0.5])
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread([1.0, 1.0], 0.2) == pytest.approx([0.8, 1.0])


def test_thin_keeps_ends_extremes_and_gaps():
    generator = np.random.default_rng(0)
    table = np.full((4, 100_000), np.nan)
    table[0] = np.arange(100_000)
    table[1] = generator.normal(size=100_000)
    table[1, 77_777], table[1, 55_555] = 99.0, np.nan
    small = thin(table, 1000)
    assert small.shape[1] < 1600
    assert {0.0, 99_999.0, 77_777.0, 55_555.0} <= set(small[0])
    assert np.nanmin(small[1]) == np.nanmin(table[1])
    every = table[:, ::100]  # taking every hundredth, as one might, loses the peak
    assert np.nanmax(every[1]) < 99.0


def test_runs_are_the_stretches_between_gaps():
    y = np.array([np.nan, 1, 2, np.nan, np.nan, 3, np.nan, 4, 5])
    assert runs(y) == [slice(1, 3), slice(5, 6), slice(7, 9)]
    assert lone_points(np.zeros(9), y).tolist() == [5]
    assert runs(np.array([np.nan])) == []


def test_bars_of_several_series_stand_side_by_side():
    pair = [Series(name, [0, 1, 2], [1, 2, 3], style="bars") for name in "ab"]
    both = Chart("c", "x", "y", pair, categories=("p", "q", "r"))
    (left_a, right_a), (left_b, right_b) = (bar_edges(both, series) for series in pair)
    np.testing.assert_allclose(right_a, left_b)
    np.testing.assert_allclose(right_b - left_a, 0.78)
    np.testing.assert_allclose((left_a + right_b) / 2, [0, 1, 2])


def test_lines_are_named_at_their_ends_only_where_all_reach_the_end():
    lines = [Series("a", [0, 1], [0, 1]), Series("b", [0, 1], [0, 0.99])]
    figure = Chart("c", "x", "y", lines)
    labels = end_labels(figure, chart_axes(figure), 0.1)
    assert labels[0] - labels[1] == pytest.approx(0.1)
    short = Chart("c", "x", "y", [*lines, Series("c", [0, 0.5], [0, 1])])
    assert end_labels(short, chart_axes(short), 0.1) == {}
    points = Chart("c", "x", "y", [*lines, Series("c", [1], [1], style="points")])
    assert end_labels(points, chart_axes(points), 0.1) == {}


def test_center_lies_in_the_middle_of_the_colours():
    scale = color_scale(Heatmap("h", [[-1.0, 3.0]], center=0.0))
    np.testing.assert_allclose(scale.place([-3.0, 0.0, 3.0, 99.0]), [0, 0.5, 1, 1])
    plain = color_scale(Heatmap("h", [[-1.0, 3.0]], value_range=(None, 7.0)))
    np.testing.assert_allclose(plain.place([-1.0, 3.0, np.nan]), [0, 0.5, np.nan])


def test_common_word_is_taken_off_numbered_names():
    assert short_names(["head 0", "head 11"]) == ("head", ["0", "11"])
    assert short_names(["a", "b"]) == ("", ["a", "b"])
    assert short_names(["x", "x1"]) == ("", ["x", "x1"])
