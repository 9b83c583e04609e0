"""Numbers read back from their text are the numbers that went in."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.report.numerals import fixed, number, percent, shared_decimals, tick_labels

POWERS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
PREFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def read(text: str) -> float:
    """The value that a person would take from the text."""
    text = text.replace(",", "").replace("−", "-")
    if text[-1:] == "%":
        return read(text[:-1]) / 100
    if text[-1:] in PREFIXES:
        return float(text[:-1]) * PREFIXES[text[-1]]
    mantissa, times, power = text.partition("×10")
    if not times and text.lstrip("-").startswith("10") and text[-1] in "⁻⁰¹²³⁴⁵⁶⁷⁸⁹":
        mantissa, power = text[: text.index("10")] + "1", text[text.index("10") + 2 :]
    return float(mantissa) * 10.0 ** int(power.translate(POWERS) or 0)


@given(st.floats(-1e12, 1e12), st.integers(2, 6))
def test_number_keeps_its_significant_digits(value, digits):
    assert read(number(value, digits)) == pytest.approx(value, rel=10.0 ** (1 - digits), abs=1e-300)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.5, "−0.5"),
        (1234567.0, "1,234,567"),
        (2.5e-7, "2.5×10⁻⁷"),
        (1e-9, "10⁻⁹"),
        (-1e20, "−10²⁰"),
        (0.85512, "0.8551"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_number_reads_well(value, text):
    assert number(value) == text


def test_percent_of_a_share():
    assert (percent(0.855), percent(1.0), percent(math.nan)) == ("85.5%", "100%", "–")


@given(
    st.integers(-20, 20),
    st.integers(2, 9),
    st.sampled_from([1, 2, 5]),
    st.integers(-7, 9),
    st.booleans(),
)
def test_tick_labels_are_told_apart_and_say_where_they_are(first, count, part, power, as_percent):
    step = part * 10.0**power
    ticks = [(first + place) * step for place in range(count)]
    labels = tick_labels(ticks, step, as_percent=as_percent)
    assert len(set(labels)) == count
    for tick, label in zip(ticks, labels, strict=True):
        assert read(label) == pytest.approx(tick, rel=2e-2, abs=step / 4)


def test_large_ticks_get_a_prefix_and_thousands_do_not():
    assert tick_labels([0, 500, 1000], 500) == ["0", "500", "1,000"]
    assert tick_labels([0, 20_000, 40_000], 20_000) == ["0", "20k", "40k"]
    assert tick_labels([0, 5e8, 1e9], 5e8) == ["0", "0.5G", "1.0G"]


@pytest.mark.parametrize(
    ("values", "decimals"),
    [([0.98, 0.5], 3), ([0.041], 4), ([312.5, 2.0], 1), ([99_999.0], 0), ([2e-9], None), ([], 0)],
)
def test_numbers_of_a_column_share_their_decimals(values, decimals):
    assert shared_decimals(values) == decimals


def test_rounding_to_zero_leaves_no_sign():
    assert fixed(-0.001, 2) == "0.00"
    assert fixed(-0.01, 2) == "−0.01"
