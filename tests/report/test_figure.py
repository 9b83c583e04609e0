"""What a figure refuses, and what it makes of the values it is given."""

from __future__ import annotations

import numpy as np
import pytest

from stepwell.errors import ConfigError, ShapeError, UsageError
from stepwell.report import Chart, Choice, Column, Heatmap, HeatmapGrid, Series, Table, TokenStrip


def test_series_holds_its_columns_and_turns_what_is_not_finite_into_nan():
    series = Series("a", [0, 1, 2], np.array([1.0, np.inf, 3.0]), low=[0, 0, 2], high=[2, 2, 4])
    np.testing.assert_array_equal(series.table, [[0, 1, 2], [1, np.nan, 3], [0, 0, 2], [2, 2, 4]])


def test_series_without_interval_has_none():
    assert np.isnan(Series("a", [0.0], [1.0]).table[2:]).all()


@pytest.mark.parametrize(
    "columns",
    [
        {"x": [0, 1], "y": [0]},
        {"x": [[0, 1]], "y": [[0, 1]]},
        {"x": [0], "y": [0], "low": [0]},
        {"x": [0], "y": [0], "low": [0], "high": [0, 1]},
        {"x": [0, 1], "y": [0, 1], "labels": ["one"]},
    ],
)
def test_series_of_unequal_columns_is_refused(columns):
    with pytest.raises(ShapeError, match="'a'"):
        Series("a", **columns)


def test_axis_that_ends_before_it_begins_is_refused():
    with pytest.raises(ConfigError, match="y_range"):
        Chart("c", "x", "y", [], y_range=(1.0, 0.0))


def test_heatmap_needs_a_name_for_every_place():
    values = np.zeros((2, 3))
    assert Heatmap("h", values).column_names == ["0", "1", "2"]
    for wrong in (
        {"x_ticks": ["a"]},
        {"y_ticks": ["a"]},
        {"text": [["a"]]},
        {"error": [1.0, 2.0, 3.0]},
    ):
        with pytest.raises(ShapeError, match="'h'"):
            Heatmap("h", values, **wrong)


@pytest.mark.parametrize("shape", [(2, 3), (1, 1, 0, 4), (2, 2, 2)])
def test_grid_needs_four_dimensions_with_something_in_each(shape):
    with pytest.raises(ShapeError, match=r"expected values of 4 dimensions"):
        HeatmapGrid("g", np.zeros(shape))


def test_grid_beyond_what_a_page_can_show_is_refused_with_its_size():
    endless = np.broadcast_to(np.float32(0), (32, 32, 129, 128))
    with pytest.raises(UsageError, match="16,908,288 values"):
        HeatmapGrid("g", endless)
    HeatmapGrid("g", endless[:, :, :128])


def test_table_names_the_row_that_does_not_fit():
    with pytest.raises(ShapeError, match="row 1: expected 2 cells, got 1"):
        Table(("a", Column("b")), [(1, 2), (3,)])


def test_error_of_a_heatmap_is_nan_where_none_is_known():
    assert np.isnan(Heatmap("h", np.zeros((2, 3))).errors).all()
    known = Heatmap("h", np.zeros((1, 2)), error=[[0.5, np.inf]])
    np.testing.assert_array_equal(known.errors, [[0.5, np.nan]])


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": ["a"]},
        {"values": [[0.0, 1.0]]},
        {"values": [], "tokens": []},
        {"choices": [[Choice("a", 1.0, 1)]]},
    ],
)
def test_strip_needs_a_value_and_a_list_of_choices_for_every_token(wrong):
    whole = {"tokens": ["a", "b"], "values": [np.nan, 1.0], "choices": [(), ()]}
    assert np.isnan(TokenStrip("s", **whole).array[0])
    with pytest.raises(ShapeError, match="'s'"):
        TokenStrip("s", **(whole | wrong))


def test_strip_beyond_what_anybody_looks_through_is_refused_with_its_length():
    with pytest.raises(UsageError, match="16,385 tokens"):
        TokenStrip("s", ["t"] * (2**14 + 1), np.zeros(2**14 + 1))
    TokenStrip("s", ["t"] * 2**14, np.zeros(2**14))
