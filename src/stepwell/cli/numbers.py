"""Numbers as people read and type them: durations, counts, bytes, choices. Pure functions."""

from __future__ import annotations

from stepwell.errors import UsageError


def duration(seconds: float) -> str:
    """A length of time: "0:07", "12:34", "3:05:09", "2 d 4 h"."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(number: float) -> str:
    """A count with a letter for its size: "950", "48.3k", "1.2M", "3.4G", "1.1T"."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit * 0.99995:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.0f}"


def bytes_of(count: float) -> str:
    """An amount of memory or disk: "512 B", "1.5 MiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def parse_choice(text: str, flag: str) -> list[int] | None:
    """The numbers in "0,2" or "0-3", each once, in order; None for "all". Raises UsageError."""
    if text == "all":
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"{flag} {text!r}: expected numbers such as 0,2 or 0-3, or all.")
        found.update(range(int(first), int(last or first) + 1))
    return sorted(found)
