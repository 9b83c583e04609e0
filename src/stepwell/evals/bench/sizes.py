"""Three Llama models with random weights, made when they are first needed.

Speed does not depend on what a model has learnt, and random weights can be had anywhere. They lie
in the cache folder, in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from stepwell.errors import UsageError, suggest
from stepwell.evals.bench.plan import Subject
from stepwell.model.config import ModelConfig
from stepwell.model.directory import CONFIG
from stepwell.model.transformer import Transformer
from stepwell.model.weights import save_model


def llama_shape(
    width: int, mlp_width: int, num_layers: int, heads: tuple[int, int], vocab_size: int
) -> ModelConfig:
    """A Llama with a tied head and a context of 4,096; `heads` are those of queries and of keys."""
    return ModelConfig(
        width=width,
        mlp_width=mlp_width,
        num_layers=num_layers,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        vocab_size=vocab_size,
        context_length=4096,
        tie_embeddings=True,
    )


SIZES: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "14m": llama_shape(384, 1024, 6, (6, 6), 8192),
        "110m": llama_shape(768, 2048, 12, (12, 12), 32_000),
        "443m": llama_shape(1280, 3456, 22, (20, 4), 50_000),
    }
)


def subject(name: str, folder: Path) -> Subject:
    """The model of that size, made in `folder` where it is not there; or the given directory's.

    Raises UsageError for a name that is neither.
    """
    if name in SIZES:
        directory = folder / name
        if not (directory / CONFIG).is_file():
            make_model(SIZES[name], directory)
        return Subject(name, directory)
    if not (Path(name) / CONFIG).is_file():
        raise UsageError(
            f"{name!r} is neither a size nor a directory with a {CONFIG}. {suggest(name, SIZES)}"
        )
    return Subject(Path(name).resolve().name, Path(name))


def make_model(config: ModelConfig, directory: Path) -> None:
    """Writes a model with random weights in bfloat16."""
    with torch.random.fork_rng():  # torch draws weights of its own before ours
        model = Transformer(config)
    model.initialize(seed=0)
    save_model(model.to(torch.bfloat16), directory, dtype="bfloat16")
