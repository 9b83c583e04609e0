"""Numbers as people read them: on ticks, in cells, in a tooltip."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "−"
ABSENT = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PREFIXES = ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))
MOST_DECIMALS = 6
MOST_WHOLE_DIGITS = 9


def number(value: float, digits: int = 4) -> str:
    """`value` with `digits` significant digits, thousands set off; a dash where not finite."""
    if not math.isfinite(value):
        return ABSENT
    size = abs(value)
    if size and not 1e-4 <= size < 1e15:
        return scientific(value, digits)
    if size >= 10 ** (digits - 1) or float(value).is_integer():
        return f"{value:,.0f}".replace("-", MINUS)
    decimals = digits - 1 - math.floor(math.log10(size))
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".").replace("-", MINUS)


def percent(value: float, digits: int = 4) -> str:
    """A share as a percentage: 0.855 is 85.5%."""
    return number(100 * value, digits) + "%" if math.isfinite(value) else ABSENT


def scientific(value: float, digits: int = 4) -> str:
    """`value` as mantissa and power of ten: 2.5×10⁻⁷; the mantissa is left out where it is 1."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    if mantissa in ("1", "-1"):
        return mantissa.replace("-", MINUS).replace("1", "") + power
    return f"{mantissa.replace('-', MINUS)}×{power}"


def tick_labels(ticks: Sequence[float], step: float, *, as_percent: bool = False) -> list[str]:
    """Labels of evenly spaced ticks, all with the same number of decimals or the same prefix."""
    if as_percent:
        return [label + "%" for label in tick_labels([100 * tick for tick in ticks], 100 * step)]
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if largest >= 1e15 or 0 < largest < 1e-3:
        return [scientific(tick, 3) if abs(tick) > step / 2 else "0" for tick in ticks]
    for least, unit, prefix in _PREFIXES:
        if largest >= least and step >= unit / 100:
            labels = [_fixed(tick / unit, step / unit) + prefix for tick in ticks]
            return [
                "0" if abs(tick) < step / 2 else label
                for tick, label in zip(ticks, labels, strict=True)
            ]
    return [_fixed(tick, step) for tick in ticks]


def shared_decimals(values: Sequence[float], digits: int = 4) -> int | None:
    """Decimals that show the largest of `values` with `digits` digits, so that all compare by eye.

    None where the values are so small or so large that powers of ten read better.
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if not largest:
        return 0
    exponent = math.floor(math.log10(largest))
    decimals = digits - 2 - exponent if exponent < 0 else max(0, digits - 1 - exponent)
    return decimals if decimals <= MOST_DECIMALS and exponent < MOST_WHOLE_DIGITS else None


def fixed(value: float, decimals: int) -> str:
    """`value` with that many decimals, thousands set off; a dash where it is not finite."""
    if not math.isfinite(value):
        return ABSENT
    rounded = round(value, decimals) + 0.0  # no minus before zero
    return f"{rounded:,.{decimals}f}".replace("-", MINUS)


def _fixed(value: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return fixed(round(value, decimals), decimals)
