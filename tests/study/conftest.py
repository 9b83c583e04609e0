"""A small random model and a tokenizer of characters for the methods that look inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stepwell.generate.text import TextGenerator
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.text.tokenizer import Tokenizer


def random_generator(seed: int = 0, dtype: torch.dtype = torch.float32, **fields: Any):
    """A generator whose model has logits of order 1, so that every head matters."""
    tokenizer = Tokenizer.character("abcdefghijklmnop>", {"bos": "<bos>"})
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=24,
        width=16,
        num_layers=2,
        num_heads=2,
        tie_embeddings=False,
    ).changed(**fields)
    model = Transformer(config)
    model.initialize(seed)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.o_proj.weight.mul_(3)
            block.attention.q_proj.weight.mul_(2)
    return TextGenerator(model.to(dtype).eval(), tokenizer)


@pytest.fixture(scope="session")
def make() -> Callable[..., TextGenerator]:
    """Makes one: `make(seed, num_heads=4)`."""
    return random_generator


@pytest.fixture(scope="session")
def gen() -> TextGenerator:
    """Two layers of two heads."""
    return random_generator()


@pytest.fixture(scope="session")
def precise() -> TextGenerator:
    """The same in float64, with LayerNorm, which is computed in float64 then."""
    return random_generator(dtype=torch.float64, norm="layer")
