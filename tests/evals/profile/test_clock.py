"""The clock of profiles: what is inside is not counted twice."""

from __future__ import annotations

import pytest

from stepwell.evals.profile.clock import Clock


def ticking(*moments: float) -> Clock:
    return Clock(iter(moments).__next__)


def test_what_is_inside_is_not_counted_twice() -> None:
    clock = ticking(0, 1, 5, 7)
    with clock.during("outer"), clock.during("inner"):
        pass
    assert clock.seconds == {"outer": 1 + 2, "inner": 4}
    assert clock.whole == 7


def test_time_while_nothing_is_open_is_nobodys() -> None:
    clock = ticking(0, 1, 100, 103)
    clock.timed("a", lambda: None)()
    clock.timed("a", lambda: None)()
    assert clock.seconds == {"a": 1 + 3}


def test_a_phase_ends_where_it_raises() -> None:
    clock = ticking(0, 1, 3, 6)
    with clock.during("outer"), pytest.raises(ZeroDivisionError), clock.during("inner"):
        raise ZeroDivisionError
    assert clock.seconds == {"outer": 1 + 3, "inner": 2}
    clock.reset()
    assert clock.whole == 0
