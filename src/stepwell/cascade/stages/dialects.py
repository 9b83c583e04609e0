"""What each kind of server calls our sampling parameters, and what it cannot do.

Owns the table of dialects and the body of a request for an answer. What is asked beyond the answer,
and what comes back, is not known here.

A dialect holds only fields that mean what ours mean. Left out, because they do not: llama.cpp's
penalties and SGLang's for repetitions, which look at other tokens than ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from stepwell.errors import ConfigError, suggest
from stepwell.generate.request import SamplingParams

Prompt = str | list[int]
Verifying = Literal["ids", "echo", "no"]

SEEDS: Final = 2**31
"""Seeds are taken modulo this: servers keep 32 bits, and mean "any" by -1."""


@dataclass(frozen=True)
class Dialect:
    """How a kind of server is spoken to.

    owner: what it calls the owner of its models, by which it is known. fields: our names that it
    honours, with its own. always: what every request says, so that no default of the server counts.
    all_tokens: its top_k for no limit. verifying: how it tells the log-probabilities of a text that
    is given: "ids" takes tokens and ranks them (prompt_logprobs), "echo" repeats the text.
    """

    name: str
    owner: str
    fields: Mapping[str, str]
    always: Mapping[str, Any] = field(default_factory=dict)
    all_tokens: int = 0
    verifying: Verifying = "no"


_OPENAI: Final = {
    name: name
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "stop", "seed")
} | {"max_new_tokens": "max_tokens"}
_WITHOUT_PENALTIES: Final = {
    name: theirs for name, theirs in _OPENAI.items() if not name.endswith("penalty")
} | {"top_k": "top_k", "min_p": "min_p"}
_NO_PENALTIES: Final = {"presence_penalty": 0.0, "frequency_penalty": 0.0}

DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (
            Dialect("openai", "", _OPENAI, {"n": 1}),
            Dialect(
                "vllm",
                "vllm",
                {
                    **_OPENAI,
                    "top_k": "top_k",
                    "min_p": "min_p",
                    "repetition_penalty": "repetition_penalty",
                    "min_new_tokens": "min_tokens",
                    "ignore_eos": "ignore_eos",
                },
                {"n": 1, "return_token_ids": True, "return_tokens_as_token_ids": True},
                verifying="ids",
            ),
            Dialect(
                "sglang",
                "sglang",
                {
                    **_OPENAI,
                    "top_k": "top_k",
                    "min_p": "min_p",
                    "min_new_tokens": "min_tokens",
                    "ignore_eos": "ignore_eos",
                },
                {"n": 1, "repetition_penalty": 1.0},
                all_tokens=-1,
            ),
            Dialect(
                "llama.cpp",
                "llamacpp",
                {**_WITHOUT_PENALTIES, "ignore_eos": "ignore_eos"},
                {"repeat_penalty": 1.0, **_NO_PENALTIES},
            ),
            Dialect(
                "llama-cpp-python",
                "me",
                _WITHOUT_PENALTIES,
                {"repeat_penalty": 1.0, **_NO_PENALTIES},
                verifying="echo",
            ),
        )
    }
)
"""By name. SGLang's and llama.cpp's own server are spoken to as their documentation says."""

_WITHOUT_EFFECT: Final = {"n", "logprobs", "do_sample"}
"""Fields that are dealt with here, whatever the dialect."""
_IDLE_WHEN_GREEDY: Final = {"top_k", "top_p", "min_p", "seed"}
_NEUTRAL: Final = dict(SamplingParams())


def dialect_named(name: str) -> Dialect:
    """The dialect of this name. Raises ConfigError where there is none."""
    if name not in DIALECTS:
        raise ConfigError(f"{name!r} is no dialect of servers. {suggest(name, DIALECTS)}")
    return DIALECTS[name]


def dialect_of(owner: object) -> Dialect:
    """The dialect of a server that says so of its models; "openai" for one that is not known."""
    known = (dialect for dialect in DIALECTS.values() if dialect.owner and dialect.owner == owner)
    return next(known, DIALECTS["openai"])


def answer_body(
    dialect: Dialect, model: str, prompt: Prompt, params: SamplingParams, num_likeliest: int
) -> dict[str, Any]:
    """The request for one answer, with so many likeliest tokens at each place.

    Raises ConfigError for a parameter that the dialect cannot honour.
    """
    check(dialect, params)
    said = {theirs: _value(dialect, params, ours) for ours, theirs in dialect.fields.items()}
    return {
        "model": model,
        "prompt": prompt,
        **dialect.always,
        **said,
        "logprobs": max(1, num_likeliest),
    }


def check(dialect: Dialect, params: SamplingParams) -> None:
    """Nothing; raises ConfigError where an answer would not be sampled as the parameters say."""
    if params.n != 1:
        raise ConfigError(f"A stage gives one answer, n is {params.n}.", fix="leave n out.")
    idle = _IDLE_WHEN_GREEDY if params.greedy else set()
    for name, value in params:
        honoured = name in dialect.fields or name in _WITHOUT_EFFECT or name in idle
        if not honoured and value != _NEUTRAL[name]:
            raise ConfigError(
                f"{name} is {value!r}, but a server that speaks {dialect.name!r} cannot do so.",
                fix=f"leave {name} out, or run this stage with stepwell's own engine.",
            )


def _value(dialect: Dialect, params: SamplingParams, name: str) -> Any:
    """The value of one of our fields as the server takes it."""
    value = getattr(params, name)
    if name == "temperature":
        return 0.0 if params.greedy else value
    if name == "seed":
        return value % SEEDS
    if params.greedy and name in _IDLE_WHEN_GREEDY:
        value = _NEUTRAL[name]
    if name == "top_k":
        return value or dialect.all_tokens
    return list(value) if name == "stop" else value
