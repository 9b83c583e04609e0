"""Tiles: the view of one row that does not depend on how the row was cut into steps."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from stepwell.errors import CacheError
from stepwell.model.blocks import BLOCK
from stepwell.model.cache import KVCache
from stepwell.model.cache_view import TileView
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer

CONTEXT = 200  # of four tiles, the last one not to the end
CONFIG = ModelConfig(vocab_size=7, context_length=CONTEXT, width=8, num_layers=2, num_heads=2)
CUTS = [[64, 64, 64, 8], [10, 54, 1, 63, 60, 4, 8], [64, 64, 64, 5, 3]]


def cache_with(length: int) -> KVCache:
    """A cache whose row 0 has `length` positions, all keys and values 1."""
    cache = KVCache(CONFIG, 1)
    ones = torch.ones(1, CONFIG.num_kv_heads, length, CONFIG.head_dim)
    view = cache.append([cache.allocate()], [length])
    for layer in range(CONFIG.num_layers):
        view.update(layer, ones, ones)
    return cache


def fill(view: TileView, value: float) -> tuple[torch.Tensor, torch.Tensor]:
    new = torch.full((1, CONFIG.num_kv_heads, BLOCK, CONFIG.head_dim), value)
    return view.update(1, new, -new)


def test_a_tile_shows_its_row_from_the_grid_with_zeros_beyond() -> None:
    cache = cache_with(BLOCK + 10)
    fill(cache.append_tile(0, 20), torch.nan)
    cache.truncate(0, BLOCK + 10)
    view = cache.append_tile(0, 5)
    assert (view.starts, view.counts) == ((BLOCK + 10,), (5,))
    assert (view.columns, view.length, view.uniform) == (slice(10, 15), 2 * BLOCK, False)
    assert view.positions_BT.tolist() == [list(range(BLOCK, 2 * BLOCK))]
    keys, values = fill(view, 2.0)
    expected = [1.0] * (BLOCK + 10) + [2.0] * 5 + [0.0] * (BLOCK - 15)
    assert keys[0, 0, :, 0].tolist() == expected
    assert values[0, 0, BLOCK + 10 :, 0].tolist() == [-value for value in expected[BLOCK + 10 :]]


def test_a_row_that_begins_with_a_tile_has_zeros_beyond_it_too() -> None:
    cache = KVCache(CONFIG, 1)
    keys, _ = fill(cache.append_tile(cache.allocate(), 3), 2.0)
    assert keys[0, 1, :, 0].tolist() == [2.0] * 3 + [0.0] * (BLOCK - 3)


def test_a_step_stays_inside_its_tile() -> None:
    cache = cache_with(10)
    with pytest.raises(CacheError, match="55 tokens do not fit the tile that row 0 is in; 54 do"):
        cache.append_tile(0, 55)
    assert cache.length(0) == 10
    cache.append_tile(0, 54)
    cache.append_tile(0, BLOCK)
    assert cache.length(0) == 2 * BLOCK


def test_a_tile_stays_inside_the_context() -> None:
    cache = cache_with(CONTEXT - 1)
    with pytest.raises(CacheError, match=f"{CONTEXT} fit the context"):
        cache.append_tile(0, 2)
    assert int(cache.append_tile(0, 1).positions_BT.max()) == CONTEXT - 1


def tile_by_tile(model: Transformer, ids: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    """Hidden states [1, T, C] of a prompt that is read in steps of these sizes."""
    cache, states, start = model.new_cache(1), [], 0
    row = cache.allocate()
    for num_new in cuts:
        view = cache.append_tile(row, num_new)
        tile = torch.zeros(1, BLOCK, dtype=torch.int64)
        tile[:, view.columns] = ids[:, start : start + num_new]
        states.append(model.hidden(tile, view=view)[:, view.columns])
        start += num_new
    return torch.cat(states, 1)


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("cuts", CUTS)
@torch.no_grad()
def test_prefill_by_tiles_equals_a_full_forward(
    position: Literal["learned", "rope"], cuts: list[int]
) -> None:
    model = Transformer(CONFIG.changed(position=position)).eval()
    model.initialize(0)
    ids = torch.randint(7, (1, CONTEXT), generator=torch.Generator().manual_seed(0))
    found, expected = tile_by_tile(model, ids, cuts), model.hidden(ids)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)  # float32


def test_a_tile_that_stands_one_off_the_grid_would_break_the_law(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound = TileView.__init__

    def broken(self: TileView, *given: object) -> None:
        sound(self, *given)  # type: ignore[arg-type]
        self.positions_BT = (self.positions_BT - 1).clamp(min=0)

    monkeypatch.setattr(TileView, "__init__", broken)
    with pytest.raises(AssertionError):
        test_prefill_by_tiles_equals_a_full_forward("learned", CUTS[0])
