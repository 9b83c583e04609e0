"""A small random model for the tests of profiles."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stepwell.generate import executor
from stepwell.generate.text import TextGenerator
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.text.tokenizer import Tokenizer

Make = Callable[..., TextGenerator]


@pytest.fixture
def make() -> Make:
    """Makes a small random model with a context of several blocks of the cache."""
    return make_generator


def make_generator(*, tied: bool = False, **options: object) -> TextGenerator:
    """A small random model with a context of several blocks of the cache."""
    tokenizer = Tokenizer.character("abcdefgh \n>.", {"eos": "<eos>"})
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=256,
        width=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        tie_embeddings=tied,
    )
    model = Transformer(config)
    model.initialize(0)
    return TextGenerator(model, tokenizer, **options)


@pytest.fixture
def gen() -> TextGenerator:
    return make_generator()


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernels: torch computes everything."""
    monkeypatch.setattr(executor, "native_decoder", lambda _model: None)
