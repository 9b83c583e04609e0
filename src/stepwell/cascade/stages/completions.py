"""What a server answers to /v1/completions, read with suspicion.

Owns the formats: OpenAI's lists beside each other, llama.cpp's list of objects, and vLLM's
prompt_logprobs. What is missing, of a wrong kind or length, or NaN raises UnreadableError, whose
message goes on from the name of a path: "... says nothing of ...".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeGuard

from stepwell.cascade.stage import Token, TopLogprobs
from stepwell.generate.request import FinishReason

ID_PREFIX: Final = "token_id:"
"""Before the id, where vLLM is asked to name tokens by it."""
ROUNDING: Final = 1e-3
"""So far above 0 a log-probability may come from rounding."""
LOWEST: Final = -1e30
"""Below it stands what means probability 0."""


class UnreadableError(ValueError):
    """An answer that makes no sense."""


@dataclass(frozen=True, slots=True)
class Place:
    """One token and what was told of its place.

    logprob: NaN where nothing stands before it. top: the likeliest tokens there, likeliest first.
    is_likeliest: whether it is the only token with the highest probability. text: "" where only its
    id is told.
    """

    token: Token
    logprob: float
    top: TopLogprobs = ()
    is_likeliest: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """One answer of a server.

    places: those of the answer, after those of the prompt where it was echoed. prompt: those of a
    prompt of ids, where they were asked for.
    """

    text: str
    reason: FinishReason
    num_prompt: int
    num_new: int
    places: tuple[Place, ...]
    prompt: tuple[Place, ...] = ()


def read_completion(
    said: Mapping[str, Any],
    *,
    prompt_ids: Sequence[int] | None = None,
    echoed: bool = False,
) -> Told:
    """The single answer that is said.

    prompt_ids: of a prompt whose places were asked for. echoed: whether the answer begins with the
    prompt, before whose first token nothing stands.
    """
    choices, usage = said.get("choices"), said.get("usage")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise UnreadableError(f"has the choices {_shown(choices)}, expected a list of one")
    if not isinstance(usage, dict):
        raise UnreadableError(f"has the usage {_shown(usage)}, expected its tokens")
    choice = choices[0]
    places = _places(choice.get("logprobs"), echoed)
    return Told(
        text=_text(choice, "text"),
        reason=_reason(choice),
        num_prompt=_count(usage, "prompt_tokens"),
        num_new=_count(usage, "completion_tokens"),
        places=_with_ids(places, choice.get("token_ids")),
        prompt=() if prompt_ids is None else _prompt_places(choice, prompt_ids),
    )


def read_ids(said: Mapping[str, Any]) -> list[int]:
    """The tokens of a text, as /tokenize tells them."""
    tokens = said.get("tokens")
    if not isinstance(tokens, list) or not all(_is_id(token) for token in tokens):
        raise UnreadableError(f"has the tokens {_shown(tokens)}, expected a list of ids")
    return tokens


def read_text(said: Mapping[str, Any]) -> str:
    """The text of tokens, as /detokenize tells it."""
    return _text(said, "prompt")


def _places(logprobs: object, echoed: bool) -> tuple[Place, ...]:
    if not isinstance(logprobs, dict):
        raise UnreadableError(f"has the logprobs {_shown(logprobs)}, expected those of every token")
    content = logprobs.get("content")
    if isinstance(content, list):
        return tuple(_place_of(entry) for entry in content)
    tokens = _list(logprobs, "tokens")
    values = _list(logprobs, "token_logprobs")
    top = logprobs.get("top_logprobs") or [None] * len(tokens)
    if not (isinstance(top, list) and len(tokens) == len(values) == len(top)):
        lengths = f"{len(tokens)} tokens, {len(values)} log-probabilities"
        raise UnreadableError(
            f"has {lengths}, {_shown(top)} as likeliest, expected as many of each"
        )
    return tuple(
        _place(
            _token(token), math.nan if echoed and not index else _logprob(value), _dict(likeliest)
        )
        for index, (token, value, likeliest) in enumerate(zip(tokens, values, top, strict=True))
    )


def _place_of(entry: object) -> Place:
    """A place as llama.cpp's own server tells it."""
    if not isinstance(entry, dict):
        raise UnreadableError(f"has {_shown(entry)} as the place of a token, expected an object")
    likeliest = entry.get("top_logprobs") or []
    if not isinstance(likeliest, list) or not all(isinstance(one, dict) for one in likeliest):
        raise UnreadableError(f"has {_shown(likeliest)} as likeliest tokens, expected a list")
    told = {_named(one): _logprob(one.get("logprob")) for one in likeliest}
    return _place(_named(entry), _logprob(entry.get("logprob")), told)


def _place(token: Token, logprob: float, told: Mapping[Token, float]) -> Place:
    """A place, the likeliest tokens sorted and compared with its own."""
    top = tuple(sorted(told.items(), key=lambda pair: -pair[1]))
    if logprob == -math.inf:
        raise UnreadableError(f"has a token of probability 0, {_shown(token)}")
    leads = [likeliest for likeliest, value in top if value == top[0][1]] == [token]
    return Place(token, logprob, top, leads, token if isinstance(token, str) else "")


def _named(entry: Mapping[str, Any]) -> Token:
    token = entry.get("id")
    return token if _is_id(token) else _text(entry, "token")


def _prompt_places(choice: Mapping[str, Any], ids: Sequence[int]) -> tuple[Place, ...]:
    """The places of a prompt of these ids, as vLLM tells them."""
    told = _list(choice, "prompt_logprobs")
    if len(told) != len(ids):
        raise UnreadableError(f"has {len(told)} prompt_logprobs, expected {len(ids)}")
    pairs = zip(ids[1:], told[1:], strict=True)
    return (Place(ids[0], math.nan), *(_ranked(token, place) for token, place in pairs))


def _ranked(token: int, told: object) -> Place:
    own = told.get(str(token)) if isinstance(told, dict) else None
    if not (isinstance(told, dict) and isinstance(own, dict) and _is_id(own.get("rank"))):
        raise UnreadableError(
            f"has {_shown(told)} as a prompt_logprobs, expected token {token}'s rank"
        )
    values: dict[Token, float] = {
        _id(key): _logprob(one.get("logprob") if isinstance(one, dict) else None)
        for key, one in told.items()
    }
    text = own.get("decoded_token")
    place = _place(token, values[token], values)
    return replace(place, is_likeliest=own["rank"] == 1, text=text if isinstance(text, str) else "")


def _reason(choice: Mapping[str, Any]) -> FinishReason:
    reason = choice.get("finish_reason")
    if reason == "stop":
        return "stop"
    if reason == "length":
        return "length"
    raise UnreadableError(f"has the finish_reason {_shown(reason)}, expected 'stop' or 'length'")


def _with_ids(places: tuple[Place, ...], told: object) -> tuple[Place, ...]:
    """The places, each token by its id where ids are told."""
    if told is None:
        return places
    if not isinstance(told, list) or not all(_is_id(token) for token in told):
        raise UnreadableError(f"has the token_ids {_shown(told)}, expected a list of ids")
    if len(told) != len(places):
        raise UnreadableError(f"has {len(told)} token_ids and {len(places)} log-probabilities")
    return tuple(replace(place, token=token) for place, token in zip(places, told, strict=True))


def _dict(likeliest: object) -> dict[Token, float]:
    if likeliest is None:
        return {}
    if not isinstance(likeliest, dict):
        raise UnreadableError(f"has {_shown(likeliest)} as likeliest tokens, expected an object")
    return {_token(token): _logprob(value) for token, value in likeliest.items()}


def _token(token: object) -> Token:
    if not isinstance(token, str):
        raise UnreadableError(f"has the token {_shown(token)}, expected a text")
    return _id(token.removeprefix(ID_PREFIX)) if token.startswith(ID_PREFIX) else token


def _id(digits: object) -> int:
    if isinstance(digits, str) and digits.isdecimal() and digits.isascii() and len(digits) < 10:
        return int(digits)
    raise UnreadableError(f"has the token id {_shown(digits)}")


def _is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _logprob(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= ROUNDING:
        raise UnreadableError(f"has the log-probability {_shown(value)}, expected a number up to 0")
    return -math.inf if value < LOWEST else min(0.0, float(value))


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        raise UnreadableError(f"has the {key} {_shown(value)}, expected a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnreadableError(f"has the {key} {_shown(value)}, which is no Unicode text") from None
    return value


def _list(values: Mapping[str, Any], key: str) -> list[Any]:
    value = values.get(key)
    if not isinstance(value, list):
        raise UnreadableError(f"has the {key} {_shown(value)}, expected a list")
    return value


def _count(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UnreadableError(f"has the {key} {_shown(value)}, expected a number of tokens")
    return value


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
