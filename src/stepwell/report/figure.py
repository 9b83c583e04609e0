"""What a figure shows, as plain frozen values. How it looks is the renderers' business.

Owns `Chart`, `Heatmap`, `HeatmapGrid` and `TokenStrip`, the pictures that both the `png` and the
`html` of this package draw, and `Table`, `Facts` and `Preformatted`, which only a page can hold.
Knows nothing of colours, pixels, models or runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stepwell.errors import ConfigError, ShapeError, UsageError

Style = Literal["line", "points", "bars", "reference"]
Bounds = tuple[float | None, float | None]
MOST_GRID_VALUES = 2**24
MOST_TOKENS = 2**14
LINE_END = "⏎"
Kind = TypeVar("Kind", np.float32, np.float64)


@dataclass(frozen=True, eq=False)
class Series:
    """Points (x, y) under one name, with an interval [low, high] around each y where given.

    `reference` is a thin dashed line to compare with, such as chance or perfect calibration.
    `labels` name single points. Values that are not finite leave a gap.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    style: Style = "line"
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ShapeError(f"series {self.name!r}: expected both low and high, or neither.")
        columns = [column for column in (self.x, self.y, self.low, self.high) if column is not None]
        shapes = [np.shape(column) for column in columns]
        if len(shapes[0]) != 1 or len(set(shapes)) > 1:
            raise ShapeError(
                f"series {self.name!r}: x, y, low and high must be flat and equally long,"
                f" but their shapes are {', '.join(map(str, shapes))}."
            )
        if self.labels and len(self.labels) != shapes[0][0]:
            raise ShapeError(
                f"series {self.name!r}: {shapes[0][0]} points have {len(self.labels)} labels."
            )

    @cached_property
    def table(self) -> NDArray[np.float64]:
        """Rows x, y, low and high, shape [4, N]; NaN where a value is absent or not finite."""
        absent = np.full(np.shape(self.x), np.nan)
        columns = [self.x, self.y]
        columns += [absent if self.low is None or self.high is None else self.low]
        columns += [absent if self.low is None or self.high is None else self.high]
        table = np.array([np.asarray(column, dtype=np.float64) for column in columns])
        table[~np.isfinite(table)] = np.nan
        return table


@dataclass(frozen=True, eq=False)
class Chart:
    """Series over common axes. Labels of axes name the quantity and its unit: "loss, nats a token".

    Where `categories` are given, x counts them from 0. `ordered` series (depths, temperatures,
    sizes) are coloured from low to high instead of by kind. `x_range` and `y_range` fix the ends
    of an axis, None where the data decide.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    note: str = ""
    x_log: bool = False
    y_log: bool = False
    x_percent: bool = False
    y_percent: bool = False
    x_range: Bounds = (None, None)
    y_range: Bounds = (None, None)
    categories: Sequence[str] = ()
    ordered: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in (("x_range", self.x_range), ("y_range", self.y_range)):
            if low is not None and high is not None and low >= high:
                raise ConfigError(f"chart {self.title!r}: {name} ends at {high}, before {low}.")


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Values [rows, columns] as colour, each row and column named, and `text` in the cells.

    Where `center` is given, values below and above it get two hues that meet there. NaN stays
    blank. `value_range` fixes the ends of the colour scale, None where the data decide. `error`,
    shaped like the values, is told beside each on a page, as what `error_label` says it is.
    """

    title: str
    values: ArrayLike
    x_ticks: Sequence[str] = ()
    y_ticks: Sequence[str] = ()
    x_label: str = ""
    y_label: str = ""
    value_label: str = "value"
    text: Sequence[Sequence[str]] = ()
    center: float | None = None
    value_range: Bounds = (None, None)
    note: str = ""
    error: ArrayLike | None = None
    error_label: str = "standard error"

    def __post_init__(self) -> None:
        rows, columns = _dimensions(self.title, self.values, 2)
        _check_names(self.title, "x_ticks", self.x_ticks, columns)
        _check_names(self.title, "y_ticks", self.y_ticks, rows)
        if self.text and (len(self.text), {len(row) for row in self.text}) != (rows, {columns}):
            raise ShapeError(f"heatmap {self.title!r}: expected text of {rows} x {columns} cells.")
        if self.error is not None and np.shape(self.error) != (rows, columns):
            raise ShapeError(
                f"heatmap {self.title!r}: {rows} x {columns} values have an error of shape"
                f" {list(np.shape(self.error))}."
            )

    @cached_property
    def array(self) -> NDArray[np.float64]:
        """The values [rows, columns]; NaN where one is not finite."""
        return _finite(self.values, np.float64)

    @cached_property
    def errors(self) -> NDArray[np.float64]:
        """The error of each value [rows, columns]; NaN where none is given."""
        absent = np.full(self.array.shape, np.nan)
        return absent if self.error is None else _finite(self.error, np.float64)

    @property
    def column_names(self) -> list[str]:
        return _names(self.x_ticks, self.array.shape[1])

    @property
    def row_names(self) -> list[str]:
        return _names(self.y_ticks, self.array.shape[0])


@dataclass(frozen=True, eq=False)
class HeatmapGrid:
    """Heatmaps in rows and columns that share their axes: values [rows, columns, T, S].

    For attention, a row is a layer, a column a head, T the queries (y) and S the keys (x). Raises
    UsageError beyond 2^24 values, which no page could show.
    """

    title: str
    values: ArrayLike
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()
    x_ticks: Sequence[str] = ()
    y_ticks: Sequence[str] = ()
    x_label: str = "key"
    y_label: str = "query"
    value_label: str = "value"
    center: float | None = None
    value_range: Bounds = (None, None)
    note: str = ""

    def __post_init__(self) -> None:
        rows, columns, num_y, num_x = shape = _dimensions(self.title, self.values, 4)
        if math.prod(shape) > MOST_GRID_VALUES:
            raise UsageError(
                f"{self.title!r} has {math.prod(shape):,} values;"
                f" a page holds {MOST_GRID_VALUES:,}.",
                fix="show fewer layers, heads or positions.",
            )
        _check_names(self.title, "row_labels", self.row_labels, rows)
        _check_names(self.title, "column_labels", self.column_labels, columns)
        _check_names(self.title, "y_ticks", self.y_ticks, num_y)
        _check_names(self.title, "x_ticks", self.x_ticks, num_x)

    @cached_property
    def array(self) -> NDArray[np.float32]:
        """The values [rows, columns, T, S]; NaN where one is not finite."""
        return _finite(self.values, np.float32)

    @property
    def names(self) -> tuple[list[str], list[str], list[str], list[str]]:
        """Names of rows, columns, y ticks and x ticks; numbers where none are given."""
        given = (self.row_labels, self.column_labels, self.y_ticks, self.x_ticks)
        rows, columns, y, x = map(_names, given, self.array.shape)
        return rows, columns, y, x


@dataclass(frozen=True)
class Choice:
    """A token that could stand at a place: its probability, its rank from 1, whether it does."""

    text: str
    probability: float
    rank: int
    actual: bool = False


@dataclass(frozen=True, eq=False)
class TokenStrip:
    """A text as its tokens, each coloured by a value [T]; NaN stays blank.

    `choices` are the tokens that could stand at each place, likeliest first, which a page tells
    under the pointer. A new line begins after a token that ends in ⏎. Raises UsageError beyond 2^14
    tokens, which nobody could look through.
    """

    title: str
    tokens: Sequence[str]
    values: ArrayLike
    choices: Sequence[Sequence[Choice]] = ()
    value_label: str = "probability"
    center: float | None = None
    value_range: Bounds = (None, None)
    note: str = ""

    def __post_init__(self) -> None:
        (count,) = _dimensions(self.title, self.values, 1)
        if count > MOST_TOKENS:
            raise UsageError(
                f"{self.title!r} has {count:,} tokens; a strip holds {MOST_TOKENS:,}.",
                fix="show a part of the text.",
            )
        if len(self.tokens) != count or len(self.choices) not in (0, count):
            raise ShapeError(
                f"strip {self.title!r}: {count} values have {len(self.tokens)} tokens and"
                f" {len(self.choices)} lists of choices."
            )

    @cached_property
    def array(self) -> NDArray[np.float64]:
        """The values [T]; NaN where one is not finite."""
        return _finite(self.values, np.float64)


Picture = Chart | Heatmap | HeatmapGrid | TokenStrip


@dataclass(frozen=True)
class Column:
    """The head of a table's column; the `best` cell, the largest or smallest, is highlighted."""

    name: str
    unit: str = ""
    percent: bool = False
    best: Literal["max", "min"] | None = None


@dataclass(frozen=True)
class Estimate:
    """A value with the interval in which it lies."""

    value: float
    low: float
    high: float


Cell = str | int | float | Estimate | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under heads; a plain string is a head without unit. None stays blank."""

    headers: Sequence[str | Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.headers):
                raise ShapeError(
                    f"table {self.title!r}, row {number}: expected {len(self.headers)} cells,"
                    f" got {len(row)}."
                )

    @property
    def columns(self) -> list[Column]:
        """The heads, each as a Column."""
        return [Column(head) if isinstance(head, str) else head for head in self.headers]


@dataclass(frozen=True)
class Facts:
    """A few headline values, each under its name, such as ("validation loss", "1.48 nats")."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Preformatted:
    """Text whose line breaks and spaces matter: a configuration, a sample, a log."""

    text: str
    title: str = ""


Block = Picture | Table | Facts | Preformatted | str


def _dimensions(title: str, values: ArrayLike, count: int) -> tuple[int, ...]:
    shape = np.shape(values)
    if len(shape) != count or 0 in shape:
        raise ShapeError(
            f"{title!r}: expected values of {count} dimensions, none of them empty,"
            f" got {list(shape)}."
        )
    return shape


def _check_names(title: str, field: str, names: Sequence[str], expected: int) -> None:
    if names and len(names) != expected:
        raise ShapeError(
            f"heatmap {title!r}: {field} has {len(names)} names for {expected} places."
        )


def _names(given: Sequence[str], count: int) -> list[str]:
    return list(given) or [str(number) for number in range(count)]


def _finite(values: ArrayLike, kind: type[Kind]) -> NDArray[Kind]:
    array = np.array(values, dtype=kind)
    array[~np.isfinite(array)] = np.nan
    return array
