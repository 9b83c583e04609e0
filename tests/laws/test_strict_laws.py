"""Laws of strict generation: a request's tokens and log-probabilities have the same bits.

Alone, in any batch, with its prompt in chunks, found in the cache, or computed again after it was
preempted; with the native kernels and without them. Compared are the very bits of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from stepwell.errors import DeviceError
from stepwell.generate import engine as engine_module
from stepwell.generate.engine import Executors, InferenceEngine
from stepwell.generate.executor import NativeExecutor, Output, TileExecutor, TorchExecutor
from stepwell.generate.request import Request, SamplingParams, TokenEvent
from stepwell.model import native
from stepwell.model.config import ModelConfig
from stepwell.model.interventions import ZeroHeads
from stepwell.model.transformer import Transformer
from stepwell.native.library import unavailable_reason

V, CONTEXT = 61, 256
SHAPES = {
    "grouped": ModelConfig(
        vocab_size=V, context_length=CONTEXT, width=96, num_layers=2, num_heads=6, num_kv_heads=2
    ),
    "gpt2": ModelConfig(
        family="gpt2",
        position="learned",
        norm="layer",
        gated_mlp=False,
        vocab_size=V,
        context_length=CONTEXT,
        width=64,
        num_heads=4,
        activation="gelu_tanh",
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    ),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LENGTHS = [3, 70, 130, 64, 1, 100, 33, 129]


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def executors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip(f"no native kernels: {unavailable_reason()}")


@cache
def model_of(shape: str, dtype: str = "float32") -> Transformer:
    model = Transformer(SHAPES[shape])
    model.initialize(0)
    return model.to(DTYPES[dtype]).eval()


def needle(length: int, **options: Any) -> Request:
    """A request whose answer is held against its answer elsewhere."""
    ids = torch.randint(V, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    sampling = SamplingParams(temperature=0.8, seed=length, max_new_tokens=10, logprobs=3)
    return Request(tuple(ids), sampling, **options)


def straw(number: int) -> Request:
    """A request that only keeps others company."""
    ids = [(number * 7 + place) % V for place in range(1 + number * 11 % 90)]
    return Request(tuple(ids), SamplingParams(seed=number, max_new_tokens=3 + number % 9))


def bits(engine: InferenceEngine, asked: Sequence[Request]) -> list[list[TokenEvent]]:
    """The tokens of each request with all their log-probabilities, compared as they are."""
    handles = [engine.submit(each) for each in asked]
    return [[event for event in handle if isinstance(event, TokenEvent)] for handle in handles]


def strict(model: Transformer, **options: Any) -> InferenceEngine:
    return InferenceEngine(model, strict=True, eos_ids=[], **{"max_rows": 32, **options})


def alone(model: Transformer, requests: Sequence[Request]) -> list[list[TokenEvent]]:
    return [bits(strict(model, max_rows=1), [each])[0] for each in requests]


def in_batch(model: Transformer, needles: Sequence[Request], size: int) -> list[list[TokenEvent]]:
    """Each needle's answer in a batch of this size, at another place in each."""
    found = []
    for number, each in enumerate(needles):
        company = [straw(other) for other in range(size - 1)]
        place = number * 5 % size
        company.insert(place, each)
        found.append(bits(strict(model), company)[place])
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_moves_no_bit(shape: str, dtype: str) -> None:
    model, needles = model_of(shape, dtype), [needle(length) for length in (3, 70)]
    expected = alone(model, needles)
    for size in (2, 5, 8):
        assert in_batch(model, needles, size) == expected


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_batch_of_1_to_32_moves_a_bit(shape: str, dtype: str) -> None:
    model, needles = model_of(shape, dtype), [needle(length) for length in LENGTHS]
    expected = alone(model, needles)
    for size in range(1, 33):
        assert in_batch(model, needles, size) == expected, size


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_of_a_prompt_move_no_bit(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, needles = model_of("grouped", dtype), [needle(length) for length in LENGTHS]
    expected = alone(model, needles)
    for chunk in (7, 64, 100):
        monkeypatch.setattr(engine_module, "PREFILL_CHUNK", chunk)
        assert bits(strict(model), needles) == expected


def test_a_prompt_from_the_cache_moves_no_bit() -> None:
    model, needles = model_of("grouped"), [needle(length) for length in LENGTHS]
    expected = alone(model, needles)
    engine = strict(model)
    assert bits(engine, needles) == expected
    *_, end = engine.submit(needles[2])
    assert end.usage.cached_tokens == 128
    assert bits(engine, needles) == expected


def test_choices_and_their_number_move_no_bit() -> None:
    model, prompt = model_of("grouped"), needle(70).prompt_ids
    found = {}
    for n in (1, 2, 5):
        params = SamplingParams(n=n, max_new_tokens=6, logprobs=0)
        [events] = bits(strict(model), [Request(prompt, params)])
        found[n] = [event for event in events if event.choice == 0]
    assert found[1] == found[2] == found[5]


def test_preemption_moves_no_bit() -> None:
    model = model_of("grouped")
    asked = [needle(length) for length in (60, 61, 62, 63, 59)]
    expected = alone(model, asked)
    block = 2 * 2 * 2 * 16 * 64 * 4  # keys and values, layers, heads, width, tokens, float32
    engine = strict(model, kv_cache_bytes=6 * block)
    assert bits(engine, asked) == expected
    assert engine.num_preempted > 0


def test_interventions_on_some_rows_leave_the_bits_of_all() -> None:
    model = model_of("grouped")
    hooked = needle(33, interventions=(ZeroHeads({0: [1]}),))
    asked = [needle(70), hooked, needle(3)]
    assert bits(strict(model), asked) == alone(model, asked)
    assert alone(model, [hooked]) != alone(model, [needle(33)])


def test_asking_for_log_probabilities_moves_no_token() -> None:
    model, asked = model_of("grouped"), needle(70)
    silent = Request(asked.prompt_ids, asked.sampling.changed(logprobs=None))
    with_them, without = (bits(strict(model), [each])[0] for each in (asked, silent))
    assert [event.token_id for event in with_them] == [event.token_id for event in without]


def varying(executor: Any) -> Callable[..., Output]:
    """An executor whose last bit depends on how many tokens stand together."""
    run = executor.run

    def sums_in_another_order(chunks: Any) -> Output:
        output = run(chunks)
        total = sum(len(chunk.ids) for chunk in chunks)
        nudged = output.logits.nextafter(torch.tensor(torch.inf)) if total % 2 else output.logits
        return Output(nudged)

    return sums_in_another_order


def test_a_kernel_whose_bits_depend_on_the_batch_breaks_the_law(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, needles = model_of("grouped"), [needle(3), needle(70)]
    expected = alone(model, needles)
    chosen = Executors.of

    def variant(self: Executors, num_tokens: int) -> Any:
        executor = chosen(self, num_tokens)
        if "run" not in vars(executor):
            executor.run = varying(executor)  # type: ignore[method-assign]
        return executor

    monkeypatch.setattr(Executors, "of", variant)
    assert in_batch(model, needles, 4) != expected


def test_the_executor_of_whole_batches_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    model, needles = model_of("grouped"), [needle(length) for length in LENGTHS]

    def torch_only(self: Executors, num_tokens: int) -> TorchExecutor:
        engine_cache = (self._native or self._torch)._cache  # type: ignore[union-attr,attr-defined]
        return TorchExecutor(model, engine_cache)

    monkeypatch.setattr(Executors, "of", torch_only)
    assert bits(strict(model), needles) != alone(model, needles)


def test_strict_uses_the_kernels_for_prompts_too() -> None:
    executors = strict(model_of("grouped"))._executors
    found = executors.of(500)
    assert isinstance(found, TileExecutor if native.load() is None else NativeExecutor)


def test_strict_is_refused_where_it_cannot_hold() -> None:
    model = Transformer(SHAPES["grouped"]).to("meta")
    with pytest.raises(DeviceError, match="strict generation runs on a CPU"):
        InferenceEngine(model, strict=True)
