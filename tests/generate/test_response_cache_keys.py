"""The keys of the response cache: what shapes the answer is in them."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from stepwell.generate.answer_key import AnswerKey, AnswerSource
from stepwell.generate.request import Request, SamplingParams
from stepwell.model.interventions import Intervention, Replace, ZeroHeads

SOURCE = AnswerSource("model", "tokenizer", "float32", "cpu", "auto", frozenset({2}), (3,), (4, 5))


def key(number: int, **changes: Any) -> AnswerKey:
    return AnswerKey(replace(SOURCE, **changes), Request((1, number)))


PARAMS: dict[str, list[Any]] = {
    "temperature": [0.0, 0.5, 0.5000000000000001],
    "top_k": [0, 1, 50],
    "top_p": [1.0, 0.9],
    "min_p": [0.0, 0.1],
    "repetition_penalty": [1.0, 1.1],
    "repetition_window": [0, 8],
    "presence_penalty": [0.0, -0.5],
    "frequency_penalty": [0.0, 0.5],
    "no_repeat_ngram_size": [0, 3],
    "banned_tokens": [(), (7,), (7, 8)],
    "forced_tokens": [(), (7,), (8,)],
    "max_new_tokens": [8, 9],
    "min_new_tokens": [0, 1],
    "seed": [0, 1, -1, 2**63 - 1],
    "ignore_eos": [False, True],
    "stop": [(), (".",), (". ",), (".", " ")],
    "newline_run_limit": [0, 1],
    "think_budget": [0, 5],
    "do_sample": [None, False, True],
    "logprobs": [None, 0, 5],
}
SOURCES: dict[str, list[Any]] = {
    "model": ["a", "b"],
    "tokenizer": ["a", "b"],
    "dtype": ["float32", "bfloat16"],
    "device": ["cpu", "cuda"],
    "attention": ["auto", "eager"],
    "eos_ids": [frozenset(), frozenset({1}), frozenset({1, 2})],
    "newline_ids": [None, (), (3,)],
    "think_ids": [(), (4, 5), (5, 4)],
    "weights": ["plain", "int8", "int4"],
    "strict": [False, True],
    "adapter": [None, "a", "b"],
    "draft": ["", "lookup"],
}
OTHERS: dict[str, list[Any]] = {
    "prompt_ids": [(1,), (1, 2), (12,), (2, 1)],
    "interventions": [
        (),
        (ZeroHeads({0: [1]}),),
        (ZeroHeads({1: [0]}),),
        (ZeroHeads({0: [1]}, positions=(2,)),),
        (ZeroHeads({0: [1]}), ZeroHeads({1: [0]})),
        (ZeroHeads({1: [0]}), ZeroHeads({0: [1]})),
        (Replace(point="mlp.output", layer=0, value=0.0),),
        (Replace(point="mlp.output", layer=0, value=0.5),),
        (Replace(point="mlp.output", layer=1, value=0.5),),
    ],
    "choice": [0, 1, 1023],
    "prefix": ["", "a", " a"],
    "cache_salt": ["", "a"],
}
ALL = {**PARAMS, **SOURCES, **OTHERS}
Values = dict[str, Any]


def made(values: Values) -> AnswerKey:
    """The key of an answer, from the values of all fields by name."""
    sampling = SamplingParams(**{name: values[name] for name in PARAMS}, n=values.get("n", 1))
    salt = {"cache_salt": values["cache_salt"], "deadline_s": values.get("deadline_s")}
    request = Request(values["prompt_ids"], sampling, values["interventions"], **salt)
    source = AnswerSource(**{name: values[name] for name in SOURCES})
    return AnswerKey(source, request, values["choice"], values["prefix"])


def clashes(count: int, digest: Callable[[Values], bytes]) -> Counter[str]:
    """How many of so many pairs that differ in one field share a key, by field."""
    rng, names = random.Random(0), sorted(ALL)
    found: Counter[str] = Counter()
    for turn in range(count):
        values = {name: rng.choice(choices) for name, choices in ALL.items()}
        name = names[turn % len(names)]
        other = rng.choice([value for value in ALL[name] if value != values[name]])
        found[name] += digest(values) == digest({**values, name: other})
    return +found


def test_no_field_that_shapes_an_answer_is_missing_here() -> None:
    assert set(PARAMS) == SamplingParams.model_fields.keys() - {"n"}
    assert set(SOURCES) == {field.name for field in fields(AnswerSource)}
    others = {field.name for kind in (AnswerKey, Request) for field in fields(kind)}
    assert set(OTHERS) == others - {
        *("source", "request", "sampling", "request_id", "deadline_s", "choices", "record")
    }


def test_requests_that_differ_in_one_field_never_share_a_key() -> None:
    assert not clashes(5000, lambda values: made(values).digest)


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_key_without_a_field_would_be_found_out(name: str) -> None:
    """The control: the law fails for a key that leaves out any one field, at this field."""
    without = {name: ALL[name][0]}
    found = clashes(2 * len(ALL), lambda values: made({**values, **without}).digest)
    assert set(found) == {name}


def test_what_does_not_shape_the_answer_is_not_in_its_key() -> None:
    values = {name: choices[-1] for name, choices in ALL.items()}
    assert made(values).request.request_id != made(values).request.request_id
    assert made(values).digest == made({**values, "n": 4, "deadline_s": 9.0}).digest


def test_interventions_of_two_kinds_with_the_same_fields_have_two_keys() -> None:
    class Halve(ZeroHeads):
        """Another change of the same heads."""

    kinds: list[Intervention] = [ZeroHeads({0: [1]}), Halve({0: [1]})]
    keys = [AnswerKey(SOURCE, Request((1,), interventions=(kind,))) for kind in kinds]
    assert keys[0].digest != keys[1].digest


def test_a_key_is_the_same_in_every_process() -> None:
    script = "print(key(7).digest.hex(), end='')"
    scope: dict[str, Any] = {}
    exec(PRELUDE, scope)
    for _ in range(2):  # with another seed of Python's hashes each time
        with run(script) as other:
            assert other.communicate(timeout=60) == (scope["key"](7).digest.hex(), "")


PRELUDE = """
import os, random, sys, time
from stepwell.generate.request import Completion, Request, Usage
from stepwell.generate.answer_key import AnswerKey, AnswerSource
from stepwell.generate.response_cache import ResponseCache

source = AnswerSource("m", "t", "float32", "cpu", "auto", frozenset({1, 8, 64}), None, ())

def key(number):
    return AnswerKey(source, Request((1, number)))

def answer(number, writer, turn):
    text = f"{number} {writer} {turn},"
    return Completion(text * 40, (number, writer, turn) * 20, "stop", Usage(2, 60), (-1 / 3,) * 60)
"""


def run(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", PRELUDE + script, *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
