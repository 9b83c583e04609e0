"""What tests of processes and servers share: ports, groups, patience."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_gone(group: int) -> bool:
    """Whether nothing is left of a process group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until(is_so: Callable[[], bool], limit_s: float = 5.0) -> bool:
    """Whether something becomes so in time."""
    limit = time.monotonic() + limit_s
    while not is_so() and time.monotonic() < limit:
        time.sleep(0.01)
    return is_so()
