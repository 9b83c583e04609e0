"""How quick something is on a machine that may be busy with something else."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 20.0


def fastest(work: Callable[[], object], *, enough: float, calls: int = 1) -> float:
    """The least seconds of one call, tried until they are `enough` or patience ends."""
    best, end = float("inf"), time.perf_counter() + PATIENCE_S
    while best >= enough and time.perf_counter() < end:
        begin = time.perf_counter()
        for _ in range(calls):
            work()
        best = min(best, (time.perf_counter() - begin) / calls)
    return best
