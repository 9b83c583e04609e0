"""Laws of generation: company, order and chunks move no token, and greedy is the naive loop.

An answer's tokens are compared for equality, its log-probabilities within 1e-5 (float32). Sampling
is at temperature 1 unless said otherwise, so that noise which moved would be seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from stepwell.generate import engine as engine_module
from stepwell.generate import sampling
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.executor import Chunk
from stepwell.generate.request import FinishedEvent, Request, SamplingParams, TokenEvent
from stepwell.generate.sequence import Handle
from stepwell.model import native
from stepwell.model.cache_view import CacheView
from stepwell.model.config import ModelConfig
from stepwell.model.hooks import Hooks
from stepwell.model.interventions import Intervention, Replace, ZeroHeads
from stepwell.model.transformer import Transformer
from stepwell.model.weights import save_model
from stepwell.native.library import unavailable_reason

V, EOS, CONTEXT = 23, 4, 48
TOLERANCE = 1e-5
GROUPED = ModelConfig(
    vocab_size=V,
    context_length=CONTEXT,
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    tie_embeddings=False,
    eos_id=EOS,
)
SHAPES = {
    "grouped": GROUPED,
    "window": GROUPED.changed(family="mistral", sliding_window=4, sliding_layers=(0, 1)),
    "learned": GROUPED.changed(position="learned", norm="layer", num_kv_heads=4, mlp_bias=True),
}
LENGTHS = [1, 2, 5, 9, 17, 3, 26, 8, 1, 12]
SAMPLING = [
    {},
    {"top_p": 0.9},
    {"repetition_penalty": 1.4, "presence_penalty": 0.3},
    {"top_k": 5, "n": 3},
    {"temperature": 0},
    {"no_repeat_ngram_size": 2, "ignore_eos": True},
    {"min_p": 0.05, "min_new_tokens": 4},
]


class Answer(NamedTuple):
    tokens: list[int]
    logprobs: list[float]
    reason: str


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def executors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every law holds with the native kernels and without them."""
    if request.param == "torch":
        without_kernels(monkeypatch)
    elif native.load() is None:
        pytest.skip(f"no native kernels: {unavailable_reason()}")


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: None)


@cache
def model_of(shape: str) -> Transformer:
    """A random model whose logits are of order 1."""
    model = Transformer(SHAPES[shape])
    model.initialize(0)
    with torch.no_grad():
        model.head.weight.mul_(2)
    return model.eval()


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(V, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def some_requests() -> list[Request]:
    return [
        request(prompt(length, seed), seed=seed % 4, **SAMPLING[seed % len(SAMPLING)])
        for seed, length in enumerate(LENGTHS)
    ]


def request(ids: Sequence[int], interventions: Sequence[Intervention] = (), **params) -> Request:
    sampling_params = SamplingParams(**{"max_new_tokens": 8, "logprobs": 0, **params})
    return Request(tuple(ids), sampling_params, tuple(interventions))


def drain(handle: Handle) -> list[Answer]:
    """The answers of a request, one a choice."""
    answers = [Answer([], [], "") for _ in handle.sequences]
    for event in handle:
        if isinstance(event, TokenEvent):
            answers[event.choice].tokens.append(event.token_id)
            answers[event.choice].logprobs.append(event.logprob)
        elif isinstance(event, FinishedEvent):
            answers[event.choice] = answers[event.choice]._replace(reason=event.reason)
    return answers


def run(
    requests: Sequence[Request], *, shape: str = "grouped", max_rows: int = 64
) -> list[list[Answer]]:
    engine = InferenceEngine(model_of(shape), max_rows=max_rows)
    handles = [engine.submit(each) for each in requests]
    answers = [drain(handle) for handle in handles]
    assert engine.num_free_rows == max_rows
    return answers


def alone(shape: str) -> list[list[Answer]]:
    """What each request is answered when it has the engine to itself."""
    return _alone(shape, native.load() is not None)


@cache
def _alone(shape: str, kernels: bool) -> list[list[Answer]]:
    return [run([each], shape=shape, max_rows=1)[0] for each in some_requests()]


def same(found: Sequence[Sequence[Answer]], expected: Sequence[Sequence[Answer]]) -> bool:
    pairs = [
        (one, other)
        for choices, others in zip(found, expected, strict=True)
        for one, other in zip(choices, others, strict=True)
    ]
    return all(
        one.tokens == other.tokens
        and one.reason == other.reason
        and one.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)
        for one, other in pairs
    )


# Company, order, chunks


@pytest.mark.parametrize("chunk", [4, 512])
@pytest.mark.parametrize("max_rows", [1, 3, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_is_the_same_alone_and_in_any_company(
    shape: str, max_rows: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(shape)
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", chunk)
    assert same(run(some_requests(), shape=shape, max_rows=max_rows), expected)
    assert len({tuple(one.tokens) for choices in expected for one in choices}) > len(LENGTHS)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_submission_moves_nothing(seed: int) -> None:
    requests, order = some_requests(), list(range(len(LENGTHS)))
    random.Random(seed).shuffle(order)
    found = run([requests[place] for place in order], max_rows=3)
    assert same(found, [alone("grouped")[place] for place in order])


def test_a_request_that_arrives_later_finds_the_same_answer() -> None:
    engine = InferenceEngine(model_of("grouped"), max_rows=4)
    handles = []
    for each in some_requests():
        handles.append(engine.submit(each))
        engine.step()
    assert same([drain(handle) for handle in handles], alone("grouped"))


def test_noise_that_is_consumed_in_order_of_arrival_breaks_the_law(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def consumed(generator: torch.Generator) -> None:
        def draw(addresses: Sequence[object], tokens: int | Tensor, **_: object) -> Tensor:
            width = tokens if isinstance(tokens, int) else tokens.shape[-1]
            return torch.rand(len(addresses), width, generator=generator).log().neg()

        monkeypatch.setattr(sampling, "exponential", draw)

    answers = []
    for max_rows in (1, 64):
        consumed(torch.Generator().manual_seed(0))
        answers.append(run(some_requests(), max_rows=max_rows))
    assert not same(*answers)


def test_rows_that_read_each_others_keys_break_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    read = CacheView._read

    def shared(self, layer):  # type: ignore[no-untyped-def]
        keys, values = read(self, layer)
        return keys[:1].expand_as(keys), values

    without_kernels(monkeypatch)
    expected = alone("grouped")
    monkeypatch.setattr(CacheView, "_read", shared)
    assert not same(run(some_requests()), expected)


# Choices, cancelling


@pytest.mark.parametrize("max_rows", [1, 3, 64])
def test_a_choice_is_the_same_however_many_there_are(max_rows: int) -> None:
    [most] = run([request(prompt(7), n=9)], max_rows=64)
    for count in (1, 2, 5):
        company = [request(prompt(3), seed=1), request(prompt(7), n=count), request(prompt(9))]
        assert same([run(company, max_rows=max_rows)[1]], [most[:count]])
    assert len({tuple(one.tokens) for one in most}) > 5


@pytest.mark.parametrize("steps", range(5))
def test_cancelling_a_request_leaves_the_others_as_they_are(steps: int) -> None:
    engine = InferenceEngine(model_of("grouped"), max_rows=6)
    handles = [engine.submit(each) for each in some_requests()]
    for _ in range(steps):
        engine.step()
    victims = [0, 3, 9]
    for place in victims:
        handles[place].cancel()
    found = [drain(handle) for handle in handles]
    for place in victims:
        full = alone("grouped")[place]
        assert [one.tokens for one in found[place]] == [
            full[choice].tokens[: len(one.tokens)] for choice, one in enumerate(found[place])
        ]
    others = [place for place in range(len(LENGTHS)) if place not in victims]
    assert same([found[place] for place in others], [alone("grouped")[place] for place in others])
    assert engine.num_free_rows == 6


# Greedy, against loops that know neither cache nor engine


def naive(
    shape: str, ids: Sequence[int], interventions: Sequence[Intervention] = (), length: int = 8
) -> Answer:
    """The likeliest continuation, by a full forward over all tokens for each new one."""
    model, text, logprobs = model_of(shape), list(ids), []
    for _ in range(length):
        with torch.no_grad():
            logits = model(torch.tensor([text]), hooks=Hooks(interventions))[0, -1]
        text.append(int(logits.argmax()))
        logprobs.append(float(logits.double().log_softmax(-1)[text[-1]]))
        if text[-1] == EOS:
            return Answer(text[len(ids) :], logprobs, "stop")
    return Answer(text[len(ids) :], logprobs, "length")


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_generation_is_the_naive_loop(shape: str) -> None:
    prompts = [prompt(length, seed) for seed, length in enumerate(LENGTHS)]
    found = run([request(ids, temperature=0) for ids in prompts], shape=shape, max_rows=4)
    expected = [[naive(shape, ids)] for ids in prompts]
    assert same(found, expected)


@pytest.mark.parametrize("shape", ["grouped", "window"])
def test_greedy_generation_is_that_of_transformers(shape: str, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    directory = tmp_path_factory.mktemp(shape)
    save_model(model_of(shape), directory)
    peer = AutoModelForCausalLM.from_pretrained(directory).eval()
    prompts = [prompt(length, seed) for seed, length in enumerate(LENGTHS)]
    found = run([request(ids, temperature=0, max_new_tokens=14) for ids in prompts], shape=shape)
    for ids, [answer] in zip(prompts, found, strict=True):
        rows = torch.tensor([ids])
        expected = peer.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            do_sample=False,
            max_new_tokens=14,
            pad_token_id=0,
        )
        assert answer.tokens == expected[0, len(ids) :].tolist()
    assert {answer.reason for [answer] in found} == {"stop", "length"}


# Interventions


def some_interventions() -> list[list[Intervention]]:
    steer = Replace(point="residual.after", layer=0, value=tuple(0.3 * i % 1 for i in range(32)))
    return [
        [],
        [ZeroHeads({0: [1, 3], 1: [0]})],
        [steer.changed(positions=(2, 9))],
        [],
        [Replace(point="attention.pattern", layer=1, value=0.2, heads=(2,))],
        [ZeroHeads({1: [2]}), Replace(point="logits", value=0.0, positions=(10,))],
        [ZeroHeads({0: [1, 3], 1: [0]})],
    ]


@pytest.mark.parametrize("chunk", [4, 512])
def test_an_intervention_changes_its_own_request_as_a_full_forward_with_the_hook(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", chunk)
    prompts = [prompt(length, seed) for seed, length in enumerate(LENGTHS[2:])]
    cases = list(zip(prompts, some_interventions(), strict=False))
    found = run([request(ids, hooks, temperature=0) for ids, hooks in cases], max_rows=5)
    assert same(found, [[naive("grouped", ids, hooks)] for ids, hooks in cases])
    without = [[naive("grouped", ids)] for ids, _ in cases]
    unchanged = [same([one], [other]) for one, other in zip(found, without, strict=True)]
    assert unchanged == [not hooks for _, hooks in cases]


def test_interventions_shared_by_a_batch_break_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [prompt(length, seed) for seed, length in enumerate(LENGTHS[2:])]
    cases = list(zip(prompts, some_interventions(), strict=False))
    chosen = engine_module._chunk
    first: list[Any] = []

    def shared(*given: Any) -> Chunk:
        chunk: Chunk = chosen(*given)
        first.append(chunk.hooks)
        return chunk._replace(hooks=first[0])

    monkeypatch.setattr(engine_module, "_chunk", shared)
    found = run([request(ids, hooks, temperature=0) for ids, hooks in cases])
    assert not same(found, [[naive("grouped", ids, hooks)] for ids, hooks in cases])


def test_sampling_under_interventions_is_the_same_in_any_company() -> None:
    cases = [
        request(prompt(length, seed), hooks, seed=seed)
        for seed, (length, hooks) in enumerate(zip(LENGTHS[2:], some_interventions(), strict=False))
    ]
    assert same(run(cases, max_rows=3), [run([each], max_rows=1)[0] for each in cases])
