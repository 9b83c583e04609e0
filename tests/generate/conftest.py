"""A small random model and a tokenizer of characters for the tests of generation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import engines

from stepwell.generate.response_cache import ResponseCache
from stepwell.generate.text import TextGenerator
from stepwell.model import native
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.native.library import unavailable_reason
from stepwell.text.tokenizer import Tokenizer

ROLES = {"bos": "<bos>", "eos": "<eos>", "think_start": "<think>", "think_end": "</think>"}


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.character("abcdefgh \n>.", ROLES)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Transformer:
    """Random, with logits of order 1, so that sampling is far from certain."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=64,
        width=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        tie_embeddings=False,
    )
    model = Transformer(config)
    model.initialize(0)
    with torch.no_grad():
        model.head.weight.mul_(2)
    return model.eval()


@pytest.fixture(scope="session")
def long_model(model: Transformer) -> Transformer:
    """The same weights with a context of several blocks of the cache."""
    long = Transformer(model.config.changed(context_length=256))
    long.load_state_dict(model.state_dict())
    return long.eval()


@pytest.fixture
def gen(model: Transformer, tokenizer: Tokenizer) -> TextGenerator:
    return TextGenerator(model, tokenizer, max_rows=4)


@pytest.fixture(params=["native", "torch", "native-strict", "tiles"])
def executors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every law holds with the kernels and without, in strict mode and out of it."""
    if request.param in ("torch", "tiles"):
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip(f"no native kernels: {unavailable_reason()}")
    monkeypatch.setattr(engines, "strict", request.param in ("native-strict", "tiles"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a response cache is made."""
    return tmp_path / "answers.sqlite"


@pytest.fixture
def cache(path: Path) -> Iterator[ResponseCache]:
    """An empty response cache."""
    with ResponseCache(path) as cache:
        yield cache
