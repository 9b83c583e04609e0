"""Executors: what goes through the model together, and that all of them compute the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from stepwell.generate import executor as executor_module
from stepwell.generate.executor import (
    Chunk,
    Executor,
    Executors,
    NativeExecutor,
    TileExecutor,
    TorchExecutor,
)
from stepwell.model.cache import KVCache
from stepwell.model.config import ModelConfig
from stepwell.model.native import native_decoder
from stepwell.model.transformer import Transformer

CONFIG = ModelConfig(vocab_size=23, context_length=200, width=16, num_layers=2, num_heads=2)
LENGTHS = [20, 3, 19, 4, 20, 12, 3]
WANTED = [1, 0, 2, 1, 20, 0, 3]
IDS = torch.randint(0, 23, (20,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module")
def model() -> Transformer:
    made = Transformer(CONFIG).requires_grad_(False)
    made.initialize(0)
    return made


@pytest.fixture
def cache(model: Transformer) -> KVCache:
    return model.new_cache(len(LENGTHS))


@pytest.fixture
def chunks(cache: KVCache) -> list[Chunk]:
    """Beginnings of one text, for new rows whose numbers are not in order."""
    rows = [cache.allocate() for _ in LENGTHS][::-1]
    sizes = zip(rows, LENGTHS, WANTED, strict=True)
    return [Chunk(row, IDS[:length], wanted) for row, length, wanted in sizes]


def native(model: Transformer, cache: KVCache) -> Executor:
    decoder = native_decoder(model)
    if decoder is None:
        pytest.skip("no native kernels")
    return NativeExecutor(decoder, cache)


@pytest.mark.parametrize("make", [TorchExecutor, TileExecutor, native])
def test_logits_come_for_what_is_wanted_in_the_order_of_the_chunks(
    make: Callable[[Transformer, KVCache], Executor],
    model: Transformer,
    cache: KVCache,
    chunks: list[Chunk],
) -> None:
    whole_TV = model(torch.tensor([IDS]))[0]
    expected = [whole_TV[len(each.ids) - each.wanted : len(each.ids)] for each in chunks]
    found = make(model, cache).run(chunks).logits
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert [cache.length(each.row) for each in chunks] == LENGTHS


@pytest.mark.parametrize(("padding", "forwards"), [(0, 5), (7, 3), (10**6, 1)])
def test_torch_computes_chunks_together_where_little_of_it_is_padding(
    padding: int,
    forwards: int,
    model: Transformer,
    cache: KVCache,
    chunks: list[Chunk],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executor_module, "PADDING", padding)
    together, append = [], KVCache.append

    def noted(self: KVCache, rows: list[int], counts: list[int]) -> object:
        together.append(counts)
        assert rows == sorted(rows)
        return append(self, rows, counts)

    monkeypatch.setattr(KVCache, "append", noted)
    TorchExecutor(model, cache).run(chunks)
    assert sorted(itertools.chain(*together)) == sorted(LENGTHS)
    assert all(max(each) * len(each) - sum(each) <= padding for each in together)
    assert len(together) == forwards


@pytest.mark.parametrize(("strict", "wide"), [(False, True), (False, False), (True, False)])
def test_kernels_without_wide_vectors_leave_prompts_to_torch(
    strict: bool, wide: bool, model: Transformer, cache: KVCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    native(model, cache)
    decoder = native_decoder(model)
    assert decoder is not None
    decoder.wide = wide
    monkeypatch.setattr(executor_module, "native_decoder", lambda model: decoder)
    executors = Executors(model, cache, strict=strict)
    few, many = executors.of(128), executors.of(129)
    assert isinstance(few, NativeExecutor)
    assert isinstance(many, NativeExecutor if strict or wide else TorchExecutor)
