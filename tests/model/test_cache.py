"""The cache's verbs: what they refuse, what they leave alone, and where they may be called."""

from __future__ import annotations

import pytest
import torch

from stepwell.errors import CacheError
from stepwell.model.cache import CacheView, KVCache
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer

CONFIG = ModelConfig(vocab_size=11, context_length=20, width=16, num_layers=2, num_heads=2)


def cache_of_three() -> KVCache:
    """Three rows: 0 with 5 positions, 1 with 2, 2 free."""
    cache = KVCache(CONFIG, 3)
    assert [cache.allocate(), cache.allocate()] == [0, 1]
    cache.append([0, 1], [5, 2])
    return cache


def state(cache: KVCache, rows: int = 2) -> tuple[int, list[int]]:
    return cache.num_free, [cache.length(row) for row in range(rows)]


def test_rows_are_handed_out_lowest_first() -> None:
    cache = KVCache(CONFIG, 4)
    assert [cache.allocate() for _ in range(4)] == [0, 1, 2, 3]
    for row in (2, 0, 3):
        cache.release(row)
    assert [cache.allocate() for _ in range(3)] == [0, 2, 3]


def test_a_full_cache_hands_out_no_row() -> None:
    cache = cache_of_three()
    assert cache.fork(0) == 2
    before = state(cache, rows=3)
    for ask in (cache.allocate, lambda: cache.fork(1)):
        with pytest.raises(CacheError, match="All 3 rows"):
            ask()
    assert state(cache, rows=3) == before


@pytest.mark.parametrize("row", [2, 3, -1])
def test_a_row_that_is_not_in_use_is_refused_by_every_verb(row: int) -> None:
    cache = cache_of_three()
    verbs = [
        lambda: cache.append([0, row], [1, 1]),
        lambda: cache.truncate(row, 0),
        lambda: cache.fork(row),
        lambda: cache.release(row),
        lambda: cache.length(row),
    ]
    for verb in verbs:
        with pytest.raises(CacheError, match=f"Row {row} of the cache is not in use"):
            verb()
    assert state(cache) == (1, [5, 2])


@pytest.mark.parametrize(
    ("rows", "counts", "message"),
    [
        ([0, 0], [1, 1], "Row 0 is named twice"),
        ([0, 1], [1, 0], "at least one token"),
        ([0], [-1], "at least one token"),
        ([], [], "at least one token"),
        ([0, 1], [15, 19], "Row 1 would reach 21 tokens; 20 fit"),
    ],
)
def test_an_append_that_cannot_be_changes_nothing(
    rows: list[int], counts: list[int], message: str
) -> None:
    cache = cache_of_three()
    with pytest.raises(CacheError, match=message):
        cache.append(rows, counts)
    assert state(cache) == (1, [5, 2])


def test_the_last_position_of_the_context_can_be_filled() -> None:
    cache = cache_of_three()
    cache.append([0, 1], [15, 18])
    assert state(cache) == (1, [20, 20])


@pytest.mark.parametrize("length", [-1, 6])
def test_a_row_is_cut_only_to_what_it_holds(length: int) -> None:
    cache = cache_of_three()
    with pytest.raises(CacheError, match=f"Row 0 holds 5 tokens and cannot be cut to {length}"):
        cache.truncate(0, length)
    assert state(cache) == (1, [5, 2])


def test_positions_continue_each_row_and_padding_repeats_its_last() -> None:
    view = cache_of_three().append([1, 0], [3, 1])
    assert view.positions_BT.tolist() == [[2, 3, 4], [5, 5, 5]]
    assert view.length == 6
    assert not view.uniform


def test_learned_positions_bound_the_cache() -> None:
    config = CONFIG.changed(position="learned")
    with pytest.raises(CacheError, match="learned 20 positions"):
        KVCache(config, 1, context_length=21)
    assert KVCache(CONFIG, 1, context_length=21).context_length == 21


def test_a_new_cache_has_the_dtype_and_device_of_its_model() -> None:
    model = Transformer(CONFIG).to(torch.bfloat16)
    cache = model.new_cache(1)
    keys, values = cache.append([cache.allocate()], [1]).update(
        0, *torch.ones(2, 1, CONFIG.num_kv_heads, 1, CONFIG.head_dim)
    )
    assert (keys.dtype, values.dtype, cache.device) == (torch.bfloat16,) * 2 + (model.device,)


def test_neighbouring_rows_are_read_without_a_copy() -> None:
    cache = cache_of_three()
    new = torch.ones(2, CONFIG.num_kv_heads, 1, CONFIG.head_dim)
    cache.truncate(0, 2)
    keys, _ = cache.append([0, 1], [1, 1]).update(0, new, new)
    again, _ = cache.append([0, 1], [1, 1]).update(0, new, new)
    assert keys.data_ptr() == again.data_ptr()


@pytest.mark.parametrize("made_inside", [False, True])
def test_a_cache_serves_inside_and_outside_inference_mode(made_inside: bool) -> None:
    model = Transformer(CONFIG)
    with torch.inference_mode(made_inside):
        cache = model.new_cache(2)
    with torch.inference_mode():
        row = cache.allocate()
        model(torch.tensor([[1, 2, 3]]), view=cache.append([row], [3]))
    cache.truncate(row, 2)
    copy = cache.fork(row)
    with torch.no_grad():
        outside = model(torch.tensor([[4]]), view=cache.append([row], [1]))
    with torch.inference_mode():
        inside = model(torch.tensor([[4]]), view=cache.append([copy], [1]))
    assert torch.equal(outside, inside)
    cache.release(row)


def test_a_gradient_reaches_the_weights_through_the_cache() -> None:
    model = Transformer(CONFIG)
    model.initialize(0)
    ids = torch.tensor([[1, 2, 3, 4]])
    gradients = []
    for view in (None, cache_view(model, 4)):
        model.zero_grad()
        model(ids, view=view).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)  # float32
    assert all(gradient.abs().max() > 0 for gradient in gradients[1])


def cache_view(model: Transformer, num_new: int) -> CacheView:
    cache = model.new_cache(1)
    return cache.append([cache.allocate()], [num_new])
