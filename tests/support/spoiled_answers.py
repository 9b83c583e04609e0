"""Answers of a server that make no sense: whole bodies, and what is changed in sound ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BODIES = {
    "not JSON": b"<html>Bad Gateway</html>",
    "a list": b"[1, 2]",
    "not text": b"\xff\xfe",
    "nothing": b"",
    "deep": b"[" * 100_000,
}


def _spoil(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(said: dict[str, Any]) -> None:
        where = said
        for key in path[:-1]:
            where = where[key]
        where[path[-1]] = value

    return change


def _drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(said: dict[str, Any]) -> None:
        where = said
        for key in path[:-1]:
            where = where[key]
        del where[path[-1]]

    return change


_LOGPROBS = ("choices", 0, "logprobs")
SPOILED: dict[str, Callable[[dict[str, Any]], None]] = {
    "NaN": _spoil(*_LOGPROBS, "token_logprobs", 0, value=float("nan")),
    "null": _spoil(*_LOGPROBS, "token_logprobs", 0, value=None),
    "above 0": _spoil(*_LOGPROBS, "token_logprobs", 0, value=0.7),
    "probability 0": _spoil(*_LOGPROBS, "token_logprobs", 0, value=float("-inf")),
    "a text": _spoil(*_LOGPROBS, "token_logprobs", 0, value="-1"),
    "NaN beside": _spoil(*_LOGPROBS, "top_logprobs", 0, value={"token_id:3": float("nan")}),
    "no logprobs": _spoil(*_LOGPROBS, value=None),
    "short": _drop(*_LOGPROBS, "token_logprobs", 0),
    "few ids": _drop("choices", 0, "token_ids", 0),
    "odd id": _spoil("choices", 0, "token_ids", 0, value=-3),
    "no usage": _drop("usage"),
    "no count": _drop("usage", "prompt_tokens"),
    "no choices": _spoil("choices", value=[]),
    "no text": _drop("choices", 0, "text"),
    "half a character": _spoil("choices", 0, "text", value="\ud800"),
    "no reason": _spoil("choices", 0, "finish_reason", value=None),
}
