"""Keys and answers for the tests of the response cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stepwell.generate.answer_key import AnswerKey, AnswerSource
from stepwell.generate.request import Completion, Request, Usage

SOURCE = AnswerSource("model", "tokenizer", "float32", "cpu", "auto", frozenset({2}), (3,), (4, 5))


def key(number: int, **changes: Any) -> AnswerKey:
    """The key of a numbered prompt; `changes` are those of its source."""
    return AnswerKey(replace(SOURCE, **changes), Request((1, number)))


def answer(number: int, length: int = 20) -> Completion:
    """An answer that says whose it is in every part."""
    tokens = tuple(range(number, number + length))
    logprobs = tuple(-1 / (3 + token) for token in tokens)
    return Completion(f"{number} " * length, tokens, "length", Usage(2, length), logprobs)
