"""Our Transformer against transformers: the same logits from the same files, also in chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model

TOLERANCE = 1e-5  # float32, logits of magnitude 5
CHUNKS = (7, 1, 9, 1, 6)

DROPPED: Mapping[str, Mapping[str, Any]] = {
    "llama-linear": {"rope_scaling": None},
    "llama-llama3": {"rope_scaling": None},
    "llama-yarn": {"rope_scaling": None},
    "llama-biases": {"qkv_bias": False},
    "llama-wide-heads": {"norm_eps": 1e-6},
    "mistral-window": {"sliding_window": None, "sliding_layers": ()},
    "qwen2-window-above": {"sliding_layers": (0, 1, 2)},
    "qwen2-window-alternating": {"sliding_layers": (1,)},
    "qwen3": {"qk_norm": False},
    "gpt2": {"activation": "gelu"},
    "gpt2-by-layer": {"scale_attention_by_layer": False},
    "gpt2-unscaled-untied": {"scale_attention": True},
}


@torch.no_grad()
def largest_difference(model: Transformer, foreign: PreTrainedModel, ids: Tensor) -> float:
    return float((model(ids) - foreign(ids).logits).abs().max())


def test_logits_equal_those_of_transformers(
    foreign: PreTrainedModel, ids: Tensor, tmp_path: Path
) -> None:
    foreign.save_pretrained(tmp_path)
    assert largest_difference(load_model(tmp_path), foreign, ids) < TOLERANCE


@torch.no_grad()
def test_cached_chunks_equal_those_of_transformers(
    foreign: PreTrainedModel, ids: Tensor, tmp_path: Path
) -> None:
    foreign.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    cache, past = model.new_cache(max_rows=2), None
    rows = [cache.allocate(), cache.allocate()]
    for chunk in ids.split(CHUNKS, dim=1):
        theirs = foreign(chunk, past_key_values=past, use_cache=True)
        past = theirs.past_key_values
        ours = model(chunk, view=cache.append(rows, [chunk.shape[1]] * 2))
        torch.testing.assert_close(ours, theirs.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "changes"), DROPPED.items(), ids=DROPPED)
def test_each_special_field_is_seen_by_this_comparison(
    name: str,
    changes: Mapping[str, Any],
    foreign_of: Callable[[str], PreTrainedModel],
    ids: Tensor,
    tmp_path: Path,
) -> None:
    foreign = foreign_of(name)
    foreign.save_pretrained(tmp_path)
    right = load_model(tmp_path)
    wrong = Transformer(right.config.changed(**changes))
    wrong.load_state_dict(right.state_dict(), strict=False)
    assert largest_difference(wrong, foreign, ids) > 10 * TOLERANCE
