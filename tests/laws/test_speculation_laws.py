"""Laws of speculation: in strict mode a draft moves no bit, whoever drafts, how well and how much.

Tokens and log-probabilities with drafts are those without, at temperature 0.8, alone and in
batches, with the native kernels and without them. Lengths are drawn at random instead of measured,
so that drafts of every length occur on every machine. Compared are the very bits of float32.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from stepwell.generate import sampler as sampler_module
from stepwell.generate.draft import MAX_DRAFT, Pace
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.request import Event, FinishedEvent, Request, SamplingParams
from stepwell.generate.sequence import Handle
from stepwell.model import native
from stepwell.model.cache import KVCache
from stepwell.model.config import ModelConfig
from stepwell.model.interventions import ZeroHeads
from stepwell.model.transformer import Transformer
from stepwell.native.library import unavailable_reason

V, EOS, CONTEXT = 41, 4, 192
BLOCK_BYTES = 2 * 2 * 2 * 8 * 64 * 4  # keys and values, layers, heads, width, tokens, float32
CONFIG = ModelConfig(
    vocab_size=V,
    context_length=CONTEXT,
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    tie_embeddings=False,
    eos_id=EOS,
)
DRAFTERS = ("good", "bad", "lookup")
Answer = list[Event]


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def executors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every law holds with the native kernels and without them."""
    if request.param == "torch":
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip(f"no native kernels: {unavailable_reason()}")


@pytest.fixture(autouse=True)
def lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft lengths are drawn, not measured."""
    chosen = random.Random(0)
    draw = lambda *_: chosen.choice([0, 1, 2, 3, 5, MAX_DRAFT])  # noqa: E731
    monkeypatch.setattr(Pace, "choose", draw)


@cache
def model_of(seed: int) -> Transformer:
    """A random model whose logits are of order 1."""
    model = Transformer(CONFIG)
    model.initialize(seed)
    with torch.no_grad():
        model.head.weight.mul_(2)  # type: ignore[union-attr]
    return model.eval()


def source_of(drafter: str) -> Any:
    """A model of the target's weights, one of other weights, or the text itself."""
    return {"good": model_of(0), "bad": model_of(1), "lookup": "lookup"}[drafter]


def prompt(number: int, length: int = 0) -> tuple[int, ...]:
    """Random tokens that repeat, so that there is something to look up."""
    generator = torch.Generator().manual_seed(number)
    size = length or 1 + number * 13 % 70
    ids = torch.randint(V, (-(-size // 2),), generator=generator).tolist()
    return tuple([*ids, *ids][:size])


def request(number: int, length: int = 0, **params: Any) -> Request:
    params = {"temperature": 0.8, "seed": number, "max_new_tokens": 12, "logprobs": 2, **params}
    return Request(prompt(number, length), SamplingParams(**params))


def engine_of(**options: Any) -> InferenceEngine:
    options = {"strict": True, "newline_ids": [5, 6, 7], "think_ids": [8, 9], **options}
    return InferenceEngine(model_of(0), **options)


def run(
    asked: Sequence[Request], draft: Any = None, *, max_rows: int = 16, **options: Any
) -> list[Answer]:
    """Every event of each request, choice by choice."""
    engine = engine_of(max_rows=max_rows, **options)
    handles = [engine.submit(each, draft=draft) for each in asked]
    return finish(engine, handles)


def finish(engine: InferenceEngine, handles: Sequence[Handle]) -> list[Answer]:
    answers = [list(handle) for handle in handles]
    assert engine.num_free_rows == engine.max_rows
    assert all(drafter.is_idle for drafter in engine._speculation._drafters.values())
    return [sorted(answer, key=lambda event: event.choice) for answer in answers]


_PLAIN: dict[str, Answer] = {}


def plain(asked: Sequence[Request]) -> list[Answer]:
    """What each request is answered alone, without drafts."""
    answers = []
    for each in asked:
        key = repr((native.load() is None, each.prompt_ids, each.sampling, each.interventions))
        if key not in _PLAIN:
            [_PLAIN[key]] = run([each], max_rows=1)
        answers.append(_PLAIN[key])
    return answers


def holds(asked: Sequence[Request], draft: Any, **options: Any) -> bool:
    """Whether drafts leave tokens, log-probabilities, ends and usage as they are."""
    return [uncached(each) for each in run(asked, draft, **options)] == plain(asked)


def uncached(answer: Answer) -> Answer:
    """The answer, but for how much of its prompt was found in the cache."""
    return [
        replace(event, usage=replace(event.usage, cached_tokens=0))
        if isinstance(event, FinishedEvent)
        else event
        for event in answer
    ]


def some_requests(count: int) -> list[Request]:
    return [request(number) for number in range(count)]


@pytest.mark.parametrize("max_rows", [1, 16])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_draft_moves_no_bit(drafter: str, max_rows: int) -> None:
    assert holds(some_requests(30), source_of(drafter), max_rows=max_rows)


@pytest.mark.slow
@pytest.mark.parametrize("max_rows", [1, 16])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_draft_moves_no_bit_of_200_answers(drafter: str, max_rows: int) -> None:
    assert holds(some_requests(200), source_of(drafter), max_rows=max_rows)


PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "greedy, silent": {"temperature": 0, "logprobs": None},
    "top-p": {"top_p": 0.8},
    "penalties": {"repetition_penalty": 1.5, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    "n-grams": {"no_repeat_ngram_size": 2},
    "forced": {"forced_tokens": [7, 7, 9, 11, 7]},
    "minimum": {"min_new_tokens": 9, "temperature": 2.0},
    "newlines": {"newline_run_limit": 1, "temperature": 3.0},
    "thinking": {"think_budget": 3, "temperature": 3.0},
    "three": {"n": 3},
    "no end": {"ignore_eos": True, "max_new_tokens": 30},
    "one": {"max_new_tokens": 1},
    "two": {"max_new_tokens": 2},
}


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_draft_moves_no_bit_whatever_the_parameters(drafter: str) -> None:
    """All in one batch, so that rows of all kinds are verified side by side."""
    asked = [request(number, **params) for number, params in enumerate(PARAMS.values())]
    assert holds(asked, source_of(drafter))


def test_rows_with_drafts_and_without_share_a_batch() -> None:
    asked = some_requests(16)
    engine = engine_of()
    sources = [None, *map(source_of, DRAFTERS)]
    handles = [engine.submit(each, draft=sources[number % 4]) for number, each in enumerate(asked)]
    found = [uncached(answer) for answer in finish(engine, handles)]
    assert found == plain(asked)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_preemption_and_drafts_move_no_bit(drafter: str) -> None:
    asked = [request(number, length=55 + number, max_new_tokens=40) for number in range(6)]
    engine = engine_of(kv_cache_bytes=5 * BLOCK_BYTES)
    handles = [engine.submit(each, draft=source_of(drafter)) for each in asked]
    found = [uncached(answer) for answer in finish(engine, handles)]
    assert engine.num_preempted > 0
    assert found == plain(asked)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_prompt_from_the_cache_and_drafts_move_no_bit(drafter: str) -> None:
    asked = [request(number, length=150, max_new_tokens=20) for number in (1, 2, 1)]
    engine = engine_of(max_rows=2)
    for _ in range(2):
        handles = [engine.submit(each, draft=source_of(drafter)) for each in asked]
        found = [uncached(answer) for answer in finish(engine, handles)]
        assert found == plain(asked)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_interventions_and_drafts_move_no_bit(drafter: str) -> None:
    asked = some_requests(6)
    hooked = [
        Request(each.prompt_ids, each.sampling, (ZeroHeads({0: [1]}),)) if number % 2 else each
        for number, each in enumerate(asked)
    ]
    assert holds(hooked, source_of(drafter))


def test_a_cancelled_neighbour_and_drafts_move_no_bit() -> None:
    asked = some_requests(5)
    engine = engine_of()
    handles = [engine.submit(each, draft=model_of(0)) for each in asked]
    for _ in range(3):
        engine.step()
    handles[2].cancel()
    found = [uncached(answer) for answer in finish(engine, handles)]
    expected = plain(asked)
    assert [*found[:2], *found[3:]] == [*expected[:2], *expected[3:]]
    assert found[2][:-1] == expected[2][: len(found[2]) - 1]


# Broken speculation, each of which must fail the first law.


def test_drafts_that_are_trusted_without_verification_break_the_law(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampler_module, "num_equal", lambda drafted, own: len(drafted))
    assert not holds(some_requests(8), model_of(1))


def test_a_cache_that_keeps_what_was_rejected_breaks_the_law(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truncate = KVCache.truncate

    def forgetful(self: KVCache, row: int, length: int) -> None:
        if length == 0:
            truncate(self, row, length)

    monkeypatch.setattr(KVCache, "truncate", forgetful)
    assert not holds(some_requests(8), "lookup")
