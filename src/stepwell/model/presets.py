"""Named shapes: `presets["tiny"]` and the sizes that people ask for by name.

A preset is a starting point: `presets["tiny"].resized(num_layers=4)` changes it, and a trainer sets
the vocabulary to its tokenizer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from stepwell.model.config import ModelConfig

GPT2_VOCABULARY = 50_257


def gpt2_shape(
    width: int, num_layers: int, num_heads: int, context_length: int = 512
) -> ModelConfig:
    """A GPT-2 of the given shape, with GPT-2's vocabulary."""
    return ModelConfig(
        family="gpt2",
        vocab_size=GPT2_VOCABULARY,
        context_length=context_length,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        norm="layer",
        norm_eps=1e-5,
        position="learned",
        activation="gelu_tanh",
        gated_mlp=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        tie_embeddings=True,
    )


_TINY = ModelConfig(width=64, num_layers=2, num_heads=2, context_length=256)

presets: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "tiny": _TINY,
        "facts-small": _TINY.resized(width=32, num_layers=1, num_heads=2),
        "facts-middle": _TINY.resized(width=128, num_layers=2, num_heads=4),
        "facts-large": _TINY.resized(width=384, num_layers=4, num_heads=6),
        "gpt2-11m": gpt2_shape(384, 6, 6),
        "gpt2-25m": gpt2_shape(512, 8, 8),
        "gpt2-85m": gpt2_shape(768, 12, 12),
        "llama-80m": ModelConfig(
            vocab_size=GPT2_VOCABULARY, width=512, mlp_width=1536, num_layers=16, num_heads=16
        ),
        "llama-505m": ModelConfig(
            vocab_size=50_000,
            width=1024,
            mlp_width=4096,
            num_layers=24,
            num_heads=16,
            context_length=4096,
            rope_theta=50_000.0,
            tie_embeddings=False,
        ),
        "qwen2.5-0.5b": ModelConfig(
            family="qwen2",
            vocab_size=151_936,
            width=896,
            mlp_width=4864,
            num_layers=24,
            num_heads=14,
            num_kv_heads=2,
            context_length=32_768,
            rope_theta=1_000_000.0,
            qkv_bias=True,
            tie_embeddings=True,
        ),
    }
)
