"""What a figure refuses, and what it makes of the values it is given."""

from __future__ import annotations

import numpy as np
import pytest

from stepwell.errors import ConfigError, ShapeError, UsageError
from stepwell.report import Chart, Column, Heatmap, HeatmapGrid, Series, Table


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
    for wrong in ({"x_ticks": ["a"]}, {"y_ticks": ["a"]}, {"text": [["a"]]}):
        with pytest.raises(ShapeError, match="'h'"):
            Heatmap("h", values, **wrong)


@pytest.mark.parametrize("shape", [(2, 3), (1, 1, 0, 4), (2, 2, 2)])
def test_grid_needs_four_dimensions_with_something_in_each(shape):
    with pytest.raises(ShapeError, match=r"expected 4 dimensions"):
        HeatmapGrid("g", np.zeros(shape))


def test_grid_beyond_what_a_page_can_show_is_refused_with_its_size():
    endless = np.broadcast_to(np.float32(0), (32, 32, 129, 128))
    with pytest.raises(UsageError, match="16,908,288 values"):
        HeatmapGrid("g", endless)
    HeatmapGrid("g", endless[:, :, :128])


def test_table_names_the_row_that_does_not_fit():
    with pytest.raises(ShapeError, match="row 1: expected 2 cells, got 1"):
        Table(("a", Column("b")), [(1, 2), (3,)])
