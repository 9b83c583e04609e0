"""Verifying a draft with a server: which of its tokens it finds likeliest, and what follows them.

Owns both ways in which servers tell the log-probabilities of a given text, and how an answer is put
together from what stays of a draft and what the server adds. Only for a greedy choice: a server's
noise cannot be asked for.

    ByIds     vLLM: a prompt of tokens, whose ranks are told
    ByEcho    llama-cpp-python: a prompt of text, which is repeated with its log-probabilities
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from stepwell.cascade.stages.client import Client
from stepwell.cascade.stages.completions import Place, Told
from stepwell.cascade.stages.connection import Deadline, RefusedError, SenselessError
from stepwell.cascade.stages.dialects import Prompt
from stepwell.generate.request import SamplingParams
from stepwell.generate.transcript import StopMatcher

BROKEN: Final = "\N{REPLACEMENT CHARACTER}"
"""Stands for bytes that are no character, or not yet."""
GREEDY: Final = SamplingParams(temperature=0.0, max_new_tokens=1)


class Given(NamedTuple):
    """A text behind a prompt; ids: its tokens, where they are known to be the server's."""

    prompt: str
    text: str
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Reading:
    """What a server thinks of a given text.

    prompt_ids, and behind them the text's ids with a place each; told: its own next token. text(k)
    is what the first k tokens add to the prompt's text, None where the server cannot go on from
    there without changing it; after(k) the prompt with which it does.
    """

    prompt_ids: list[int]
    ids: list[int]
    places: tuple[Place, ...]
    told: Told
    text: Callable[[int], str | None]
    after: Callable[[int], Prompt]


class Way(Protocol):
    """How a kind of server reads a given text."""

    def read(
        self, given: Given, params: SamplingParams, num_likeliest: int, deadline: Deadline
    ) -> Reading | None:
        """None where the text's tokens cannot be told from the prompt's."""


@dataclass(frozen=True)
class Verified:
    """An answer found by verifying: what stayed of the draft, then the rest of the server's own.

    kept, proposed: how many drafted tokens stayed, of how many. rest: None where nothing follows.
    """

    reading: Reading
    kept: int
    text: str
    rest: Told | None
    ended: bool

    @property
    def proposed(self) -> int:
        """Tokens that were drafted."""
        return len(self.reading.ids)


def way_of(client: Client, prompt: str, deadline: Deadline) -> Way | None:
    """How this server verifies, tried out on a prompt; None where it cannot.

    Raises StageError where that cannot be said now.
    """
    kind = WAYS.get(client.identify().dialect.verifying)
    if kind is None:
        return None
    way = kind(client)
    try:
        return way if way.works(prompt, deadline) else None
    except (RefusedError, SenselessError):
        return None


class ByIds:
    """Reads a text as the end of a prompt of tokens, whose ranks are told with prompt_logprobs."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def works(self, prompt: str, deadline: Deadline) -> bool:
        """Whether ranks are told of this prompt; raises where they are not."""
        ids = self._client.tokens(prompt, deadline)[:2]  # short, so that nothing else is wrong
        self._client.answer(ids, GREEDY, 1, deadline, prompt_logprobs=1)
        return True

    def read(
        self, given: Given, params: SamplingParams, num_likeliest: int, deadline: Deadline
    ) -> Reading | None:
        client = self._client
        before = client.tokens(given.prompt, deadline)
        ids, is_spelled = self._ids(given, before, deadline)
        ids = ids[: params.max_new_tokens]
        one = params.changed(max_new_tokens=1)
        asked = max(1, num_likeliest)
        told = client.answer([*before, *ids], one, asked, deadline, prompt_logprobs=asked)
        places = told.prompt[len(before) :]

        def decoded(count: int) -> str | None:
            start, whole = (client.text(part, deadline) for part in (before, before + ids[:count]))
            clean = whole.startswith(start) and not whole.endswith(BROKEN)
            return whole[len(start) :] if clean else None

        pieces = [place.text for place in places]
        known = is_spelled and _spell(pieces, given.text)
        return Reading(
            before, ids, places, told,
            text=(lambda count: "".join(pieces[:count])) if known else decoded,
            after=lambda count: [*before, *ids[:count]],
        )  # fmt: skip

    def _ids(self, given: Given, before: list[int], deadline: Deadline) -> tuple[list[int], bool]:
        """The text's tokens, and whether they spell it where they stand.

        Those that the text has behind the prompt; its own where prompt and text grow together.
        """
        if given.ids is not None:
            return list(given.ids), True
        whole = self._client.tokens(given.prompt + given.text, deadline)
        if whole[: len(before)] == before:
            return whole[len(before) :], True
        return self._client.tokens(given.text, deadline, special=False), False


class ByEcho:
    """Reads a text as the end of a prompt that is repeated with its log-probabilities."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def works(self, _: str, deadline: Deadline) -> bool:
        """Whether each token has the log-probability of its own place.

        Without a token that begins a text, llama-cpp-python tells that of the place behind it.
        """
        return bool(self._client.tokens("", deadline))

    def read(
        self, given: Given, params: SamplingParams, num_likeliest: int, deadline: Deadline
    ) -> Reading | None:
        client = self._client
        before = client.tokens(given.prompt, deadline)
        whole = client.tokens(given.prompt + given.text, deadline)
        ids = whole[len(before) :]
        if not ids or whole[: len(before)] != before:
            return None
        one = params.changed(max_new_tokens=1)
        told = client.answer(
            given.prompt + given.text, one, max(2, num_likeliest), deadline, echo=True
        )
        places = told.places[: len(told.places) - told.num_new][-len(ids) :]
        pieces = [place.text for place in places]
        if not _spell(pieces, given.text) or len(pieces) != len(ids):
            return None
        own = Told(
            told.text.removeprefix(given.prompt + given.text), told.reason, len(before),
            told.num_new, told.places[len(told.places) - told.num_new :],
        )  # fmt: skip

        def text(count: int) -> str | None:
            said = "".join(pieces[:count])
            alike = client.tokens(given.prompt + said, deadline) == before + ids[:count]
            return said if alike else None

        return Reading(
            before, ids, places, own, text,
            after=lambda count: given.prompt + "".join(pieces[:count]),
        )  # fmt: skip


WAYS: Final[Mapping[str, type[ByIds] | type[ByEcho]]] = MappingProxyType(
    {"ids": ByIds, "echo": ByEcho}
)


def verify(
    client: Client,
    way: Way,
    given: Given,
    params: SamplingParams,
    num_likeliest: int,
    deadline: Deadline,
) -> Verified | None:
    """The answer that the server gives by itself, found from a draft; None where it cannot be.

    A drafted token stays where the server finds it, and no other, likeliest.
    """
    try:
        reading = way.read(given, params, num_likeliest, deadline)
    except RefusedError:  # such as a prompt and a draft that do not fit the context together
        return None
    if reading is None:
        return None
    limit = params.max_new_tokens
    agreed = next((at for at, place in enumerate(reading.places) if not place.is_likeliest), None)
    agreed = min(len(reading.ids) if agreed is None else agreed, limit)
    kept, text, ended = _settled(reading.text, agreed, params.stop)
    if ended or kept == limit:
        return Verified(reading, kept, text, None, ended)
    whole = kept == len(reading.ids)
    if whole and (reading.told.reason == "stop" or kept + 1 == limit):
        return Verified(reading, kept, text, reading.told, ended)
    left = params.changed(max_new_tokens=limit - kept)
    rest = client.answer(reading.after(kept), left, num_likeliest, deadline)
    return Verified(reading, kept, text, rest, ended)


def score(way: Way, given: Given, deadline: Deadline) -> tuple[float, ...] | None:
    """The log-probability of each token of a text; None where it grows together with its prompt."""
    params = SamplingParams(temperature=0.0, max_new_tokens=2**31 - 1)
    reading = way.read(given, params, 1, deadline)
    return None if reading is None else tuple(place.logprob for place in reading.places)


def _spell(pieces: Sequence[str], text: str) -> bool:
    """Whether each token by itself has its part of the text, so that no part changes another."""
    return all(pieces) and "".join(pieces) == text and BROKEN not in text


def _settled(
    text: Callable[[int], str | None], kept: int, stops: Sequence[str]
) -> tuple[int, str, bool]:
    """How many of the tokens that stay an answer goes on from, their text, whether it ends there.

    Fewer where the text ends inside a character, or with the beginning of a stop string, which the
    server would not see. It ends where a stop string is complete.
    """
    while kept:
        said = text(kept)
        matcher = StopMatcher(stops)
        shown = None if said is None else matcher.push(said)
        if matcher.matched and shown is not None:
            return _first_stop(text, kept, stops)
        if said is not None and shown == said:
            return kept, said, False
        kept -= 1
    return 0, "", False


def _first_stop(
    text: Callable[[int], str | None], kept: int, stops: Sequence[str]
) -> tuple[int, str, bool]:
    """The tokens up to the one that completes a stop string, and the text before that."""
    count, shown = 0, ""
    while count < kept:
        count += 1
        matcher = StopMatcher(stops)
        shown = matcher.push(text(count) or "")
        if matcher.matched:
            break
    return count, shown, True
