"""The cache's verbs: what they refuse, what they leave alone, and where they may be called."""

from __future__ import annotations

import pytest
import torch

from stepwell.errors import CacheError, CacheFullError
from stepwell.model.blocks import BLOCK
from stepwell.model.cache import KVCache
from stepwell.model.cache_view import CacheView
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer

CONFIG = ModelConfig(vocab_size=11, context_length=20, width=16, num_layers=2, num_heads=2)
LONG = CONFIG.changed(context_length=200)  # of four blocks, the last one not to the end


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
        lambda: cache.append_tile(row, 1),
        lambda: cache.has_room([0, row], [1, 1]),
        lambda: cache.adopt(row, []),
        lambda: cache.publish(row, []),
        lambda: cache.table(row),
        lambda: cache.release(0, row),
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


def test_a_step_that_begins_its_rows_returns_what_came() -> None:
    cache = KVCache(CONFIG, 2)
    rows = [cache.allocate(), cache.allocate()]
    keys, values = torch.randn(2, 2, CONFIG.num_kv_heads, 3, CONFIG.head_dim)
    assert cache.append(rows, [3, 1]).update(0, keys, values) == (keys, values)
    later = cache.append(rows, [1, 1]).update(0, keys[..., :1, :], values[..., :1, :])
    assert [returned.shape[2] for returned in later] == [4, 4]
    assert not later[0][1, :, 2:].any()


def published(num_full: int) -> tuple[KVCache, list[bytes]]:
    """A cache whose row 0 consists of full blocks, and the keys under which they are found."""
    cache = KVCache(LONG, 3)
    cache.append([cache.allocate()], [num_full * BLOCK])
    keys = [bytes([at]) for at in range(num_full)]
    cache.publish(0, keys)
    return cache, keys


@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_the_longest_run_of_known_blocks_is_adopted(lost: int) -> None:
    cache, keys = published(3)
    row = cache.allocate()
    asked = [b"unknown" if at == lost else key for at, key in enumerate(keys)]
    assert cache.adopt(row, asked) == cache.length(row) == lost * BLOCK
    assert cache.table(row) == cache.table(0)[:lost]


def test_what_does_not_fit_the_context_is_not_adopted() -> None:
    cache, [key] = published(1)
    assert cache.adopt(cache.allocate(), [key] * 5) == 3 * BLOCK


def test_only_an_empty_row_adopts_and_only_full_blocks_are_published() -> None:
    cache, keys = published(1)
    cache.append([0], [1])
    with pytest.raises(CacheError, match=f"Row 0 holds {BLOCK + 1} tokens; only an empty row"):
        cache.adopt(0, keys)
    with pytest.raises(CacheError, match="Row 0 has 1 full blocks, but 2 keys"):
        cache.publish(0, [*keys, b"another"])
    assert cache.blocks.find(b"another") is None
    assert cache.length(0) == BLOCK + 1


def test_a_fork_without_room_changes_nothing() -> None:
    cache = KVCache(CONFIG, 2, num_blocks=1)
    cache.append([cache.allocate()], [3])
    with pytest.raises(CacheFullError, match=f"Blocks of {BLOCK} tokens needed: 1; available: 0"):
        cache.fork(0)
    assert state(cache, rows=1) == (1, [3])


def test_the_pool_grows_by_doubling_to_what_is_used_and_no_further() -> None:
    cache = KVCache(LONG, 2)
    row = cache.allocate()
    sizes = []
    for length in (1, BLOCK, BLOCK + 1, 2 * BLOCK + 1, LONG.context_length):
        cache.append([row], [length - cache.length(row)])
        sizes.append(cache.capacity // BLOCK)
    assert sizes == [1, 1, 2, 4, 4]
    for _ in range(20):
        cache.release(row)
        cache.append([cache.allocate()], [LONG.context_length])
    assert len(cache.pool) == 4


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


def test_a_gradient_reaches_earlier_steps_through_the_cache() -> None:
    model = Transformer(CONFIG.changed(context_length=150))
    model.initialize(0)
    ids = torch.randint(11, (1, 130), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(1)
    row = cache.allocate()
    gradients = []
    for step in (ids[:, :100], ids[:, 100:]):
        logits = model(step, view=cache.append([row], [step.shape[1]]))
    for last in (logits, model(ids)[:, 100:]):
        model.zero_grad()
        last.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)  # float32


def cache_view(model: Transformer, num_new: int) -> CacheView:
    cache = model.new_cache(1)
    return cache.append([cache.allocate()], [num_new])
