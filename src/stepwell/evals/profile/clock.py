"""Whose time it is. Nothing here knows what is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Clock:
    """Seconds by key. A moment belongs to the key that was begun last and has not ended.

    So the seconds of all keys add up to the time from the first `begin` to the last `end`, and what
    is begun inside of something else is not counted twice. now: what tells the time.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self.now = now
        self._open: list[str] = []
        self._since = 0.0

    @property
    def whole(self) -> float:
        """Seconds of all keys together."""
        return sum(self.seconds.values())

    def begin(self, key: str) -> None:
        """From now on the time is that of `key`."""
        self._credit()
        self._open.append(key)

    def end(self) -> None:
        """From now on the time is again that of the key before."""
        self._credit()
        self._open.pop()

    @contextmanager
    def during(self, key: str) -> Iterator[None]:
        """While this lasts the time is that of `key`."""
        self.begin(key)
        try:
            yield
        finally:
            self.end()

    def timed(self, key: str, function: Callable[P, R]) -> Callable[P, R]:
        """The function, with the time of its calls under `key`."""

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            self.begin(key)
            try:
                return function(*args, **kwargs)
            finally:
                self.end()

        return call

    def reset(self) -> None:
        """Forget what was timed; nothing may be open."""
        assert not self._open, f"{self._open} have not ended"
        self.seconds = {}

    def _credit(self) -> None:
        """Give the time since the last change to the key that is open."""
        moment = self.now()
        if self._open:
            key = self._open[-1]
            self.seconds[key] = self.seconds.get(key, 0.0) + moment - self._since
        self._since = moment
