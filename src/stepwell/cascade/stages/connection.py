"""HTTP to one server: JSON goes out, a JSON object comes back, within a limit of time.

Owns retries, deadlines and the words of errors; a key that is sent stands in none of them. Knows
no model and no field of a request.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import unquote, urlsplit

from stepwell.errors import ConfigError, StageError

if TYPE_CHECKING:
    import httpx2

RETRIES: Final = 2
FIRST_PAUSE_S: Final = 0.1
"""Before a lost connection is tried again; each further pause is twice as long."""
BUSY: Final = frozenset({429, 503})
SHOWN: Final = 200
"""Characters of an answer that an error quotes."""
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class LateError(Exception):
    """The time that a call was given is over."""


class LostError(StageError):
    """A connection that broke before the answer was there."""


class GoneError(LostError):
    """A server that nobody can connect to; `gone` tells a guard so."""

    gone: Final = True


class RefusedError(StageError):
    """A request that the server understood and does not take: an answer from 400 to 499."""


class SenselessError(StageError):
    """An answer in which something is missing, or is not what it should be."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call must be over, in seconds of `time.monotonic`."""

    at: float = math.inf

    @classmethod
    def after(cls, seconds: float | None) -> Self:
        """The deadline so many seconds from now; None is never."""
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds until then, at least 0."""
        return max(0.0, self.at - time.monotonic())


NEVER: Final = Deadline()


class Connection:
    """A server at `url`, with or without /v1 at its end; safe to use from several threads.

    timeout_s: the longest that one request may take. A connection that is lost and a server that
    is busy and says until when (429, 503) are tried twice more. Raises StageError for all else that
    goes wrong, LateError where the deadline comes first.
    """

    def __init__(
        self,
        stage: str,
        url: str,
        *,
        api_key: str | None = None,
        connections: int = 32,
        timeout_s: float = 60.0,
    ) -> None:
        import httpx2

        base = base_of(url)
        self._who = f"Stage {stage!r} at {without_secrets(base)}"
        self._key, self._timeout_s = api_key, timeout_s
        self._closed = threading.Event()
        self._client = httpx2.Client(
            base_url=without_secrets(base),  # which may be logged
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            auth=None if api_key else _login(base),
            timeout=timeout_s,
            limits=httpx2.Limits(
                max_connections=connections, max_keepalive_connections=connections
            ),
            trust_env=urlsplit(base).hostname not in LOOPBACK,  # no proxy on the way home
        )

    def get(self, path: str, deadline: Deadline = NEVER) -> Mapping[str, Any]:
        """The object at a path."""
        return self._ask("GET", path, None, deadline)

    def post(
        self, path: str, body: Mapping[str, Any], deadline: Deadline = NEVER
    ) -> Mapping[str, Any]:
        """What a path answers to an object."""
        return self._ask("POST", path, body, deadline)

    def close(self) -> None:
        """End all connections; what waits for a retry gives up."""
        self._closed.set()
        self._client.close()

    def senseless(self, path: str, problem: str, *, fix: str = "") -> SenselessError:
        """The error of an answer that makes no sense."""
        return SenselessError(f"{self._who}: {path} {problem}.", fix=fix)

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, deadline: Deadline
    ) -> Mapping[str, Any]:
        for attempt in range(RETRIES + 1):
            is_last = attempt == RETRIES
            found = self._once(method, path, body, deadline)
            if isinstance(found, LostError):
                if is_last:
                    raise found
                self._pause(FIRST_PAUSE_S * 2**attempt, found, deadline)
                continue
            status, pause_s, content = found
            if status in BUSY and pause_s is not None and not is_last:
                self._pause(pause_s, self._refusal(path, status, content), deadline)
                continue
            if not 200 <= status < 300:
                raise self._refusal(path, status, content)
            return self._parsed(path, content)
        raise AssertionError("the last attempt returns or raises")

    def _once(
        self, method: str, path: str, body: Mapping[str, Any] | None, deadline: Deadline
    ) -> tuple[int, float | None, bytes] | LostError:
        """Status, seconds to wait where it says so, and content of one answer."""
        import httpx2

        limit = Deadline(min(deadline.at, time.monotonic() + self._timeout_s))
        if not limit.left:
            raise LateError
        try:
            with self._client.stream(method, path, json=body, timeout=limit.left) as answer:
                content = self._read(answer, limit)
                return answer.status_code, _retry_after(answer.headers), content
        except httpx2.TimeoutException:
            if not deadline.left:
                raise LateError from None
            problem = f"did not answer within {self._timeout_s:g} s"
            fix = "look after the server, or raise the stage's timeout_s."
            raise StageError(f"{self._who}: {path} {problem}.", fix=fix) from None
        except (httpx2.TransportError, RuntimeError) as error:  # the latter where it was closed
            why = str(error).rstrip(".") or type(error).__name__
            fix = "see whether the server runs and listens there."
            if isinstance(error, httpx2.ConnectError):
                return GoneError(f"{self._who} cannot be reached: {why}.", fix=fix)
            return LostError(f"{self._who}: {path} was not answered: {why}.", fix=fix)
        except httpx2.HTTPError as error:  # such as a body that is not compressed as it says
            raise self.senseless(path, f"was answered badly: {error}") from None

    def _read(self, answer: httpx2.Response, limit: Deadline) -> bytes:
        """The content; raises a TimeoutException for one that comes too slowly."""
        import httpx2

        parts = []
        for part in answer.iter_bytes():
            parts.append(part)
            if not limit.left:
                raise httpx2.ReadTimeout("too slow")
        return b"".join(parts)

    def _pause(self, seconds: float, reason: StageError, deadline: Deadline) -> None:
        """Wait before the next attempt. Raises the reason for it where that makes no sense."""
        if seconds > deadline.left:
            raise LateError
        if seconds > self._timeout_s or self._closed.wait(seconds):
            raise reason

    def _refusal(self, path: str, status: int, content: bytes) -> StageError:
        problem = f"was answered {status}: {_reason(self._redacted(content))}"
        if 400 <= status < 500 and status not in BUSY:
            return RefusedError(f"{self._who}: {path} {problem}.")
        return StageError(f"{self._who}: {path} {problem}.")

    def _parsed(self, path: str, content: bytes) -> Mapping[str, Any]:
        try:
            said = json.loads(content)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            quoted = _quoted(self._redacted(content))
            raise self.senseless(path, f"was answered {quoted}, which is no JSON object")
        return said

    def _redacted(self, content: bytes) -> bytes:
        """What was said, without our key: a server may repeat it."""
        return content.replace(self._key.encode(), b"***") if self._key else content


def base_of(url: str) -> str:
    """The address that paths are put behind. Raises ConfigError for what is no HTTP address."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname)
        sound = sound and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError(
            f"url is {without_secrets(url)!r}, expected the address of a server.",
            fix="write it like http://127.0.0.1:8000.",
        )
    return url.rstrip("/").removesuffix("/v1")


def without_secrets(url: str) -> str:
    """The address without the name and password that it may hold."""
    scheme, separator, rest = url.rpartition("//")
    host, slash, path = rest.partition("/")
    return scheme + separator + host.rpartition("@")[2] + slash + path


def _login(url: str) -> tuple[str, str] | None:
    """The name and password that an address holds."""
    parts = urlsplit(url)
    if parts.username is None:
        return None
    return unquote(parts.username), unquote(parts.password or "")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, where the answer says how many; a date is not read."""
    try:
        seconds = float(headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None


def _reason(content: bytes) -> str:
    """What an answer that is an error says of it: its message, else its beginning."""
    try:
        said = json.loads(content)
        error = said.get("error", said.get("detail", said.get("message")))
        message = error.get("message") if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        message = None
    if not isinstance(message, str) or not message:
        return _quoted(content)
    return " ".join(message.split())[:SHOWN].rstrip(".")


def _quoted(content: bytes) -> str:
    return repr(content[:SHOWN].decode(errors="replace"))
